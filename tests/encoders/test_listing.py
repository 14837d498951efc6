"""`isoformer encoders`: every name, what it is, and where its weights are as seen from a root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encoders.tiny import ESM2_CONFIG
from isoformer.cli import main
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.listing import COMPARED_WITH, Listed, listing
from isoformer.encoders.registry import EncoderChoice, encoder_names, get_spec
from isoformer.encoders.weights_manifest import WeightsManifest, describe
from isoformer.encoders.weights_store import publish, use
from isoformer.storage import Storage, open_storage

COMMIT = "c" * 40


def listed(storage: Storage) -> dict[str, Listed]:
    return {item.name: item for item in listing(storage)}


def put_weights(storage: Storage, repository: str, folder: Path) -> str:
    """What `isoformer weights pull` leaves behind; where it is."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ESM2_CONFIG))
    (folder / "model.safetensors").write_bytes(b"tensors")
    manifest = WeightsManifest(
        repository=repository, commit=COMMIT, licence="mit", digest="d", files=describe(folder.iterdir())
    )
    publish(storage, manifest, folder.iterdir())
    use(storage, repository, manifest.version, move=False)
    return f"{storage.uri}/weights/{repository}/{manifest.version}"


class TestListing:
    def test_every_name_is_there_once(self, tmp_path: Path) -> None:
        assert [item.name for item in listing(open_storage(tmp_path))] == encoder_names()

    def test_it_says_where_weights_come_from(self, tmp_path: Path) -> None:
        where = {name: item.weights for name, item in listed(open_storage(tmp_path)).items()}
        assert {name for name, weights in where.items() if weights == "pull"} == PUBLISHED.keys()
        assert {name for name, weights in where.items() if weights == "shipped"} == {
            "esm2-tiny",
            "ntv2-tiny-dna",
            "ntv2-tiny-rna",
        }
        assert {name for name, weights in where.items() if weights == "none needed"} == {
            name for name in where if name.startswith("composition-")
        }
        rest = {name for name, weights in where.items() if weights == "by path"}
        assert rest >= {"esm2", "ntv1-dna", "ntv2-rna", "unirep-64", "unirep-256", "xpresso", "mxfold2"}
        assert set(where.values()) == {"pull", "shipped", "none needed", "by path"}

    def test_what_was_pulled_shows_where_and_which_commit(self, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "root")
        for name in ("esm2-8m", "ntv2-50m-dna"):
            uri = put_weights(storage, PUBLISHED[name].hub, tmp_path / name)
            item = listed(storage)[name]
            assert (item.weights, item.uri) == ("pulled", uri)
            assert item.spec is not None
            assert item.spec.revision == COMMIT
        pulled = {name for name, item in listed(storage).items() if item.weights == "pulled"}
        assert pulled == {"esm2-8m", "ntv2-50m-dna", "ntv2-50m-rna"}  # two names of one repository

    def test_nothing_but_what_was_pulled_has_a_uri(self, tmp_path: Path) -> None:
        assert {item.uri for item in listing(open_storage(tmp_path))} == {""}

    def test_specs_are_known_without_weights_but_for_folders_of_the_users(self, tmp_path: Path) -> None:
        found = listed(open_storage(tmp_path))
        without = {name for name, item in found.items() if item.spec is None}
        assert without == {"esm2", "ntv1-dna", "ntv1-rna", "ntv2-dna", "ntv2-rna"}
        for name in PUBLISHED:
            spec = found[name].spec
            assert spec == get_spec(EncoderChoice(name=name))
            assert spec is not None
            assert min(spec.width, spec.layers, spec.max_tokens, spec.parameter_count) > 0
            assert spec.licence and spec.hub and spec.flops(1) > 0

    def test_every_published_family_names_what_it_was_compared_with(self, tmp_path: Path) -> None:
        found = listed(open_storage(tmp_path))
        families = {item.spec.family for name, item in found.items() if name in PUBLISHED and item.spec}
        assert families == COMPARED_WITH.keys()
        assert found["enformer"].compared_with == "enformer-pytorch"
        assert found["unirep-64"].compared_with == "plain code"
        looser = {
            name: item.spec.parity for name, item in found.items() if item.spec and item.spec.parity > 1e-5
        }
        assert looser == {"xpresso": 1e-4}


class TestVerb:
    def test_json_has_them_all(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        storage = open_storage(tmp_path / "root")
        uri = put_weights(storage, PUBLISHED["esm2-8m"].hub, tmp_path / "esm2-8m")
        main(["encoders", "--json", "--set", f"root={storage.uri}"])
        found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["encoders"]}
        assert list(found) == encoder_names()
        assert (found["esm2-8m"]["weights"], found["esm2-8m"]["uri"]) == ("pulled", uri)
        spec = found["ntv2-500m-rna"]["spec"]
        assert (spec["modality"], spec["width"], spec["layers"], spec["parity"]) == ("rna", 1024, 29, 1e-5)
        assert "non-commercial" in spec["licence"]
        assert found["esm2"]["spec"] is None

    def test_a_person_gets_a_table_and_the_way_to_the_rest(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["encoders", "--set", f"root={tmp_path}"])
        shown = capsys.readouterr().out
        assert [name for name in encoder_names() if name not in shown] == []
        assert "hf:<repository or folder>" in shown
        assert "within 1e-5 (xpresso: 1e-4)" in shown
        assert "isoformer weights pull NAME" in shown

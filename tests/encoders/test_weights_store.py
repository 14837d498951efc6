"""Where weights are read from: shards, manifests, a root's versions, a node's copies of what lies on S3."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from encoders.tiny import ESM2_CONFIG
from isoformer.embeddings.admin import verify
from isoformer.embeddings.key import encoder_key
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice, get_spec
from isoformer.encoders.weights_convert import as_safetensors
from isoformer.encoders.weights_files import (
    config_folder,
    folder_digest,
    read_tensors,
    state_file,
    weights_file,
    weights_folder,
)
from isoformer.encoders.weights_manifest import WeightsManifest, describe, shards, state_digest
from isoformer.encoders.weights_store import (
    current_version,
    listing,
    located,
    publish,
    require_same,
    use,
)
from isoformer.errors import EncoderError, StorageError
from isoformer.ray_session import RayConfig, _init_arguments
from isoformer.storage import Storage, open_storage

NAME, REPOSITORY = "hf:lab/tiny", "lab/tiny"
COMMIT, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{index}": torch.randn(50, 20, generator=generator) for index in range(6)}


@pytest.fixture
def folder(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """Six tensors in three shards."""
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert len(as_safetensors(tmp_path / "pytorch_model.bin", folder, shard_bytes=9000)) == 4
    (folder / "config.json").write_text('{"hidden_size": 20}')
    return folder


def manifest_of(folder: Path, commit: str | None = COMMIT) -> WeightsManifest:
    return WeightsManifest(
        repository=REPOSITORY,
        commit=commit,
        licence="MIT",
        digest=state_digest(state_file(folder)),
        files=describe(folder.iterdir()),
    )


def published(storage: Storage, folder: Path, commit: str = COMMIT) -> EncoderChoice:
    manifest = manifest_of(folder, commit)
    publish(storage, manifest, folder.iterdir())
    use(storage, REPOSITORY, manifest.version, move=True)
    return located(EncoderChoice(name=NAME), storage)


def put(folder: Path, uri: str) -> Storage:
    storage = open_storage(uri)
    for path in folder.iterdir():
        storage.put_file(path, path.name)
    return storage


class TestFolder:
    def test_shards_are_read_as_one(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        found = read_tensors(state_file(folder))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    def test_a_missing_or_corrupted_shard_is_named(self, folder: Path) -> None:
        first, second, _ = shards(state_file(folder))
        second.write_bytes(second.read_bytes()[:100])
        with pytest.raises(EncoderError, match=f"{second.name}: not a readable file"):
            read_tensors(state_file(folder))
        first.unlink()
        with pytest.raises(EncoderError, match=f"names the shard {first.name}, which is missing"):
            read_tensors(state_file(folder))

    def test_a_shard_without_what_the_index_lists_is_named(
        self, folder: Path, tensors: dict[str, torch.Tensor]
    ) -> None:
        save_file({"layer.0": tensors["layer.0"]}, shards(state_file(folder))[0])
        with pytest.raises(EncoderError, match=r"lists layer\.1 in model-00001\.safetensors"):
            read_tensors(state_file(folder))

    @pytest.mark.parametrize(
        "trick", ["../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors", ".x.safetensors", ".."]
    )
    def test_a_name_that_leads_elsewhere_is_refused(self, folder: Path, trick: str) -> None:
        state_file(folder).write_text(json.dumps({"weight_map": {"layer.0": trick}}))
        with pytest.raises(EncoderError, match="must be a plain file name"):
            read_tensors(state_file(folder))

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
    def test_a_broken_index_is_an_error(self, folder: Path, content: str) -> None:
        state_file(folder).write_text(content)
        with pytest.raises(EncoderError, match=r"model\.safetensors\.index\.json"):
            read_tensors(state_file(folder))
        state_file(folder).write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
        with pytest.raises(EncoderError, match=r"must be a \.safetensors file"):
            read_tensors(state_file(folder))

    def test_the_digest_is_of_all_shards_and_a_manifests_word_is_taken(self, folder: Path) -> None:
        choice = EncoderChoice(name="esm2", weights=str(folder))
        digest = folder_digest(choice)
        manifest = manifest_of(folder)
        assert manifest.digest == digest
        (folder / "manifest.json").write_bytes(manifest.edited(digest="said").to_bytes())
        assert folder_digest(choice) == "said"
        (folder / "manifest.json").write_text('{"somebody": "else\'s"}')
        assert folder_digest(choice) == digest
        blob = bytearray((last := shards(state_file(folder))[-1]).read_bytes())
        blob[-1] ^= 1
        last.write_bytes(blob)
        assert folder_digest(choice) != digest

    def test_a_file_of_another_size_than_the_manifest_lists_is_refused(self, folder: Path) -> None:
        (folder / "manifest.json").write_bytes(manifest_of(folder).to_bytes())
        assert weights_folder(EncoderChoice(name="esm2", weights=str(folder))) == folder
        last = shards(state_file(folder))[-1]
        last.write_bytes(last.read_bytes()[:-1])
        with pytest.raises(EncoderError, match=f"{last.name}: has .* bytes; manifest.json lists"):
            weights_folder(EncoderChoice(name="esm2", weights=str(folder)))

    def test_a_manifest_that_names_files_elsewhere_is_refused(self, folder: Path) -> None:
        text = manifest_of(folder).to_bytes().replace(b'"config.json"', b'"../config.json"')
        (folder / "manifest.json").write_bytes(text)
        with pytest.raises(EncoderError, match="must be a plain file name"):
            weights_folder(EncoderChoice(name="esm2", weights=str(folder)))


class TestOrigin:
    """Repository and commit come from the manifest, and are no part of the encoder's identity."""

    @pytest.mark.parametrize(
        ("choice", "config"),
        [
            (EncoderChoice(name="esm2"), ESM2_CONFIG),
            (EncoderChoice(name="enformer"), PUBLISHED["enformer"].config),
            (EncoderChoice(name="rnafm"), PUBLISHED["rnafm"].config),
        ],
    )
    def test_of_pulled_weights(self, folder: Path, choice: EncoderChoice, config: dict[str, Any]) -> None:
        (folder / "config.json").write_text(json.dumps(dict(config)))
        given = choice.edited(weights=str(folder))
        without = get_spec(given)
        assert (without.source, without.revision) == (str(folder), None)
        manifest = manifest_of(folder)
        (folder / "manifest.json").write_bytes(manifest.to_bytes())
        spec = get_spec(given)
        assert (spec.source, spec.revision) == (REPOSITORY, COMMIT)
        assert encoder_key(spec, "digest", "pooled") == encoder_key(without, "digest", "pooled")
        (folder / "manifest.json").write_bytes(manifest.edited(commit=None).to_bytes())
        assert get_spec(given).revision is None

    def test_of_a_name_alone(self) -> None:
        entry = PUBLISHED["esm2-8m"]
        spec = get_spec(EncoderChoice(name="esm2-8m"))
        assert (spec.source, spec.revision) == (entry.hub, entry.revision)
        shipped = get_spec(EncoderChoice(name="esm2-tiny"))
        assert (shipped.source, shipped.revision) == ("isoformer pretrain: see the model card", None)

    def test_of_a_single_file(self, tmp_path: Path) -> None:
        file = str(tmp_path / "RNA-FM_pretrained.pth")
        spec = get_spec(EncoderChoice(name="rnafm", weights=file))
        assert (spec.source, spec.revision) == (file, None)


class TestRoot:
    def test_what_needs_no_published_weights_stays_as_it_is(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = open_storage(tmp_path / "root")
        monkeypatch.chdir(folder.parent)
        for choice in (
            EncoderChoice(name="esm2-tiny"),
            EncoderChoice(name="esm2-8m", weights="/there"),
            EncoderChoice(name="esm2-8m", random_seed=1),
            EncoderChoice(name="hf:/a/folder"),
            EncoderChoice(name="hf:./folder"),
            EncoderChoice(name="hf:folder"),
        ):
            assert located(choice, storage) == choice

    def test_what_is_not_there_names_the_command(self, tmp_path: Path) -> None:
        for name in ("esm2-8m", NAME):
            with pytest.raises(EncoderError, match=rf"isoformer weights pull {name} --set root={tmp_path}"):
                located(EncoderChoice(name=name), open_storage(tmp_path))

    def test_a_folder_without_its_manifest_does_not_exist(self, folder: Path, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "root")
        choice = published(storage, folder)
        assert choice.weights == str(tmp_path / "root" / "weights" / REPOSITORY / COMMIT[:12])
        assert read_tensors(state_file(weights_folder(choice))).keys() == {f"layer.{n}" for n in range(6)}
        storage.delete(f"weights/{REPOSITORY}/{COMMIT[:12]}/manifest.json")
        with pytest.raises(EncoderError, match="isoformer weights pull"):
            located(EncoderChoice(name=NAME), storage)
        assert listing(storage) == []

    def test_what_was_put_half_does_not_exist(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = open_storage(tmp_path / "root")
        put_file, done = type(storage).put_file, []

        def failing(self: Any, path: Path, key: str) -> bool:
            if len(done) == 3:
                raise StorageError("the disk is full")
            done.append(key)
            return put_file(self, path, key)

        monkeypatch.setattr(type(storage), "put_file", failing)
        with pytest.raises(StorageError, match="full"):
            published(storage, folder)
        assert len(storage.list("weights/")) == 3
        assert listing(storage) == []
        monkeypatch.undo()
        assert published(storage, folder).weights

    def test_a_root_stays_with_its_version_until_another_is_named(self, folder: Path, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "root")
        published(storage, folder)
        use(storage, REPOSITORY, COMMIT[:12], move=False)
        for attempt in (
            lambda: require_same(storage, REPOSITORY, OTHER),
            lambda: use(storage, REPOSITORY, OTHER[:12], move=False),
        ):
            with pytest.raises(StorageError, match=f"uses {COMMIT[:12]}.*--revision {OTHER[:12]}"):
                attempt()
        assert current_version(storage, REPOSITORY) == COMMIT[:12]
        use(storage, REPOSITORY, OTHER[:12], move=True)
        assert current_version(storage, REPOSITORY) == OTHER[:12]

    def test_other_files_under_the_same_version_are_refused(self, folder: Path, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "root")
        published(storage, folder)
        published(storage, folder)
        (folder / "config.json").write_text("{}")
        with pytest.raises(StorageError, match="holds other files"):
            published(storage, folder)

    def test_store_verify_hashes_the_files_again(self, folder: Path, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "root")
        published(storage, folder)
        report = verify(storage.uri)
        assert (report.ok, report.objects) == (True, 5)
        key = f"weights/{REPOSITORY}/{COMMIT[:12]}/model-00002.safetensors"
        blob = bytearray(storage.read_bytes(key))
        blob[-1] ^= 1
        storage.write_bytes(key, blob)
        storage.delete(f"weights/{REPOSITORY}/{COMMIT[:12]}/config.json")
        missing, spoilt = verify(storage.uri).problems
        assert "config.json: cannot be read" in missing
        assert f"{key}: has sha256" in spoilt

    def test_workers_never_ask_a_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        arguments = _init_arguments(RayConfig(), "ray://head")
        assert arguments["runtime_env"] == {"env_vars": {"HF_HUB_OFFLINE": "1"}}
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the submitted job's own word
        assert _init_arguments(RayConfig(), "ray://head")["runtime_env"] == {"env_vars": {}}


class TestNode:
    def test_a_spec_fetches_no_tensors_and_workers_fetch_them_once(
        self, folder: Path, s3_root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choice = published(open_storage(s3_root), folder)
        assert config_folder(choice).name.endswith("-config")
        assert folder_digest(choice) == state_digest(state_file(folder))
        assert not list(cache.rglob("*.safetensors"))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            copies = set(pool.map(weights_folder, [choice] * 4))
        assert copies == {weights_folder(choice)} == {config_folder(choice)}
        assert len(list(cache.rglob("*.safetensors"))) == 3
        monkeypatch.setattr("isoformer.encoders.weights_cache._fetch", None)
        assert read_tensors(state_file(weights_folder(choice)))

    def test_a_killed_download_is_gone_on_with(
        self, folder: Path, s3_root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import isoformer.encoders.weights_cache as module

        choice = published(open_storage(s3_root), folder)
        fetch, fetched = module._fetch, []

        def interrupted(storage: Storage, name: str, folder: Path) -> Path:
            if len(fetched) == 3:
                raise KeyboardInterrupt
            fetched.append(name)
            return fetch(storage, name, folder)

        monkeypatch.setattr(module, "_fetch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            weights_folder(choice)
        assert next(path for path in (cache / "weights").iterdir() if path.is_dir()).name.startswith(
            ".writing-"
        )
        downloaded: list[str] = []
        download = type(open_storage(s3_root)).download

        def counted(storage: Any, key: str, path: Path) -> Path:
            downloaded.append(key)
            return download(storage, key, path)

        monkeypatch.setattr(module, "_fetch", fetch)
        monkeypatch.setattr(type(open_storage(s3_root)), "download", counted)
        assert read_tensors(state_file(weights_folder(choice)))
        assert not set(downloaded) & set(fetched)

    def test_what_is_not_as_the_manifest_says_is_refused_and_fetched_anew(
        self, folder: Path, s3_root: str, cache: Path
    ) -> None:
        storage = open_storage(s3_root)
        choice = published(storage, folder)
        last = shards(state_file(folder))[-1]
        key = f"weights/{REPOSITORY}/{COMMIT[:12]}/{last.name}"
        storage.write_bytes(key, last.read_bytes()[:-1] + b"?")
        with pytest.raises(EncoderError, match=f"{last.name}: has sha256"):
            weights_folder(choice)
        storage.put_file(last, key)
        assert read_tensors(state_file(weights_folder(choice)))

    def test_a_prefix_without_a_manifest_is_copied_again_when_it_changes(
        self, folder: Path, s3_root: str, cache: Path, tensors: dict[str, torch.Tensor]
    ) -> None:
        storage = put(folder, s3_root)
        storage.write_bytes("modeling.py", b"code")
        storage.write_bytes("deeper/model.safetensors", b"another's")
        choice = EncoderChoice(name="esm2", weights=s3_root)
        first = weights_folder(choice)
        assert {path.name for path in first.iterdir()} == {path.name for path in folder.iterdir()}
        assert folder_digest(choice) == state_digest(state_file(folder))
        changed = shards(state_file(folder))[0]
        save_file({"layer.0": tensors["layer.0"] + 1, "layer.1": tensors["layer.1"]}, changed)
        storage.put_file(changed, changed.name)
        assert weights_folder(choice) != first
        assert folder_digest(choice) == state_digest(state_file(folder))

    def test_a_single_file_and_what_is_not_there(self, folder: Path, s3_root: str, cache: Path) -> None:
        file = shards(state_file(folder))[0]
        open_storage(s3_root).put_file(file, "zoo/model.pth")
        choice = EncoderChoice(name="mxfold2", weights=f"{s3_root}/zoo/model.pth")
        assert weights_file(choice, suffix=".pth", fetch="").read_bytes() == file.read_bytes()
        missing = EncoderChoice(name="mxfold2", weights=f"{s3_root}/zoo/none.pth")
        with pytest.raises(StorageError, match=r"zoo/none\.pth: cannot be read"):
            weights_file(missing, suffix=".pth", fetch="")
        with pytest.raises(EncoderError, match=f"no config.json in {s3_root}/zoo"):
            weights_folder(EncoderChoice(name="esm2", weights=f"{s3_root}/zoo"))

"""`isoformer weights pull`: the real client of the hub, against a hub on loopback that also misbehaves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from transformers import EsmConfig, EsmForMaskedLM

from encoders.hub import Hub, running
from encoders.tiny import ESM2_CONFIG
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer, weights_digest
from isoformer.encoders.spec import pack
from isoformer.encoders.weights_convert import as_safetensors
from isoformer.encoders.weights_files import read_tensors, state_file
from isoformer.encoders.weights_manifest import describe
from isoformer.encoders.weights_pull import pull
from isoformer.encoders.weights_store import listing, located
from isoformer.errors import ConfigError, EncoderError
from isoformer.storage import open_storage

NAME = "esm2-8m"
REPOSITORY = PUBLISHED[NAME].hub
PINNED = PUBLISHED[NAME].revision or "a" * 40
FREE = "hf:lab/tiny-esm"
FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_aTokenThatMustNeverBeSeen"
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = EsmForMaskedLM(EsmConfig(**ESM2_CONFIG)).state_dict()
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


@pytest.fixture
def hub(state: dict[str, torch.Tensor]) -> Iterator[Hub]:
    files = {
        "config.json": json.dumps(ESM2_CONFIG).encode(),
        "vocab.txt": b"<cls>\n<pad>\n",
        "modeling_esm.py": b"raise SystemExit('code of a repository was run')\n",
        "tf_model.h5": b"never asked for",
        "model.safetensors": save(state, {"format": "pt"}),
        "pytorch_model.bin": b"never asked for either",
    }
    hub = Hub()
    hub.push(REPOSITORY, PINNED, files)
    hub.push("lab/tiny-esm", FIRST, files)
    with running(hub):
        yield hub


@dataclass(frozen=True)
class Pulls:
    """Runs the command in a process of its own, as a user does."""

    hub: Hub
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, *arguments: str, root: str = "", environment: dict[str, str] | None = None) -> Any:
        command = [sys.executable, "-m", "isoformer", "weights", *arguments, "--json"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.Popen(
            [*command, "--set", f"root={root or self.root}"],
            env={
                **kept,
                "HF_ENDPOINT": self.hub.endpoint,
                "HF_HOME": str(self.folder / "hf"),
                "HF_TOKEN": TOKEN,
                "ISOFORMER_CACHE": str(self.folder / "cache"),
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **options: Any) -> dict[str, Any]:
        status, out, error = self.ended(self.start(*arguments, **options))
        assert status == 0, error
        return json.loads(out)

    def refused(self, *arguments: str, **options: Any) -> str:
        """The one line that says why."""
        status, out, error = self.ended(self.start(*arguments, **options))
        assert (status, out) == (2, ""), error
        assert "Traceback" not in error
        return error.strip().splitlines()[-1]

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, error = process.communicate(timeout=200)
        assert TOKEN not in out + error
        return process.returncode, out, error

    def published(self) -> list[str]:
        """Everything that shows in the root."""
        return open_storage(self.root).list("weights/")


@pytest.fixture
def pulls(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setenv("ISOFORMER_CACHE", str(tmp_path / "cache"))
    return Pulls(hub, tmp_path)


def vectors(choice: EncoderChoice) -> np.ndarray:
    return load_encoder(choice).encode(pack([load_tokenizer(choice)(PROTEIN)])).hidden_PD.numpy()


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_published_weights_are_pulled_once_and_found_by_name(pulls: Pulls, tmp_path: Path) -> None:
    result = pulls.run("pull", NAME)
    folder = f"weights/{REPOSITORY}/{PINNED[:12]}"
    names = ("config.json", "manifest.json", "model.safetensors", "vocab.txt")
    assert pulls.published() == [
        *(f"{folder}/{name}" for name in names),
        f"weights/{REPOSITORY}/current.json",
    ]
    assert set(pulls.hub.got) == {"config.json", "model.safetensors", "vocab.txt"}
    manifest = json.loads((pulls.root / folder / "manifest.json").read_bytes())
    assert (manifest["commit"], manifest["licence"]) == (PINNED, PUBLISHED[NAME].licence)
    assert result["fetched"] and result["manifest"] == manifest

    choice = located(EncoderChoice(name=NAME), open_storage(pulls.root))
    plain = written(tmp_path / "plain", pulls.hub.commits[REPOSITORY][PINNED])
    pulled, expected = (EncoderChoice(name="esm2", weights=folder) for folder in (choice.weights, str(plain)))
    assert weights_digest(pulled) == weights_digest(expected) == manifest["digest"]
    assert np.array_equal(vectors(pulled), vectors(expected))
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [
        next((tmp_path / "cache" / "pulls").iterdir()).name
    ]

    assert not pulls.run("pull", NAME, "--revision", PINNED)["fetched"]
    assert pulls.hub.got["model.safetensors"] == 1
    assert f"Bearer {TOKEN}" in pulls.hub.tokens
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


def test_a_branch_that_moved_is_refused_until_the_commit_is_named(pulls: Pulls) -> None:
    assert pulls.run("pull", FREE)["manifest"]["commit"] == FIRST
    files = pulls.hub.commits["lab/tiny-esm"][FIRST]
    pulls.hub.push("lab/tiny-esm", SECOND, {**files, "vocab.txt": b"other\n"})
    before = pulls.published()
    said = pulls.refused("pull", FREE)
    assert FIRST[:12] in said and f"--revision {SECOND}" in said
    assert pulls.published() == before
    assert pulls.run("pull", FREE, "--revision", SECOND)["manifest"]["licence"] == "mit"
    listed = pulls.run("ls")["weights"]
    assert [(item["version"], item["in_use"]) for item in listed] == [
        (FIRST[:12], False),
        (SECOND[:12], True),
    ]
    assert listed[0]["encoders"] == [FREE]


def test_a_download_that_is_cut_shows_nothing_and_keeps_the_whole_files(pulls: Pulls) -> None:
    large = save({"weight": torch.zeros(3_000_000)})
    pulls.hub.push("lab/large", FIRST, {"config.json": b"{}", "model.safetensors": large})
    pulls.hub.cut["model.safetensors"] = 11_000_000
    said = pulls.refused("pull", "hf:lab/large")
    assert "lab/large" in said and "run the same again" in said
    assert "bytes=10485760-" in pulls.hub.ranges  # the client has tried to go on where it broke
    assert pulls.published() == []
    pulls.hub.cut.clear()
    pulls.run("pull", "hf:lab/large")
    (listed,) = listing(open_storage(pulls.root))
    assert listed.bytes == len(large) + 2
    assert pulls.hub.got["config.json"] == 1


def test_a_pull_that_is_killed_in_the_middle_of_a_file_leaves_nothing_in_the_way(pulls: Pulls) -> None:
    pulls.hub.cut["model.safetensors"] = 20_000
    pulls.hub.stalled = Event()
    process = pulls.start("pull", FREE)
    assert pulls.hub.stalled.wait(60)
    process.kill()
    pulls.ended(process)
    assert pulls.published() == []
    pulls.hub.cut.clear()
    assert pulls.run("pull", FREE)["fetched"]
    assert len(listing(open_storage(pulls.root))) == 1


def test_a_file_that_is_not_what_the_hub_states_is_refused(pulls: Pulls) -> None:
    for name in ("config.json", "model.safetensors"):
        right = pulls.hub.commits["lab/tiny-esm"][FIRST][name]
        pulls.hub.spoilt = {name: right[:-1] + bytes([right[-1] ^ 1])}
        assert f"{name} arrived with checksum" in pulls.refused("pull", FREE)
        assert pulls.published() == []
    pulls.hub.spoilt.clear()
    assert pulls.run("pull", FREE)["fetched"]


def test_torch_files_become_safetensors_and_code_in_them_is_refused(
    pulls: Pulls, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    files = {"config.json": json.dumps(ESM2_CONFIG).encode()}
    names = sorted(state)
    shards = {"pytorch_model-1.bin": names[:20], "pytorch_model-2.bin": names[20:]}
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    halves = {shard: stored({name: state[name].half() for name in held}) for shard, held in shards.items()}
    pulls.hub.push(
        "lab/tiny-esm", FIRST, {**files, **halves, "pytorch_model.bin.index.json": json.dumps(index).encode()}
    )
    manifest = pulls.run("pull", FREE)["manifest"]
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    tensors = read_tensors(pulls.root / "weights" / "lab/tiny-esm" / FIRST[:12] / "model.safetensors")
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name].half().float()) for name in state)
    trap = tmp_path / "trap"
    pulls.hub.push("lab/trap", FIRST, {**files, "pytorch_model.bin": stored({"weight": Runs(trap)})})
    assert "pytorch_model.bin: not a readable file of plain tensors" in pulls.refused("pull", "hf:lab/trap")
    assert not trap.exists()
    assert {item.repository for item in listing(open_storage(pulls.root))} == {"lab/tiny-esm"}


def test_what_is_written_is_the_same_every_time_and_holds_plain_tensors_alone(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = written(tmp_path / "torch", {"pytorch_model.bin": stored(state)}) / "pytorch_model.bin"
    first, second = (as_safetensors(file, tmp_path / name, shard_bytes=40_000) for name in ("a", "b"))
    assert describe(first) == describe(second)
    tied = state["esm.embeddings.word_embeddings.weight"]
    file.write_bytes(stored({"first": tied, "second": tied, "part": tied[2:5].T}))
    (safe,) = as_safetensors(file, tmp_path / "tied")
    assert torch.equal(read_tensors(safe)["part"], tied[2:5].T)
    for content, problem in (
        ({"state_dict": {"weight": tied}}, "'state_dict' is a dict"),
        ({"weight": tied, "epoch": 3}, "'epoch' is an int"),
        ({"weight": torch.eye(3).to_sparse()}, "'weight' is a Tensor"),
        ([tied], "holds a list"),
    ):
        file.write_bytes(stored(content))
        with pytest.raises(EncoderError, match=problem):
            as_safetensors(file, tmp_path / "refused")


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def stored(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_shards_are_kept_and_names_that_lead_out_are_refused(
    pulls: Pulls, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    whole = written(tmp_path / "whole", {"model.safetensors": save(state, {"format": "pt"})})
    torch.save(state, tmp_path / "pytorch_model.bin")
    index, *shards = as_safetensors(tmp_path / "pytorch_model.bin", tmp_path / "cut", shard_bytes=40_000)
    assert len(shards) > 2
    files = {path.name: path.read_bytes() for path in (index, *shards)}
    pulls.hub.push("lab/shards", FIRST, {"config.json": json.dumps(ESM2_CONFIG).encode(), **files})
    pulls.run("pull", "hf:lab/shards")
    folder = pulls.root / "weights/lab/shards" / FIRST[:12]
    assert {path.name for path in folder.iterdir()} == {*files, "config.json", "manifest.json"}
    expected = read_tensors(state_file(whole))
    found = read_tensors(state_file(folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    bad = {"weight_map": {"weight": "../model-00001.safetensors"}}
    pulls.hub.push("lab/tricks", FIRST, {**files, index.name: json.dumps(bad).encode()})
    assert "must be a plain file name" in pulls.refused("pull", "hf:lab/tricks")


def test_two_pulls_at_once_both_succeed_and_one_fetches(pulls: Pulls) -> None:
    started = [pulls.start("pull", FREE) for _ in range(2)]
    ended = [pulls.ended(process) for process in started]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert sorted(json.loads(out)["fetched"] for _, out, _ in ended)[-1]
    assert pulls.hub.got["model.safetensors"] == 1
    assert len({json.dumps(json.loads(out)["manifest"]) for _, out, _ in ended}) == 1


def test_an_s3_root_is_filled_and_read_through_the_nodes_cache(pulls: Pulls, s3_root: str) -> None:
    pulls.run("pull", NAME, root=s3_root)
    choice = located(EncoderChoice(name=NAME), open_storage(s3_root))
    assert choice.weights == f"{s3_root}/weights/{REPOSITORY}/{PINNED[:12]}"
    choice = EncoderChoice(name="esm2", weights=choice.weights)  # the sizes here are not the published ones
    copies = pulls.folder / "cache" / "weights"
    assert get_spec(choice).width == ESM2_CONFIG["hidden_size"]
    load_tokenizer(choice)
    digest = weights_digest(choice)
    assert not list(copies.rglob("*.safetensors"))
    encoder = load_encoder(choice)
    assert encoder.weights_digest == digest
    (copy,) = copies.rglob("*.safetensors")
    assert copy.read_bytes() == pulls.hub.commits[REPOSITORY][PINNED]["model.safetensors"]


def test_a_folder_that_was_carried_over_is_as_good_as_the_hub(pulls: Pulls, tmp_path: Path) -> None:
    pulls.run("pull", NAME)
    carried = pulls.root / "weights" / REPOSITORY / PINNED[:12]
    offline = {"HF_HUB_OFFLINE": "1"}
    other = str(tmp_path / "island")
    assert "--from FOLDER" in pulls.refused("pull", FREE, root=other, environment=offline)
    result = pulls.run("pull", NAME, "--from", str(carried), root=other, environment=offline)
    assert result["manifest"]["commit"] == PINNED
    assert "holds facebook/" in pulls.refused("pull", FREE, "--from", str(carried), root=other)

    (carried / "vocab.txt").write_bytes(b"<CLS>\n<pad>\n")
    assert "vocab.txt: has sha256" in pulls.refused("pull", NAME, "--from", str(carried), root=other)

    (carried / "manifest.json").unlink()
    result = pulls.run("pull", NAME, "--from", str(carried), root=other)
    assert result["manifest"]["commit"] is None
    assert [item.in_use for item in listing(open_storage(other))] == [False, True]
    assert "uses folder-" in pulls.refused("pull", NAME, root=other)


def test_what_the_hub_does_not_give_is_said_in_one_line(pulls: Pulls) -> None:
    pulls.hub.push("lab/gated", FIRST, {})
    pulls.hub.gated.add("lab/gated")
    pulls.hub.push("lab/code", FIRST, {"config.json": b"{}", "modeling.py": b""})
    assert "no such repository" in pulls.refused("pull", "hf:lab/none")
    assert "licence" in pulls.refused("pull", "hf:lab/gated")
    assert "no such revision" in pulls.refused("pull", FREE, "--revision", "9" * 40)
    assert "no weights; expected one of model.safetensors" in pulls.refused("pull", "hf:lab/code")
    assert pulls.published() == []
    storage = open_storage(pulls.root)
    with pytest.raises(ConfigError, match=f"esm2-tiny.*no published weights to pull; allowed: .*{NAME}"):
        pull("esm2-tiny", storage)
    with pytest.raises(ConfigError, match="not both"):
        pull(FREE, storage, revision=FIRST, folder=pulls.folder)

"""A file that runs code when it is unpickled does not run it, at any door that takes files of others.

The code would make a marker file. What a door says instead is an error of ours.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from isoformer.embeddings.key import dataset_prefix
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.encoders.weights_files import read_tensors, stored_content
from isoformer.errors import IsoformerError
from isoformer.manifest import read_shard
from isoformer.model import load_model
from isoformer.predict.bundle import find_bundle
from isoformer.predict.inputs import PredictInput
from isoformer.published_checkpoint import import_published
from isoformer.sequence_model import SequenceModel
from isoformer.sources.tables import read_table
from isoformer.storage import open_storage
from isoformer.sweep.trial import unpack_checkpoint
from isoformer.training.checkpoint import read_checkpoint
from made_dataset import write_embeddings
from tiny_dataset import write_dataset


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "marker")


def refused(call: Callable[[], object], bomb: Bomb) -> str:
    with pytest.raises(IsoformerError) as error:
        call()
    assert not bomb.marker.exists(), "the file's code was run"
    return str(error.value)


def test_the_bomb_goes_off_where_it_is_unpickled(bomb: Bomb) -> None:
    pickle.loads(pickle.dumps(bomb))  # noqa: S301
    assert bomb.marker.exists()


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch", "beside tensors"])
def test_torch_files_hold_tensors_only(form: str, bomb: Bomb, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"w": bomb}))
    else:
        content = {"w": torch.ones(2), "x": bomb} if form == "beside tensors" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy torch")
    for read in (read_tensors, stored_content):
        assert "not a readable file of plain tensors" in refused(lambda read=read: read(path), bomb)
    refused(lambda: import_published(path, tmp_path / "out"), bomb)


def test_a_checkpoints_state_is_plain(bomb: Bomb, tmp_path: Path) -> None:
    torch.save({"optimizer": {}, "averaged": None, "progress": bomb, "made_from": {}}, tmp_path / "state.pt")
    assert "not a checkpoint" in refused(lambda: read_checkpoint(tmp_path, {}), bomb)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_model_is_safetensors(name: str, bomb: Bomb, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(bomb))
    refused(lambda: load_model(tmp_path / name), bomb)


def npz(path: Path, content: object) -> Path:
    with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
        np.lib.format.write_array(member, np.array([content], dtype=object), allow_pickle=True)
    return path


def test_arrays_hold_no_objects(bomb: Bomb, tmp_path: Path) -> None:
    from isoformer.encoders.registry import EncoderChoice, load_encoder

    path = npz(tmp_path / "weights.npz", bomb)
    refused(lambda: load_encoder(EncoderChoice(name="unirep", weights=str(path))), bomb)
    (tmp_path / "weights.h5").write_bytes(pickle.dumps(bomb))
    refused(lambda: load_encoder(EncoderChoice(name="xpresso", weights=str(tmp_path / "weights.h5"))), bomb)


def pickled_objects(path: Path, bomb: Bomb, *, names: tuple[str, ...], nested: bool = False) -> Path:
    """A Parquet file with a column of the type that Ray keeps Python objects in."""
    stated = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    field = pa.field(names[0], pa.large_binary(), metadata=stated)
    column: pa.Array = pa.array([pickle.dumps(bomb)], pa.large_binary())
    if nested:
        field = pa.field(names[0], pa.list_(pa.field("element", pa.large_binary(), metadata=stated)))
        column = pa.array([[pickle.dumps(bomb)]], pa.list_(pa.large_binary()))
    others = [pa.field(name, pa.string()) for name in names[1:]]
    arrays = [column.cast(field.type), *(pa.array(["ACGT"]) for _ in others)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema([field, *others])), path)
    return path


@pytest.fixture
def ray_data() -> None:
    """Importing Ray Data registers the type: from then on Arrow would unpickle such a column."""
    import ray.data  # noqa: F401


@pytest.mark.usefixtures("ray_data")
@pytest.mark.parametrize("nested", [False, True])
def test_parquet_is_of_plain_types(nested: bool, bomb: Bomb, tmp_path: Path) -> None:
    path = pickled_objects(tmp_path / "x.parquet", bomb, names=("rna", "transcript_id"), nested=nested)
    with pytest.raises(Exception):  # noqa: B017 what comes of reading it unguarded; the marker counts
        raise AssertionError(pq.read_table(path).to_pylist())
    assert bomb.marker.exists(), "the attack works where nothing is in its way"
    bomb.marker.rmdir()

    root = tmp_path / "root"
    write_dataset(str(root), shards=1, genes_per_shard=1)
    (root / "transcripts" / "shard-00000.parquet").write_bytes(path.read_bytes())
    given = PredictInput(str(path))
    doors: list[Callable[[], object]] = [
        lambda: read_shard(open_storage(root), 0).to_pylist(),
        lambda: list(given.rows(None)),  # type: ignore[arg-type]
        lambda: read_table(path, "table").to_dicts(),
    ]
    for door in doors:
        assert "extension type 'ray.data.arrow_pickled_object'" in refused(door, bomb)


@pytest.mark.usefixtures("ray_data")
def test_an_embedding_shard_is_of_plain_types(bomb: Bomb, tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1, genes_per_shard=1)
    write_embeddings(str(tmp_path), "rna", key="made.key")
    [shard] = (tmp_path / dataset_prefix("rna", "made.key")).glob("*.parquet")
    pickled_objects(shard, bomb, names=("embedding", "digest"))
    dataset = EmbeddingDataset.open(open_storage(tmp_path), "rna", "made.key")
    assert "extension type" in refused(lambda: dataset.read_shard(0), bomb)


def test_an_mlflow_model_is_never_loaded_as_one(bomb: Bomb, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "python_model.pkl").write_bytes(pickle.dumps(bomb))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(bomb.marker)!r})")
    flavour = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl", "code": "code"}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavour}}))
    assert "not one that `isoformer export` made" in refused(lambda: find_bundle(str(folder)), bomb)
    refused(lambda: SequenceModel.open(str(folder)), bomb)


def test_a_trials_checkpoint_is_unpacked_and_not_run(bomb: Bomb, tmp_path: Path) -> None:
    packed = tmp_path / "checkpoint.tar"
    with tarfile.open(packed, "w") as archive:
        for name in ("state.pt", "report.json"):
            data = pickle.dumps(bomb)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    refused(
        lambda: (unpack_checkpoint(packed, tmp_path / "out", "x"), read_checkpoint(tmp_path / "out", {})),
        bomb,
    )

"""The doors of weights: files of tensors, their indexes and manifests, folders of the hub.

Nothing of a file's is ever run, a name in an index never leads out of its folder, and the tensors that come
out are no more than the file holds.
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch

from fuzz.door import Door
from fuzz.seeds import DEEP, JSON_WORDS, edited
from fuzz.tensors import HEADERS, TORCH_WORDS, Hostile, hostile_pickles, plant, tensors_bytes, torch_bytes
from isoformer.encoders.registry import EncoderChoice, get_spec, load_tokenizer
from isoformer.encoders.spec import EncoderSpec
from isoformer.encoders.unirep import read_npz, shapes
from isoformer.encoders.weights_files import read_tensors, weights_folder
from isoformer.encoders.weights_manifest import parse_manifest, shards, state_digest
from isoformer.encoders.weights_store import current_version, listing
from isoformer.encoders.xpresso import SHAPES, read_keras_file
from isoformer.errors import EncoderError
from isoformer.storage import open_storage


def safetensors(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    _check_tensors(read_tensors(folder / "model.safetensors"), len(data))


def torch_file(data: bytes, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(plant(data, folder))
    _check_tensors(read_tensors(folder / "pytorch_model.bin"), len(data))


def _check_tensors(found: dict[str, torch.Tensor], size: int) -> None:
    assert all(isinstance(name, str) and tensor.dtype == torch.float32 for name, tensor in found.items())
    held = sum(tensor.numel() for tensor in found.values())
    assert held <= 64 * (size + 1024), f"{held} values of {size} bytes"


def npz(data: bytes, folder: Path) -> None:
    (folder / "weights.npz").write_bytes(plant(data, folder))
    found = read_npz(folder / "weights.npz", 64)
    assert {name: array.shape for name, array in found.items()} == shapes(64)


def hdf5(data: bytes, folder: Path) -> None:
    (folder / "weights.h5").write_bytes(data)
    found = read_keras_file(folder / "weights.h5")
    assert {name: array.shape for name, array in found.items()} == SHAPES


def index(data: bytes, folder: Path) -> None:
    """An index of shards: its names are files in its own folder."""
    (folder / "inner").mkdir()
    (folder / "outside.safetensors").write_bytes(tensors_bytes())
    (folder / "inner" / "a.safetensors").write_bytes(tensors_bytes())
    path = folder / "inner" / "model.safetensors.index.json"
    path.write_bytes(data)
    for file in shards(path):
        assert file.parent == folder / "inner" and file.is_file(), f"{file} is outside"
    state_digest(path)
    assert set(read_tensors(path)) <= {"w", "b"}


def weights_manifest(data: bytes, folder: Path) -> None:
    """manifest.json of a pulled folder, by itself and in a root."""
    found = parse_manifest(data, "manifest.json")
    if found is not None:
        assert all(Path(name).name == name for name in found.files), "a name that leads elsewhere"
        assert parse_manifest(found.to_bytes(), "again") == found
    root = folder / "root"
    (root / "weights" / "org" / "name" / "v1").mkdir(parents=True)
    (root / "weights" / "org" / "name" / "v1" / "manifest.json").write_bytes(data)
    listed = listing(open_storage(root))
    assert len(listed) == (found is not None)


def current(data: bytes, folder: Path) -> None:
    """current.json of a root: the version that is used."""
    (folder / "weights" / "org").mkdir(parents=True)
    (folder / "weights" / "org" / "current.json").write_bytes(data)
    version = current_version(open_storage(folder), "org")
    assert isinstance(version, str) and version and "/" not in version and ".." not in version, (
        f"version {version!r}"
    )


def encoder_config(data: bytes, folder: Path) -> None:
    """config.json of a native encoder."""
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(b"")
    _check_spec(EncoderChoice(name="esm2", weights=str(folder)))


def hub_config(data: bytes, folder: Path) -> None:
    _enter_hub(folder, "config.json", data)


def hub_tokenizer(data: bytes, folder: Path) -> None:
    _enter_hub(folder, "tokenizer.json", data)


def hub_tokenizer_config(data: bytes, folder: Path) -> None:
    _enter_hub(folder, "tokenizer_config.json", data)


def hub_vocabulary(data: bytes, folder: Path) -> None:
    _enter_hub(folder, "vocab.txt", data)


def _enter_hub(folder: Path, name: str, data: bytes) -> None:
    """A folder of the hub for `hf:`, one of its files replaced."""
    files = {**_hub_files(), name: data}
    if name == "vocab.txt":
        del files["tokenizer.json"]
    for file, content in files.items():
        (folder / file).write_bytes(content)
    _check_spec(EncoderChoice(name=f"hf:{folder}", modality="protein"))


def _check_spec(choice: EncoderChoice) -> EncoderSpec:
    weights_folder(choice.edited(weights=choice.weights or choice.name.removeprefix("hf:")))
    spec = get_spec(choice)
    assert spec.width > 0 and spec.layers > 0 and spec.max_tokens > 0, f"sizes {spec}"
    try:
        tokens = load_tokenizer(choice)("MAKVLLTRWY")
    except EncoderError:
        return spec
    assert 0 < len(tokens) <= spec.max_tokens, f"{len(tokens)} tokens of {spec.max_tokens}"
    assert tokens.token_ids.min() >= 0
    return spec


@cache
def _hub_files() -> dict[str, bytes]:
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVSERTIDPKQNFYMHWCXBUZO"]
    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "vocab_size": len(letters),
        "pad_token_id": 0,
    }
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {letter: place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "do_lower_case": false,'
        b' "model_max_length": 40}',
        "vocab.txt": "\n".join(letters).encode(),
        "model.safetensors": tensors_bytes(),
    }


@cache
def _npz_bytes() -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, **{name: np.zeros(shape, np.float32) for name, shape in shapes(64).items()})  # type: ignore[arg-type]
    return sink.getvalue()


def _npz_of_objects() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, embedding=np.array([Hostile("touch " + "@" * 64)], dtype=object))
    return sink.getvalue()


@cache
def _hdf5_bytes() -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for name, shape in SHAPES.items():
            data = np.zeros(shape, np.float32)
            file.create_dataset(f"{name.split('/')[0]}/{name}:0", data=data, compression="gzip")
    return sink.getvalue()


ESM = json.dumps(
    {
        "model_type": "esm",
        "vocab_size": 33,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 130,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "mask_token_id": 32,
        "pad_token_id": 1,
    }
).encode()


INDEX = json.dumps({"metadata": {}, "weight_map": {"w": "a.safetensors", "b": "a.safetensors"}}).encode()


MANIFEST = json.dumps(
    {
        "format": "isoformer-weights-1",
        "repository": "org/name",
        "commit": "a" * 40,
        "licence": "MIT",
        "digest": "d",
        "files": {"config.json": {"bytes": 2, "sha256": "0" * 64}},
    }
).encode()


HUB = _hub_files()

DOORS = (
    Door(
        "safetensors",
        safetensors,
        (tensors_bytes(), *HEADERS),
        (b"F32", b"F8_E4M3", b"BOOL", b"I64", b"data_offsets", b"shape", *JSON_WORDS[:8]),
        ("model.safetensors",),
    ),
    Door(
        "torch file",
        torch_file,
        (
            torch_bytes({"w": torch.ones(2, 3)}),
            torch_bytes({"w": torch.ones(2)}, _use_new_zipfile_serialization=False),
            *hostile_pickles(),
            torch_bytes([1]),
            torch_bytes({"w": torch.ones(2).to_sparse()}),
        ),
        TORCH_WORDS,
        ("pytorch_model.bin",),
        valid=2,
    ),
    Door(
        "npz",
        npz,
        (_npz_bytes(), _npz_of_objects(), _npz_bytes()[:2000]),
        (b"PK\x01\x02", b"descr", b"'O'", b"'<f4'", b"\xff" * 8),
        ("weights.npz",),
    ),
    Door(
        "hdf5",
        hdf5,
        (_hdf5_bytes(), _hdf5_bytes()[:3000]),
        (b"OHDR", b"TREE", b"SNOD", b"\xff" * 8),
        ("weights.h5",),
    ),
    Door(
        "index of shards",
        index,
        (
            INDEX,
            INDEX.replace(b"a.saf", b"../outside.saf"),
            edited(INDEX, weight_map={"w": ".."}),
            b"{}",
            DEEP,
        ),
        JSON_WORDS,
        ("index.json", "safetensors"),
    ),
    Door(
        "weights manifest",
        weights_manifest,
        (MANIFEST, MANIFEST.replace(b"config.json", b"../../x"), b"{}", b"[]", DEEP),
        JSON_WORDS,
        ("manifest.json",),
    ),
    Door(
        "current version",
        current,
        (b'{"version": "abc"}', b"{}", b"[]", b'{"version": 3}', b'{"version": "../../x"}', DEEP),
        JSON_WORDS,
        ("current.json",),
    ),
    Door(
        "encoder config",
        encoder_config,
        (
            ESM,
            edited(ESM, hidden_size=0),
            edited(ESM, num_attention_heads=0),
            edited(ESM, num_hidden_layers="2"),
            DEEP,
        ),
        JSON_WORDS,
        ("config.json", "esm2"),
    ),
    Door(
        "hub config",
        hub_config,
        (
            HUB["config.json"],
            edited(HUB["config.json"], model_type="..bert"),
            edited(HUB["config.json"], model_type=["bert"]),
            edited(HUB["config.json"], architectures=[3]),
            DEEP,
        ),
        (*JSON_WORDS, b"model_type", b"auto_map", b"t5", b"is_decoder"),
        ("hf:", "config.json", "tmp"),
    ),
    Door(
        "hub tokenizer",
        hub_tokenizer,
        (HUB["tokenizer.json"], b"{}", b"[]", DEEP),
        (*JSON_WORDS, b"Regex", b"WordPiece", b"BPE", b"Unigram"),
        ("hf:", "tokenizer", "tmp"),
    ),
    Door(
        "hub tokenizer config",
        hub_tokenizer_config,
        (
            HUB["tokenizer_config.json"],
            b"[]",
            b'{"model_max_length": "x"}',
            b'{"model_max_length": -5}',
            DEEP,
        ),
        JSON_WORDS,
        ("hf:", "tokenizer", "tmp"),
    ),
    Door(
        "hub vocabulary",
        hub_vocabulary,
        (HUB["vocab.txt"], b"", b"\n" * 50, b"A\nA\n"),
        (b"[CLS]", b"[UNK]", b"\n", b"\xff", b"\0", b"##"),
        ("hf:", "vocab", "tmp"),
    ),
)

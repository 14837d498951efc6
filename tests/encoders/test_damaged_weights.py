"""Weights and folders of the hub that are damaged, cut or hostile: one error, nothing of them run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from isoformer.encoders.huggingface import get_spec, load_tokenizer
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.transformer_config import transformer_config
from isoformer.encoders.unirep import read_npz, shapes
from isoformer.encoders.weights_files import read_tensors
from isoformer.encoders.weights_manifest import parse_manifest, read_json, shards
from isoformer.encoders.weights_store import current_version
from isoformer.encoders.xpresso import SHAPES, read_keras_file
from isoformer.errors import EncoderError, StorageError
from isoformer.storage import open_storage

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": 30, "pad_token_id": 0,
}  # fmt: skip


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def torch_bytes(content: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_is_cut_or_damaged_anywhere_is_one_error(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    whole = torch_bytes({"w": torch.ones(2, 3)}, _use_new_zipfile_serialization=zipped)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        for data in (whole[:place], whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :]):
            path.write_bytes(data)
            try:
                assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())
            except EncoderError as error:
                assert str(path) in str(error) and "weights_only" not in str(error)


def test_no_pickle_of_any_kind_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    for data in (pickle.dumps(Hostile(mark)), torch_bytes({"w": Hostile(mark)})):
        path.write_bytes(data)
        with pytest.raises(EncoderError, match=r"pytorch_model\.bin: not a readable file of plain tensors"):
            read_tensors(path)
    np.savez(tmp_path / "x.npz", embedding=np.array([Hostile(mark)], dtype=object))
    with pytest.raises(EncoderError, match=r"x\.npz: not a readable npz file"):
        read_npz(tmp_path / "x.npz", 64)
    assert not mark.exists()


def test_an_archive_whose_members_are_damaged_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in shapes(64).items()}
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    path.write_bytes(whole[:80] + b"\xff" * 20 + whole[100:])
    with pytest.raises(EncoderError, match=r"x\.npz: not a readable npz file"):
        read_npz(path, 64)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("embedding.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', (")
    with pytest.raises(EncoderError, match=r"x\.npz: not a readable npz file"):
        read_npz(path, 64)


def test_a_damaged_hdf5_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for name, shape in SHAPES.items():
            file.create_dataset(f"{name.split('/')[0]}/{name}:0", data=np.zeros(shape, np.float32))
    whole = path.read_bytes()
    for damaged in (whole.replace(b"SNOD", b"XNOD"), whole.replace(b"TREE", b"\xff" * 4), whole[:2000]):
        path.write_bytes(damaged)
        with pytest.raises(EncoderError, match=r"x\.h5: not a readable HDF5 file"):
            read_keras_file(path)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"[]"])
def test_a_config_that_is_no_mapping_is_one_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(EncoderError, match=r"config\.json: (is not valid JSON|must be a mapping)"):
        read_json(tmp_path / "config.json")


def hub_folder(
    folder: Path, config: dict[str, Any], settings: object, vocabulary: bytes | None = None
) -> EncoderChoice:
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVSERTIDPKQNFYMHWCXBUZO"]
    (folder / "config.json").write_text(json.dumps({**BERT, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_bytes(vocabulary if vocabulary is not None else "\n".join(letters).encode())
    return EncoderChoice(name=f"hf:{folder}", modality="protein")


SETTINGS = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}


def test_a_folder_of_the_hub_is_read(tmp_path: Path) -> None:
    assert get_spec(hub_folder(tmp_path, {}, {**SETTINGS, "model_max_length": 1e30})).max_tokens == 40


@pytest.mark.parametrize(
    ("config", "settings", "vocabulary", "problem"),
    [
        ({"architectures": [3]}, SETTINGS, None, r"architectures must be names, got \[3\]"),
        ({"model_type": ["bert"]}, SETTINGS, None, "model_type must be a name"),
        ({"hidden_size": -4}, SETTINGS, None, "hidden_size must be a number of at least 1, got -4"),
        ({"max_position_embeddings": "x"}, SETTINGS, None, "max_position_embeddings must be a number"),
        ({}, {**SETTINGS, "model_max_length": "x"}, None, "model_max_length must be a number"),
        ({}, {**SETTINGS, "model_max_length": -5}, None, "model_max_length must be .* at least 1, got -5"),
        ({}, [], None, "tokenizer_config.json: must be a mapping"),
        ({}, SETTINGS, b"\xff", "vocab.txt: is not UTF-8 text"),
        ({}, SETTINGS, b"[CLS]\n[SEP]\nA", "its tokenizer cannot"),
    ],
)  # fmt: skip
def test_a_folder_of_the_hub_that_says_nonsense_is_one_error(
    config: dict[str, Any], settings: object, vocabulary: bytes | None, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=problem) as refused:
        get_spec(hub_folder(tmp_path, config, settings, vocabulary))
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"version": 3}', b'{"version": "../../x"}', b"[" * 100_000]
)
def test_a_damaged_current_version_is_one_error(data: bytes, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("weights/org/name/current.json", data)
    with pytest.raises(StorageError, match=r"weights/org/name/current\.json: "):
        current_version(storage, "org/name")


def test_a_tokenizer_whose_numbers_or_template_are_broken_is_one_error(tmp_path: Path) -> None:
    words = {letter: place for place, letter in enumerate(["[UNK]", *"LAGVSERTIDPKQNFYMHWC"])}
    described: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    choice = hub_folder(tmp_path, {}, SETTINGS)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described))
    assert load_tokenizer(choice)("MAK").token_ids.tolist() == [words["M"], words["A"], words["K"]]
    described["model"]["vocab"] = {**words, "A": 2**31}
    path.write_text(json.dumps(described))
    with pytest.raises(EncoderError, match="numbers a token 2147483648"):
        load_tokenizer(choice)("MAK")
    described["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [],
        "special_tokens": {},
    }  # fmt: skip
    path.write_text(json.dumps(described))
    with pytest.raises(EncoderError, match=re.escape(str(tmp_path))):
        load_tokenizer(choice)


@pytest.mark.parametrize("value", ["x", float("inf"), [3]])
def test_a_vocabulary_of_no_size_counts_no_parameters(value: object, tmp_path: Path) -> None:
    count = get_spec(hub_folder(tmp_path, {}, SETTINGS)).parameter_count
    assert get_spec(hub_folder(tmp_path, {"vocab_size": value}, SETTINGS)).parameter_count == count - 30 * 16


@pytest.mark.parametrize("repository", ["../x", "/etc", "x" * 400, "a/b/c", "a b"])
def test_a_manifest_names_a_repository_that_a_root_can_hold(repository: str) -> None:
    manifest = {
        "format": "isoformer-weights-1", "repository": repository, "commit": None, "licence": "MIT",
        "digest": "d", "files": {},
    }  # fmt: skip
    with pytest.raises(EncoderError, match=r"manifest\.json: repository"):
        parse_manifest(json.dumps(manifest).encode(), "manifest.json")


@pytest.mark.parametrize("value", [10**30, 1 << 25, 0, -1])
def test_a_size_that_no_encoder_has_is_named(value: int, tmp_path: Path) -> None:
    config = {
        "vocab_size": 33, "hidden_size": value, "num_hidden_layers": 2, "num_attention_heads": 2,
        "mask_token_id": 32, "intermediate_size": 32, "max_position_embeddings": 130, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    with pytest.raises(EncoderError, match=r"x\.json: .*hidden_size"):
        transformer_config(config, gated_feed_forward=False, file="x.json")


def test_special_tokens_must_leave_room_for_one(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="2 tokens leave 0 beside the special ones"):
        load_tokenizer(hub_folder(tmp_path, {"max_position_embeddings": 2}, SETTINGS))


def test_an_index_names_no_file_that_none_can_be(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": "a" * 300 + ".safetensors"}}))
    with pytest.raises(EncoderError, match=r"index\.json: .* must be a plain file name"):
        shards(path)

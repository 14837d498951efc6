"""Xpresso (Agarwal & Shendure 2020, Cell Reports 31:107663): a promoter CNN trained on expression.

In: exactly 10,500 bases, 7,000 upstream of the TSS and 3,500 from it on. Out: one position, the 64 values
of the last hidden layer. The weights are the published Keras file, given by path and read with h5py;
nothing of Keras runs.

Besides the promoter the published network takes six half-life features (standardised lengths and intron
density of the mRNA). They are set to zero, their mean, as the authors' own prediction script does: the
vector speaks of the promoter alone. The network saw measured expression, perhaps of the very genes it is
asked about: `supervised`.

Several bases share a token, so that a sequence is 875 tokens and a token budget means what it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.letters import NUCLEOTIDES, clean_sequence, joined_letters, split_letters
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed, Tokenized
from isoformer.encoders.weights_files import (
    check_names_and_shapes,
    choice_digest,
    refuse_weights_with_seed,
    weights_file,
)
from isoformer.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

# B sequences, L bases, C channels

OPTIONS: Final[frozenset[str]] = frozenset()
CODE_VERSION: Final = 1
UPSTREAM_BASES, DOWNSTREAM_BASES = 7000, 3500
WINDOW_BASES: Final = UPSTREAM_BASES + DOWNSTREAM_BASES
LETTERS_PER_TOKEN: Final = 12
WIDTH: Final = 64
SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "conv1d_1/kernel": (6, 4, 128),
    "conv1d_1/bias": (128,),
    "conv1d_2/kernel": (9, 128, 32),
    "conv1d_2/bias": (32,),
    "dense_1/kernel": (35 * 32 + 6, 64),
    "dense_1/bias": (64,),
}
"""The published layers up to the last hidden one, in Keras's layout: (kernel, in, out), (in, out)."""

_FIRST_POOL, _SECOND_POOL = 30, 10
_SEQUENCES_AT_ONCE = 8
_FETCH: Final = "download a .h5 from the Xpresso repository (github.com/vagarwal87/Xpresso, MIT)"


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    refuse_weights_with_seed(choice)
    return EncoderSpec(
        name=choice.name,
        family="xpresso",
        modality="dna",
        width=WIDTH,
        max_tokens=WINDOW_BASES // LETTERS_PER_TOKEN,
        letters_per_token=float(LETTERS_PER_TOKEN),
        licence="MIT (Xpresso)",
        trained="supervised" if choice.random_seed is None else "random",
        source=str(choice.weights or "random weights"),
        identity={
            "code": CODE_VERSION,
            "letters": NUCLEOTIDES,
            "layer": "dense_1 after ReLU",
            "half_life_features": "zero",
        },
        parameter_count=sum(int(np.prod(shape)) for shape in SHAPES.values()),
        window_bases=(UPSTREAM_BASES, DOWNSTREAM_BASES),
        parity=1e-4,  # sums of ten thousand values of order ten
    )


def load_tokenizer(choice: EncoderChoice) -> XpressoTokenizer:
    return XpressoTokenizer()


def load_encoder(choice: EncoderChoice, device: str) -> XpressoEncoder:
    refuse_weights_with_seed(choice)
    arrays = read_keras_file(_path(choice)) if choice.random_seed is None else _random(choice.random_seed)
    return XpressoEncoder(get_spec(choice), arrays, weights_digest=weights_digest(choice), device=device)


def weights_digest(choice: EncoderChoice) -> str:
    refuse_weights_with_seed(choice)
    return choice_digest(choice, _path(choice) if choice.random_seed is None else None)


@dataclass(frozen=True)
class XpressoTokenizer:
    """Twelve bases to a token. EncoderError where there are not exactly 10,500 bases."""

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(sequence, "dna", max_letters=max(1, len(sequence)))
        if len(clean.letters) != WINDOW_BASES:
            raise EncoderError(
                f"xpresso reads exactly {WINDOW_BASES} bases ({UPSTREAM_BASES} up- and {DOWNSTREAM_BASES} "
                f"downstream of the TSS), got {len(clean.letters)}"
            )
        return Tokenized(joined_letters(clean.letters, NUCLEOTIDES, LETTERS_PER_TOKEN), clean.counts)


class XpressoEncoder:
    """The network up to its last hidden layer, in plain torch functions."""

    def __init__(
        self, spec: EncoderSpec, arrays: dict[str, NDArray[np.float32]], *, weights_digest: str, device: str
    ) -> None:
        import torch

        self.spec = spec
        self.weights_digest = weights_digest
        self._device = device
        self._weights = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def encode(self, packed: Packed) -> Encoded:
        import torch

        sequences = len(packed.offsets) - 1
        if len(packed.token_ids) != sequences * self.spec.max_tokens:
            raise EncoderError(f"{self.spec.name}: every sequence must have {self.spec.max_tokens} tokens")
        codes = split_letters(packed.token_ids, NUCLEOTIDES, LETTERS_PER_TOKEN).reshape(sequences, -1)
        with torch.no_grad():
            hidden = [self._forward(chunk) for chunk in _chunks(codes)]
        return Encoded(torch.cat(hidden), np.arange(sequences + 1, dtype=np.int64))

    def _forward(self, codes_BL: NDArray[np.int64]) -> Tensor:
        import torch
        from torch.nn import functional

        weights = self._weights
        one_hot = np.concatenate([np.eye(4, dtype=np.float32), np.zeros((1, 4), np.float32)])[codes_BL]
        hidden_BCL = torch.from_numpy(one_hot).to(self._device).transpose(1, 2)
        for layer, pool in (("conv1d_1", _FIRST_POOL), ("conv1d_2", _SECOND_POOL)):
            kernel = weights[f"{layer}/kernel"]
            size = kernel.shape[0]
            padded_BCL = functional.pad(
                hidden_BCL, ((size - 1) // 2, size // 2)
            )  # Keras "same": right side longer
            hidden_BCL = functional.conv1d(padded_BCL, kernel.permute(2, 1, 0), weights[f"{layer}/bias"])
            hidden_BCL = functional.max_pool1d(functional.relu(hidden_BCL), pool)
        flat = hidden_BCL.transpose(1, 2).flatten(1)
        kernel = weights["dense_1/kernel"][
            : flat.shape[1]
        ]  # the rows of the six half-life features meet zeros
        return functional.relu(flat @ kernel + weights["dense_1/bias"])


def read_keras_file(path: Path) -> dict[str, NDArray[np.float32]]:
    """The arrays of `SHAPES` from a Keras 2 HDF5 file. EncoderError where the file is not that network."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            found = {
                name: np.asarray(group[f"{name.split('/')[0]}/{name}:0"], dtype=np.float32)
                for name in SHAPES
                if f"{name.split('/')[0]}/{name}:0" in group
            }
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # h5py's, of a damaged file
        raise EncoderError(f"{path}: not a readable HDF5 file of arrays: {error}") from None
    check_names_and_shapes(SHAPES, {name: array.shape for name, array in found.items()}, file=path)
    return found


def _random(seed: int) -> dict[str, NDArray[np.float32]]:
    """He-normal kernels, biases zero."""
    rng = np.random.default_rng(seed)
    scales = {
        name: np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.0 for name, shape in SHAPES.items()
    }
    return {
        name: (rng.normal(size=shape) * scales[name]).astype(np.float32) for name, shape in SHAPES.items()
    }


def _chunks(codes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(codes), _SEQUENCES_AT_ONCE):
        yield codes[start : start + _SEQUENCES_AT_ONCE]


def _path(choice: EncoderChoice) -> Path:
    return weights_file(choice, suffix=".h5", fetch=_FETCH)

"""MXfold2 (Sato et al. 2021, Nature Communications 12:941): the layers that read an RNA before it is folded.

In: RNA letters after a padding token, as published. Out: the 64 values a nucleotide that the folding scores
are computed from; the padding token's are left out. The weights are `TrainSetAB.pth` of the package mxfold2
(MIT), given by path and read with `weights_only=True`; the folding layers in the file are not used.

The convolutions' group norm runs over the whole RNA, so each RNA is encoded by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence, crop_only
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed, Tokenized
from isoformer.encoders.weights_files import (
    check_names_and_shapes,
    choice_digest,
    read_tensors,
    refuse_weights_with_seed,
    weights_file,
)

if TYPE_CHECKING:
    from torch import Tensor

# N nucleotides of one RNA (padding token first), D width

OPTIONS: Final = frozenset({"long_sequences"})
CODE_VERSION: Final = 1
LETTERS: Final = "ACGTN"  # ids 1..5; 0 is the padding token
WIDTH: Final = 64
KERNEL_SIZES: Final = (5, 3, 5, 3, 5, 3, 5, 3)
LSTM_LAYERS, LSTM_WIDTH, HEADS = 2, 32, 8
MAX_BASES: Final = 4096
PARAMETER_COUNT: Final = 199936
_PREFIX: Final = "zuker.net."
_UNUSED: Final = ("turner.", "zuker.net.fc_paired.", "zuker.net.fc_unpaired.", "zuker.fc_length.")
_FETCH: Final = (
    "pip download --no-deps mxfold2, unzip the wheel, and take mxfold2/models/TrainSetAB.pth (MIT)"
)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    refuse_weights_with_seed(choice)
    return EncoderSpec(
        name=choice.name,
        family="mxfold2",
        modality="rna",
        width=WIDTH,
        max_tokens=MAX_BASES + 1,
        letters_per_token=1.0,
        licence="MIT (MXfold2)",
        trained="supervised" if choice.random_seed is None else "random",
        source=str(choice.weights or "random weights"),
        identity={
            "code": CODE_VERSION,
            "letters": LETTERS,
            "layer": "encoder output",
            "max_bases": MAX_BASES,
            "long_sequences": crop_only(choice.name, choice.long_sequences, "rna"),
        },
        parameter_count=PARAMETER_COUNT,
    )


def load_tokenizer(choice: EncoderChoice) -> Mxfold2Tokenizer:
    return Mxfold2Tokenizer(crop_only(choice.name, choice.long_sequences, "rna"))


def load_encoder(choice: EncoderChoice, device: str) -> Mxfold2Encoder:
    import torch

    refuse_weights_with_seed(choice)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.random_seed or 0)
        modules = new_modules()
    if choice.random_seed is None:
        _load(modules, _path(choice))
    return Mxfold2Encoder(get_spec(choice), modules, weights_digest=weights_digest(choice), device=device)


def weights_digest(choice: EncoderChoice) -> str:
    refuse_weights_with_seed(choice)
    return choice_digest(choice, _path(choice) if choice.random_seed is None else None)


@dataclass(frozen=True)
class Mxfold2Tokenizer:
    """One base, one token, after the padding token."""

    long_sequences: LongPolicy = CROP_POLICY["rna"]

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(sequence, "rna", max_letters=MAX_BASES, long_sequences=self.long_sequences)
        table = np.zeros(128, dtype=np.int32)
        table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(1, len(LETTERS) + 1)
        bases = table[np.frombuffer(clean.letters.encode(), np.uint8)]
        return Tokenized(np.concatenate([[0], bases]).astype(np.int32), clean.counts)


class Mxfold2Encoder:
    """The published encoder, RNA by RNA."""

    def __init__(self, spec: EncoderSpec, modules: Any, *, weights_digest: str, device: str) -> None:
        self.spec = spec
        self.weights_digest = weights_digest
        self._device = device
        self._modules = modules.to(device).eval().requires_grad_(False)

    def encode(self, packed: Packed) -> Encoded:
        import torch

        token_ids = torch.from_numpy(packed.token_ids.astype(np.int64)).to(self._device)
        bounds = zip(packed.offsets[:-1].tolist(), packed.offsets[1:].tolist(), strict=True)
        with torch.no_grad():
            pieces = [_encode_one(self._modules, token_ids[start:end])[1:] for start, end in bounds]
        return Encoded(torch.cat(pieces), packed.offsets - np.arange(len(packed.offsets)))


def new_modules() -> Any:
    """The layers under their published names, with torch's own random start."""
    from torch import nn

    convolutions = nn.ModuleList(
        nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, size, padding=size // 2), nn.Identity(), nn.GroupNorm(1, WIDTH), nn.CELU()
        )
        for size in KERNEL_SIZES
    )
    encoder = nn.ModuleDict(
        {
            "conv": nn.ModuleDict({"net": convolutions}),
            "lstm": nn.LSTM(WIDTH, LSTM_WIDTH, num_layers=LSTM_LAYERS, batch_first=True, bidirectional=True),
            "lstm_ln": nn.LayerNorm(2 * LSTM_WIDTH),
            "att": nn.MultiheadAttention(2 * LSTM_WIDTH, HEADS),
        }
    )
    embedding = nn.ModuleDict({"embedding": nn.Embedding(len(LETTERS) + 1, WIDTH, padding_idx=0)})
    return nn.ModuleDict({"embedding": embedding, "encoder": encoder})


def _encode_one(modules: Any, token_ids_N: Tensor) -> Tensor:
    """Hidden states (N, D) of one RNA: residual convolutions, residual LSTM, residual attention."""
    from torch.nn import functional

    encoder = modules["encoder"]
    hidden_1DN = modules["embedding"]["embedding"](token_ids_N).T.unsqueeze(0)
    for convolution in encoder["conv"]["net"]:
        hidden_1DN = hidden_1DN + convolution(hidden_1DN)
    hidden_1ND = hidden_1DN.transpose(1, 2)
    recurrent_1ND, _ = encoder["lstm"](hidden_1ND)
    hidden_1ND = hidden_1ND + functional.celu(encoder["lstm_ln"](recurrent_1ND))
    sequence_N1D = hidden_1ND.transpose(0, 1)
    attended_N1D, _ = encoder["att"](sequence_N1D, sequence_N1D, sequence_N1D, need_weights=False)
    return (sequence_N1D + attended_N1D).squeeze(1)


def _load(modules: Any, path: Path) -> None:
    state = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in read_tensors(path).items()
        if not name.startswith(_UNUSED)
    }
    check_names_and_shapes(
        {name: tuple(tensor.shape) for name, tensor in modules.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        file=path,
    )
    modules.load_state_dict(state)


def _path(choice: EncoderChoice) -> Path:
    return weights_file(choice, suffix=".pth", fetch=_FETCH)

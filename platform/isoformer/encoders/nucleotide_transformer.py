"""Nucleotide Transformer v2 (Dalla-Torre et al., Nature Methods 22:287), for DNA and, U read as T, RNA.

`ntv2-tiny-dna` and `ntv2-tiny-rna` are small siblings trained by this project and shipped with it;
`ntv2-dna` and `ntv2-rna` take any published folder by path. The published code is not run: the architecture
is our own, and the published state dict loads as it is.

Tokenizer, as published: split at N; each stretch becomes non-overlapping 6-mers from its left end, what is
left over single letters, and N the token N; `<cls>` first, no `<eos>`. The hidden state of `<cls>` is left
out; N tokens are positions like any other, as in the published model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.letters import CROP_POLICY, clean_sequence
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenized
from isoformer.encoders.transformer_config import TransformerConfig, read_transformer_config
from isoformer.encoders.weights_files import folder_digest, weights_folder
from isoformer.errors import EncoderError
from isoformer.schema import Modality

CODE_VERSION: Final = 1
UNKNOWN_ID, PAD_ID, MASK_ID, CLS_ID, EOS_ID, BOS_ID = range(6)
FIRST_LETTER_ID: Final = 6
WORD: Final = 6
NUCLEOTIDE_ORDER: Final = "ATCG"
FIRST_SINGLE_ID: Final = FIRST_LETTER_ID + 4**WORD
UNKNOWN_BASE_ID: Final = FIRST_SINGLE_ID + 4
VOCABULARY_SIZE: Final = FIRST_SINGLE_ID + 5
SPECIAL_IDS: Final = frozenset(range(FIRST_LETTER_ID))

_STRETCH = re.compile("N|[ACGT]+")


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    config = _config(choice)
    modality = _modality(choice)
    shipped = choice.weights is None
    reach_bases = WORD * (config.max_position_embeddings - 1)
    return EncoderSpec(
        name=choice.name,
        family="nucleotide-transformer-v2",
        modality=modality,
        width=config.hidden_size,
        max_tokens=config.max_position_embeddings,
        letters_per_token=float(WORD),
        licence="Apache-2.0" if shipped else "CC BY-NC-SA 4.0 (as published; check your folder)",
        trained="pre-trained" if choice.random_seed is None else "random",
        source="isoformer pretrain: see the model card" if shipped else str(choice.weights),
        identity={
            "code": CODE_VERSION,
            "architecture": config.model_dump(),
            "tokenizer": "6-mers over ATCG, split at N, single letters at the end",
            "layer": "last, after the final norm",
            "crop": CROP_POLICY[modality],
        },
        parameter_count=config.parameter_count,
        window_bases=(reach_bases // 2, reach_bases - reach_bases // 2) if modality == "dna" else None,
    )


def load_tokenizer(choice: EncoderChoice) -> SixMerTokenizer:
    return SixMerTokenizer(_modality(choice), _config(choice).max_position_embeddings)


def load_encoder(choice: EncoderChoice, device: str) -> Encoder:
    from isoformer.encoders.packed_transformer import load_packed_encoder

    return load_packed_encoder(
        choice, get_spec(choice), _config(choice), special_ids=SPECIAL_IDS, device=device
    )


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


@dataclass(frozen=True)
class SixMerTokenizer:
    """`<cls>`, then 6-mers and single letters.

    Tokens over the limit (many N) go by the modality's crop policy.
    """

    modality: Modality
    max_tokens: int

    def __call__(self, sequence: str) -> Tokenized:
        most = self.max_tokens - 1
        clean = clean_sequence(sequence, self.modality, max_letters=WORD * most)
        ids = six_mer_ids(clean.letters)
        counts = dict(clean.counts)
        if len(ids) > most:
            kept = _cropped(ids, most, self.modality)
            counts["cropped_bases"] = counts.get("cropped_bases", 0) + _letters(ids) - _letters(kept)
            ids = kept
        return Tokenized(np.concatenate([[CLS_ID], ids]).astype(np.int32), counts)


def six_mer_ids(letters: str) -> NDArray[np.int32]:
    """Token ids of clean letters (A C G T N), without `<cls>`."""
    parts = [_stretch_ids(match[0]) for match in _STRETCH.finditer(letters)]
    return np.concatenate(parts).astype(np.int32)


def _stretch_ids(stretch: str) -> NDArray[np.int64]:
    if stretch == "N":
        return np.array([UNKNOWN_BASE_ID])
    table = np.zeros(128, dtype=np.int64)
    table[np.frombuffer(NUCLEOTIDE_ORDER.encode(), np.uint8)] = np.arange(len(NUCLEOTIDE_ORDER))
    codes = table[np.frombuffer(stretch.encode(), np.uint8)]
    words = len(codes) // WORD
    powers = 4 ** np.arange(WORD - 1, -1, -1)
    word_ids = FIRST_LETTER_ID + codes[: words * WORD].reshape(words, WORD) @ powers
    return np.concatenate([word_ids, FIRST_SINGLE_ID + codes[words * WORD :]])


def _cropped(ids: NDArray[np.int32], most: int, modality: Modality) -> NDArray[np.int32]:
    """The last tokens of an RNA; of DNA, those around the middle base, where the TSS is."""
    start = len(ids) - most
    if modality == "dna":
        ends = np.cumsum(np.where(ids < FIRST_SINGLE_ID, WORD, 1))
        middle = int(np.searchsorted(ends, ends[-1] // 2, side="right"))
        start = min(max(0, middle - most // 2), start)
    kept = ids[start : start + most]
    if (kept == UNKNOWN_BASE_ID).all():
        raise EncoderError(f"{modality} sequence has no valid letter within {most} tokens")
    return kept


def _letters(ids: NDArray[np.int32]) -> int:
    """How many letters these tokens stand for."""
    return int(np.where(ids < FIRST_SINGLE_ID, WORD, 1).sum())


def _modality(choice: EncoderChoice) -> Modality:
    return "rna" if choice.name.endswith("-rna") else "dna"


def _config(choice: EncoderChoice) -> TransformerConfig:
    return read_transformer_config(weights_folder(choice), gated_feed_forward=True)

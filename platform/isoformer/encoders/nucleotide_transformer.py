"""Nucleotide Transformer v1 and v2 (Dalla-Torre et al., Nature Methods 22:287): DNA and, U read as T, RNA.

`ntv1-500m-human-ref-dna` to `ntv2-500m-rna` are the published ones; `ntv1-dna`, `ntv2-dna` and their `-rna`
twins take any folder of the design; `ntv2-tiny-dna` and `ntv2-tiny-rna` are small siblings trained by this
project and shipped with it. The published code is not run: the architecture is our own, and the published
state dict loads as it is. Version 1 has learned positions and GELU, version 2 rotary positions, a gated
feed-forward, and two more special tokens before the words. Layer norms take config.json's 1e-12, as the
published torch models do; the authors' JAX code has 1e-5 there.

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

from isoformer.encoders.esm_like import HONOURED, long_policy, most_tokens, sizes, spec_of
from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenized
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import folder_digest
from isoformer.errors import EncoderError
from isoformer.schema import Modality

OPTIONS: Final = HONOURED
TRAINABLE: Final = True
CODE_VERSION: Final = 2
UNKNOWN_ID, PAD_ID, MASK_ID, CLS_ID, EOS_ID, BOS_ID = range(6)
FIRST_WORD_ID: Final = {1: 4, 2: 6}
"""By version: version 1 has no `<eos>` and `<bos>`."""
WORD: Final = 6
NUCLEOTIDE_ORDER: Final = "ATCG"
WORDS: Final = len(NUCLEOTIDE_ORDER) ** WORD
LETTERS: Final = "ATCGN"

_STRETCH = re.compile("N|[ACGT]+")


def vocabulary_size(version: int) -> int:
    """Special tokens, 6-mers and single letters."""
    return FIRST_WORD_ID[version] + WORDS + len(LETTERS)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    version, modality = _version(choice), _modality(choice)
    return spec_of(
        choice,
        _sizes(choice),
        family=f"nucleotide-transformer-v{version}",
        modality=modality,
        letters_per_token=WORD,
        licence="CC BY-NC-SA 4.0 (as published; check your folder)",
        identity={
            "code": CODE_VERSION,
            "tokenizer": "6-mers over ATCG, split at N, single letters at the end",
        },
    )


def load_tokenizer(choice: EncoderChoice) -> SixMerTokenizer:
    modality = _modality(choice)
    tokens = most_tokens(choice, _sizes(choice))
    return SixMerTokenizer(modality, tokens, _version(choice), long_policy(choice, modality))


def load_encoder(choice: EncoderChoice, device: str, *, trainable: bool = False) -> Encoder:
    from isoformer.encoders.packed_encoder import load_packed_encoder

    special_ids = frozenset(range(FIRST_WORD_ID[_version(choice)]))
    return load_packed_encoder(
        choice,
        get_spec(choice),
        _sizes(choice),
        special_ids=special_ids,
        device=device,
        trainable=trainable,
    )


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


@dataclass(frozen=True)
class SixMerTokenizer:
    """`<cls>`, then 6-mers and single letters.

    Tokens over the limit (many N) go by the same policy as letters do.
    """

    modality: Modality
    max_tokens: int
    version: int = 2
    long_sequences: LongPolicy | None = None

    def __call__(self, sequence: str) -> Tokenized:
        policy = self.long_sequences or CROP_POLICY[self.modality]
        most = self.max_tokens - 1
        clean = clean_sequence(sequence, self.modality, max_letters=WORD * most, long_sequences=policy)
        ids = six_mer_ids(clean.letters, self.version)
        counts = dict(clean.counts)
        if len(ids) > most and policy == "windows":
            counts["windowed_bases"] = len(clean.letters)
        elif len(ids) > most:
            kept = self._cropped(ids, most, policy)
            counts["cropped_bases"] = counts.get("cropped_bases", 0) + self._bases(ids) - self._bases(kept)
            ids = kept
        return Tokenized(np.concatenate([[CLS_ID], ids]).astype(np.int32), counts)

    def _cropped(self, ids: NDArray[np.int32], most: int, policy: LongPolicy) -> NDArray[np.int32]:
        """The tokens that the policy keeps; center: those around the middle base, where a TSS is."""
        start = {"left": len(ids) - most, "right": 0, "center": 0}[policy]
        if policy == "center":
            ends = np.cumsum(self._letters_of(ids))
            middle = int(np.searchsorted(ends, ends[-1] // 2, side="right"))
            start = min(max(0, middle - most // 2), len(ids) - most)
        kept = ids[start : start + most]
        if (kept == vocabulary_size(self.version) - 1).all():
            raise EncoderError(f"{self.modality} sequence has no valid letter within {most} tokens")
        return kept

    def _bases(self, ids: NDArray[np.int32]) -> int:
        return int(self._letters_of(ids).sum())

    def _letters_of(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """How many letters each token stands for."""
        return np.where(ids < FIRST_WORD_ID[self.version] + WORDS, WORD, 1)


def six_mer_ids(letters: str, version: int = 2) -> NDArray[np.int32]:
    """Token ids of clean letters (A C G T N), without `<cls>`."""
    first = FIRST_WORD_ID[version]
    parts = [_stretch_ids(match[0], first) for match in _STRETCH.finditer(letters)]
    return np.concatenate(parts).astype(np.int32)


def _stretch_ids(stretch: str, first_word_id: int) -> NDArray[np.int64]:
    table = np.zeros(128, dtype=np.int64)
    table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
    codes = table[np.frombuffer(stretch.encode(), np.uint8)]
    words = 0 if stretch == "N" else len(codes) // WORD
    powers = len(NUCLEOTIDE_ORDER) ** np.arange(WORD - 1, -1, -1)
    word_ids = first_word_id + codes[: words * WORD].reshape(words, WORD) @ powers
    return np.concatenate([word_ids, first_word_id + WORDS + codes[words * WORD :]])


def _modality(choice: EncoderChoice) -> Modality:
    return "rna" if choice.name.endswith("-rna") else "dna"


def _version(choice: EncoderChoice) -> int:
    return 1 if choice.name.startswith("ntv1-") else 2


def _sizes(choice: EncoderChoice) -> TransformerConfig:
    version = _version(choice)
    config = sizes(choice, gated_feed_forward=version == 2)
    positions = "absolute" if version == 1 else "rotary"
    for name, must_be in (("position_embedding_type", positions), ("vocab_size", vocabulary_size(version))):
        if (got := getattr(config, name)) != must_be:
            raise EncoderError(f"{choice.name}, config.json: {name} must be {must_be!r}, got {got!r}")
    return config

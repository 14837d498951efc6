"""ESM-2 (Lin et al. 2023, Science 379:1123): protein language models of one architecture, 8M to 15B.

`esm2-8m` to `esm2-15b` are the published ones; `esm2` takes any folder of the design (`config.json`,
`model.safetensors`); `esm2-tiny` is a small sibling trained by this project and shipped with it.

Residues → `<cls> … <eos>`, the 33-letter published vocabulary; the hidden states of `<cls>` and `<eos>` are
no positions. B O U Z are letters of the model and are kept; others become X.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoformer.encoders.esm_like import HONOURED, long_policy, most_tokens, sizes, spec_of
from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenized
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import folder_digest

OPTIONS: Final = HONOURED
TRAINABLE: Final = True
CODE_VERSION: Final = 2
CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID = 0, 1, 2, 3, 32
FIRST_LETTER_ID: Final = 4
LETTERS: Final = "LAGVSERTIDPKQNFYMHWCXBUZO"
SPECIAL_IDS: Final = frozenset({CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID})
_KNOWN: Final = LETTERS.replace("X", "")


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    return spec_of(
        choice,
        _sizes(choice),
        family="esm2",
        modality="protein",
        letters_per_token=1,
        licence="MIT (as published with ESM-2; check your folder)",
        identity={"code": CODE_VERSION, "letters": LETTERS},
    )


def load_tokenizer(choice: EncoderChoice) -> Esm2Tokenizer:
    return Esm2Tokenizer(most_tokens(choice, _sizes(choice)), long_policy(choice, "protein"))


def load_encoder(choice: EncoderChoice, device: str, *, trainable: bool = False) -> Encoder:
    from isoformer.encoders.packed_encoder import load_packed_encoder

    return load_packed_encoder(
        choice,
        get_spec(choice),
        _sizes(choice),
        special_ids=SPECIAL_IDS,
        device=device,
        trainable=trainable,
    )


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


@dataclass(frozen=True)
class Esm2Tokenizer:
    """One residue, one token, between `<cls>` and `<eos>`."""

    max_tokens: int
    long_sequences: LongPolicy = CROP_POLICY["protein"]

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(
            sequence,
            "protein",
            max_letters=self.max_tokens - 2,
            alphabet=_KNOWN,
            long_sequences=self.long_sequences,
        )
        counts = dict(clean.counts)
        if len(clean.letters) > self.max_tokens - 2:
            counts["windowed_residues"] = len(clean.letters)
        table = np.zeros(128, dtype=np.int32)
        table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS)) + FIRST_LETTER_ID
        residues = table[np.frombuffer(clean.letters.encode(), np.uint8)]
        return Tokenized(np.concatenate([[CLS_ID], residues, [EOS_ID]]).astype(np.int32), counts)


def _sizes(choice: EncoderChoice) -> TransformerConfig:
    return sizes(choice, gated_feed_forward=False)

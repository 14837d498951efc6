"""ESM-2 (Lin et al. 2023, Science 379:1123): protein language models of one architecture, 8M to 15B.

`esm2-tiny` is a small sibling trained by this project and shipped with it; `esm2` takes any published
folder (`config.json`, `model.safetensors`) by path. Residues → `<cls> … <eos>`, the 33-letter published
vocabulary; the hidden states of `<cls>` and `<eos>` are left out. B O U Z are letters of the model and are
kept; others become X.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoformer.encoders.letters import CROP_POLICY, clean_sequence
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenized
from isoformer.encoders.transformer_config import TransformerConfig, read_transformer_config
from isoformer.encoders.weights_files import folder_digest, weights_folder

CODE_VERSION: Final = 1
CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID = 0, 1, 2, 3, 32
FIRST_LETTER_ID: Final = 4
LETTERS: Final = "LAGVSERTIDPKQNFYMHWCXBUZO"
SPECIAL_IDS: Final = frozenset({CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID})
_KNOWN: Final = LETTERS.replace("X", "")


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    config = _config(choice)
    shipped = choice.weights is None
    return EncoderSpec(
        name=choice.name,
        family="esm2",
        modality="protein",
        width=config.hidden_size,
        max_tokens=config.max_position_embeddings,
        letters_per_token=1.0,
        licence="Apache-2.0" if shipped else "MIT (as published with ESM-2; check your folder)",
        trained="pre-trained" if choice.random_seed is None else "random",
        source="isoformer pretrain: see the model card" if shipped else str(choice.weights),
        identity={
            "code": CODE_VERSION,
            "architecture": config.model_dump(),
            "letters": LETTERS,
            "layer": "last, after the final norm",
            "crop": CROP_POLICY["protein"],
        },
        parameter_count=config.parameter_count,
    )


def load_tokenizer(choice: EncoderChoice) -> Esm2Tokenizer:
    return Esm2Tokenizer(_config(choice).max_position_embeddings)


def load_encoder(choice: EncoderChoice, device: str) -> Encoder:
    from isoformer.encoders.packed_transformer import load_packed_encoder

    return load_packed_encoder(
        choice, get_spec(choice), _config(choice), special_ids=SPECIAL_IDS, device=device
    )


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


@dataclass(frozen=True)
class Esm2Tokenizer:
    """One residue, one token, between `<cls>` and `<eos>`."""

    max_tokens: int

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(sequence, "protein", max_letters=self.max_tokens - 2, alphabet=_KNOWN)
        table = np.zeros(128, dtype=np.int32)
        table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS)) + FIRST_LETTER_ID
        residues = table[np.frombuffer(clean.letters.encode(), np.uint8)]
        return Tokenized(np.concatenate([[CLS_ID], residues, [EOS_ID]]).astype(np.int32), clean.counts)


def _config(choice: EncoderChoice) -> TransformerConfig:
    return read_transformer_config(weights_folder(choice), gated_feed_forward=False)

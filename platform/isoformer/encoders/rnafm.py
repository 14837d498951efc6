"""RNA-FM (Chen et al. 2022, arXiv 2204.00300): a language model of RNA, trained on non-coding RNA, 100M.

`rnafm` takes one of two:
- a folder of the conversion that is on the hub (`multimolecule/rnafm`: `config.json`, `model.safetensors`;
  AGPL-3.0), which `isoformer weights pull rnafm` fetches;
- the authors' own file, `RNA-FM_pretrained.pth` (github.com/ml4bio/RNA-FM; MIT).

They number their tokens differently. `rnafm_weights.py` tells them apart and brings both into the authors'
order, so that there is one tokenizer. Where an older conversion's config.json differs in what is no size
(layer norms at 1e-12), the authors' code is followed.

Bases → `<cls>` … `<eos>`, one token each, T read as U; the states of `<cls>` and `<eos>` are no positions.
The model knows more ambiguous letters than N; here they are all N, as for every encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.esm_like import HONOURED, long_policy, most_tokens, require_fields, spec_of
from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec, Tokenized
from isoformer.encoders.transformer_config import TransformerConfig, transformer_config
from isoformer.encoders.weights_files import (
    choice_digest,
    config_folder,
    folder_digest,
    read_config,
    weights_file,
    weights_folder,
)

OPTIONS: Final = HONOURED
TRAINABLE: Final = True
CODE_VERSION: Final = 1
CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID = 0, 1, 2, 3, 24
SPECIAL_IDS: Final = frozenset({CLS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID})
BASE_IDS: Final = {"A": 4, "C": 5, "G": 6, "T": 7, "N": 18}

_AUTHORS_SUFFIX: Final = ".pth"
_FETCH: Final = "the authors' RNA-FM_pretrained.pth is linked from github.com/ml4bio/RNA-FM"
_SIZES: Final = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "position_embedding_type",
)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    return spec_of(
        choice,
        _sizes(choice),
        family="rnafm",
        modality="rna",
        letters_per_token=1,
        licence=PUBLISHED["rnafm"].licence,
        identity={"code": CODE_VERSION, "bases": BASE_IDS},
    )


def load_tokenizer(choice: EncoderChoice) -> RnaFmTokenizer:
    return RnaFmTokenizer(most_tokens(choice, _sizes(choice)), long_policy(choice, "rna"))


def load_encoder(choice: EncoderChoice, device: str, *, trainable: bool = False) -> Encoder:
    from isoformer.encoders.packed_encoder import load_packed_encoder
    from isoformer.encoders.rnafm_weights import load_rnafm

    config = _sizes(choice)
    return load_packed_encoder(
        choice,
        get_spec(choice),
        config,
        special_ids=SPECIAL_IDS,
        device=device,
        published=lambda: load_rnafm(config, _weights_path(choice)),
        trainable=trainable,
    )


def _weights_path(choice: EncoderChoice) -> Path:
    if _is_authors_file(choice):
        return weights_file(choice, suffix=_AUTHORS_SUFFIX, fetch=_FETCH)
    return weights_folder(choice)


def weights_digest(choice: EncoderChoice) -> str:
    if choice.random_seed is None and _is_authors_file(choice):
        return choice_digest(choice, _weights_path(choice))
    return folder_digest(choice)


@dataclass(frozen=True)
class RnaFmTokenizer:
    """One base, one token, between `<cls>` and `<eos>`."""

    max_tokens: int
    long_sequences: LongPolicy = CROP_POLICY["rna"]

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(
            sequence, "rna", max_letters=self.max_tokens - 2, long_sequences=self.long_sequences
        )
        counts = dict(clean.counts)
        if len(clean.letters) > self.max_tokens - 2:
            counts["windowed_bases"] = len(clean.letters)
        table = np.zeros(128, dtype=np.int32)
        table[[ord(base) for base in BASE_IDS]] = list(BASE_IDS.values())
        bases = table[np.frombuffer(clean.letters.encode(), np.uint8)]
        return Tokenized(np.concatenate([[CLS_ID], bases, [EOS_ID]]).astype(np.int32), counts)


def _sizes(choice: EncoderChoice) -> TransformerConfig:
    """The published model's, whatever the layout. EncoderError where a folder's config.json has others."""
    published = PUBLISHED["rnafm"].config
    if choice.weights is not None and not _is_authors_file(choice):
        expected = {name: published[name] for name in _SIZES} | {"hidden_act": "gelu", "codon": False}
        require_fields(choice, read_config(config_folder(choice)), expected)
    return transformer_config(published, gated_feed_forward=False, file="rnafm")


def _is_authors_file(choice: EncoderChoice) -> bool:
    return choice.weights is not None and choice.weights.endswith(_AUTHORS_SUFFIX)

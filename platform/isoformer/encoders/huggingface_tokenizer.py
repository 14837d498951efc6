"""The tokenizer of a Hugging Face folder, read with the `tokenizers` library: no torch, no code of others.

In: the folder and the modality. Out: a tokenizer that takes one sequence by the letter policy of `letters.py`
and counts what it changed. How letters are written for this vocabulary (one word or separated by spaces, U or
T for RNA) is found by trying: the way in which most letters are known, then that with the fewest tokens.

Two layouts are read: `tokenizer.json`, and the older `vocab.txt` of ESM's and BERT's tokenizers, whose rules
are few enough to build here. `huggingface_model.py` compares with the library's own tokenizer before it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from isoformer.encoders.letters import NUCLEOTIDES, RESIDUES, LongPolicy, clean_sequence
from isoformer.encoders.spec import Tokenized
from isoformer.encoders.weights_manifest import read_json
from isoformer.errors import EncoderError, shortened
from isoformer.schema import Modality

MOST_TOKENS: Final = 1 << 24
_FILES: Final = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_RARE_RESIDUES: Final = "BOUZ"
_CLASS_OF_MODEL: Final = {"esm": "EsmTokenizer", "bert": "BertTokenizer"}
_SAMPLE_LETTERS: Final = 512


@dataclass(frozen=True)
class Writing:
    """How letters are written for a vocabulary."""

    spaced: bool = False
    uracil: bool = False

    def __call__(self, letters: str) -> str:
        written = letters.replace("T", "U") if self.uracil else letters
        return " ".join(written) if self.spaced else written


@dataclass(frozen=True)
class Vocabulary:
    """A folder's tokenizer; `before`, `after`: the special tokens it puts around a sequence. Picklable.

    `unknown_id` is -1 where every text has tokens.
    """

    tokenizer: tokenizers.Tokenizer
    unknown_id: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    def encode(self, text: str) -> tokenizers.Encoding:
        """Without special tokens. EncoderError where the library cannot, as without an unknown token."""
        with _explained(f"its tokenizer cannot read {shortened(text, 40)}"):
            return self.tokenizer.encode(text, add_special_tokens=False)

    def unknown(self, text: str) -> int:
        """How many tokens of the text are `<unk>`."""
        return self.encode(text).ids.count(self.unknown_id)


@dataclass(frozen=True)
class LibraryTokenizer:
    """One sequence, its special tokens around it; tokens over the limit go by the crop policy."""

    vocabulary: Vocabulary
    modality: Modality
    writing: Writing
    alphabet: str
    max_tokens: int
    long_sequences: LongPolicy

    def __call__(self, sequence: str) -> Tokenized:
        clean = clean_sequence(sequence, self.modality, max_letters=None, alphabet=self.alphabet)
        text = self.writing(clean.letters)
        encoding = self.vocabulary.encode(text)
        kept = self._kept(encoding, text)
        ids = encoding.ids[kept]
        unknown = ids.count(self.vocabulary.unknown_id)
        if unknown == len(ids):
            raise EncoderError(
                f"{self.modality} sequence has no valid letter: all {len(ids)} tokens are <unk>"
            )
        counts = {**clean.counts, **self._cropped(encoding, text, kept)}
        if unknown:
            counts["unknown_tokens"] = unknown
        framed = [*self.vocabulary.before, *ids, *self.vocabulary.after]
        if max(framed) > MOST_TOKENS:
            raise EncoderError(f"its tokenizer numbers a token {max(framed)}; allowed: up to {MOST_TOKENS}")
        return Tokenized(np.array(framed, dtype=np.int32), counts)

    @property
    def letters_per_token(self) -> float:
        """Over a fixed random sequence of the modality's letters."""
        sample = _sample(self.modality)
        return len(sample) / len(self.vocabulary.encode(self.writing(sample)))

    def _kept(self, encoding: tokenizers.Encoding, text: str) -> slice:
        limit = self.max_tokens - len(self.vocabulary.before) - len(self.vocabulary.after)
        dropped = max(0, len(encoding) - limit)
        start = {"left": dropped, "right": 0}.get(self.long_sequences)
        if start is None:  # around the token that holds the middle letter
            letters = (len(text) + 1) // 2 if self.writing.spaced else len(text)
            middle = letters // 2 * (2 if self.writing.spaced else 1)
            ends = [end for _, end in encoding.offsets]
            start = int(np.searchsorted(ends, middle, side="right")) - limit // 2
        start = min(max(0, start), dropped)
        return slice(start, start + limit)

    def _cropped(self, encoding: tokenizers.Encoding, text: str, kept: slice) -> dict[str, int]:
        offsets = encoding.offsets[kept]
        letters = len(text.replace(" ", ""))
        dropped = letters - len(text[offsets[0][0] : offsets[-1][1]].replace(" ", ""))
        reason = "cropped_residues" if self.modality == "protein" else "cropped_bases"
        return {reason: dropped} if dropped else {}


def read_tokenizer(
    folder: Path, modality: Modality, *, max_tokens: int, long_sequences: LongPolicy
) -> LibraryTokenizer:
    """EncoderError where the folder has none that can be read, or where it does not know the letters."""
    vocabulary = _vocabulary(folder)
    try:
        writing = _writing(vocabulary, modality)
        letters = _letters(modality)
        strange = [letter for letter in letters if vocabulary.unknown(writing(letter))]
    except EncoderError as error:
        raise EncoderError(f"{folder}: {error}") from None
    if strange:
        raise EncoderError(
            f"{folder}: its vocabulary does not know {', '.join(strange)} of {modality}; is that right?"
        )
    if (room := max_tokens - len(vocabulary.before) - len(vocabulary.after)) < 1:
        raise EncoderError(f"{folder}: {max_tokens} tokens leave {room} beside the special ones; must be 1")
    rare = [letter for letter in _RARE_RESIDUES if not vocabulary.unknown(writing(letter))]
    return LibraryTokenizer(
        vocabulary, modality, writing, letters + "".join(rare), max_tokens, long_sequences
    )


def probe(tokenizer: LibraryTokenizer) -> tuple[str, list[int]]:
    """A text as this tokenizer writes it and its ids, special tokens included, to compare with another's."""
    text = tokenizer.writing(_sample(tokenizer.modality))
    return text, [
        *tokenizer.vocabulary.before,
        *tokenizer.vocabulary.encode(text).ids,
        *tokenizer.vocabulary.after,
    ]


def tokenizer_digest(folder: Path) -> str:
    """blake2b over the tokenizer's files."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """An EncoderError for what the library raises within the block: bare exceptions, and panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise EncoderError(f"{what}: {error}") from None


def _vocabulary(folder: Path) -> Vocabulary:
    settings = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer, unknown = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        tokenizer, unknown = _from_vocabulary(folder, settings)
    else:
        raise EncoderError(
            f"{folder}: no tokenizer; expected tokenizer.json, or vocab.txt of an ESM or BERT model"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with _explained(f"{folder}: its tokenizer cannot be used"):
        framed = tokenizer.encode("A")
    own = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
    if not own:
        raise EncoderError(f"{folder}: its tokenizer makes no token of the letter A")
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    unknown_id = -1 if unknown_id is None else unknown_id
    return Vocabulary(tokenizer, unknown_id, tuple(framed.ids[: own[0]]), tuple(framed.ids[own[-1] + 1 :]))


def _from_json(path: Path) -> tuple[tokenizers.Tokenizer, str | None]:
    described = _read_json(path)
    with _explained(f"{path}: not a tokenizer that can be read"):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    model = described["model"]
    by_place = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
    return tokenizer, model.get("unk_token") or by_place


def _from_vocabulary(folder: Path, settings: dict[str, Any]) -> tuple[tokenizers.Tokenizer, str]:
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EncoderError(f"{folder / 'vocab.txt'}: is not UTF-8 text: {error}") from None
    ids = {token.strip(): place for place, token in enumerate(lines) if token.strip()}
    model_type = _read_json(folder / "config.json").get("model_type", "")
    kind = (settings.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type, "")).removesuffix("Fast")
    if kind == "EsmTokenizer":
        return _esm_tokenizer(ids, folder), "<unk>"
    if kind == "BertTokenizer":
        return _bert_tokenizer(ids, lower_case=settings.get("do_lower_case", True)), "[UNK]"
    raise EncoderError(
        f"{folder}: vocab.txt of a {kind or 'nameless'} is not read; save it as tokenizer.json"
    )


def _esm_tokenizer(ids: dict[str, int], folder: Path) -> tokenizers.Tokenizer:
    if words := [token for token in ids if len(token) > 1 and token.isalpha()]:
        raise EncoderError(
            f"{folder}: vocab.txt has words ({', '.join(words[:3])}, …), as the Nucleotide Transformer's: "
            "name it ntv1-… or ntv2-…, which are built in"
        )
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    return _framed(tokenizer, ids, "<cls>", "<eos>")


def _bert_tokenizer(ids: dict[str, int], *, lower_case: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _framed(tokenizer, ids, "[CLS]", "[SEP]")


def _framed(
    tokenizer: tokenizers.Tokenizer, ids: dict[str, int], first: str, last: str
) -> tokenizers.Tokenizer:
    special = [(token, ids[token]) for token in (first, last) if token in ids]
    frame = " ".join([*(t for t, _ in special[:1]), "$A", *(t for t, _ in special[1:])])
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return tokenizer


def _writing(vocabulary: Vocabulary, modality: Modality) -> Writing:
    """The way in which most is known, then in fewest tokens; RNA with U where nothing else decides."""
    sample = _sample(modality)

    def cost(writing: Writing) -> tuple[float, int]:
        text = writing(sample)
        tokens = len(vocabulary.encode(text))
        return vocabulary.unknown(text) / tokens, tokens

    uracil = (True, False) if modality == "rna" else (False,)
    return min((Writing(spaced, u) for spaced in (False, True) for u in uracil), key=cost)


def _letters(modality: Modality) -> str:
    return RESIDUES if modality == "protein" else NUCLEOTIDES


def _sample(modality: Modality) -> str:
    return "".join(np.random.default_rng(0).choice(list(_letters(modality)), size=_SAMPLE_LETTERS))


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}

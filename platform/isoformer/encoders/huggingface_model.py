"""The library's own model behind the `Encoder` contract: batches of equal length, nothing padded.

Called by `huggingface.py`, once per actor. What was refused there is not met here; what only the library can
tell is refused here: decoders by class, tensors that the file lacks or that have no place, a tokenizer that
differs from the library's.

Shapes: B sequences, L tokens of one, P positions of all, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from isoformer.encoders.huggingface_tokenizer import LibraryTokenizer, probe
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed
from isoformer.encoders.weights_files import check_names_and_shapes
from isoformer.errors import EncoderError

_DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_MAY_MISS: Final = ("pooler.", "contact_head.")
_BUFFERS: Final = ("position_ids", "inv_freq")


class LibraryEncoder:
    """`Encoder` over a model of transformers; evaluation mode, no gradients."""

    def __init__(
        self,
        choice: EncoderChoice,
        spec: EncoderSpec,
        model: nn.Module,
        *,
        ends: tuple[int, int],
        weights_digest: str,
        device: str,
    ) -> None:
        self.spec = spec
        self.weights_digest = weights_digest
        self.model = model.to(device=device, dtype=_DTYPES[choice.precision]).eval().requires_grad_(False)
        self._before, self._after = ends
        self._device = device

    def encode(self, packed: Packed) -> Encoded:
        (encoded,) = self.encode_each(packed, [self.spec.hidden_states])
        return encoded

    def encode_each(self, packed: Packed, states: Sequence[Sequence[int]]) -> list[Encoded]:
        """One forward pass; for each entry, a `spec.hidden_states`, what that choice's encoder would give."""
        self._require_known(packed)
        lengths = np.diff(packed.offsets)
        found: list[list[Tensor]] = [[torch.empty(0)] * len(lengths) for _ in states]
        for members in _runs_of_equal_length(lengths):
            ids_BL = np.stack([packed.token_ids[packed.offsets[i] : packed.offsets[i + 1]] for i in members])
            for place, mean_BLD in enumerate(self._means(ids_BL, states)):
                for member, mean_LD in zip(members, mean_BLD, strict=True):
                    found[place][member] = mean_LD
        return [self._without_ends(means) for means in found]

    def _without_ends(self, means: list[Tensor]) -> Encoded:
        own = [mean_LD[self._before : len(mean_LD) - self._after] for mean_LD in means]
        offsets = np.concatenate([[0], np.cumsum([len(mean_LD) for mean_LD in own])]).astype(np.int64)
        cls_BD = torch.stack([mean_LD[0] for mean_LD in means]) if self.spec.has_cls else None
        return Encoded(torch.cat(own), offsets, cls_BD)

    def _means(self, ids_BL: NDArray[np.int32], states: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """(B, L, D) in float32 for each choice of states: the one state, or the mean of several."""
        input_ids = torch.from_numpy(ids_BL.astype(np.int64)).to(self._device)
        wants_last = all(tuple(asked) == (self.spec.layers,) for asked in states)
        with torch.no_grad():
            output = self.model(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                output_hidden_states=not wants_last,
                return_dict=True,
            )
        below = [] if wants_last else output.hidden_states[:-1]
        hidden = {**dict(enumerate(below)), self.spec.layers: output.last_hidden_state}
        for asked in states:
            chosen = [hidden[state].float() for state in asked]
            yield chosen[0] if len(chosen) == 1 else torch.stack(chosen).mean(dim=0)

    def _require_known(self, packed: Packed) -> None:
        size = self.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if int(packed.token_ids.max()) >= size or int(packed.token_ids.min()) < 0:
            raise EncoderError(f"{self.spec.name}: token id outside the vocabulary of {size}")


def load_library_encoder(
    choice: EncoderChoice,
    spec: EncoderSpec,
    tokenizer: LibraryTokenizer,
    folder: Path,
    weights_digest: str,
    device: str,
) -> LibraryEncoder:
    """EncoderError for a decoder, tensors that do not fit, or a tokenizer that is not the library's."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    _refuse_decoders(config, folder)
    _compare_tokenizers(tokenizer, folder)
    model = _model(choice, config, folder)
    ends = len(tokenizer.vocabulary.before), len(tokenizer.vocabulary.after)
    return LibraryEncoder(
        choice, spec, _encoder_half(model, config), ends=ends, weights_digest=weights_digest, device=device
    )


def _refuse_decoders(config: Any, folder: Path) -> None:
    from transformers.models.auto import modeling_auto as known

    decodes = config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    both_ways = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if decodes and not both_ways and not getattr(config, "is_encoder_decoder", False):
        raise EncoderError(
            f"{folder}: a {config.model_type} is a decoder, not an encoder: its states look back only"
        )


def _compare_tokenizers(tokenizer: LibraryTokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        library = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise EncoderError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    text, ids = probe(tokenizer)
    if (theirs := library(text)["input_ids"]) != ids:
        first = next(
            (i for i, pair in enumerate(zip(ids, theirs, strict=False)) if pair[0] != pair[1]), "the end"
        )
        raise EncoderError(
            f"{folder}: its tokenizer is not read as the library reads it: token {first} differs"
        )


def _model(choice: EncoderChoice, config: Any, folder: Path) -> nn.Module:
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING
    from transformers.utils import logging

    kind: Any = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    if choice.random_seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(choice.random_seed)
            return kind.from_config(config, trust_remote_code=False)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, found = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below, not passed over
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise EncoderError(f"{folder}: not readable weights: {error}") from error
    _require_fit(model, found, folder)
    return model


def _require_fit(model: Any, found: dict[str, Any], folder: Path) -> None:
    """Heads and what only pools may differ; a tensor of the encoder may not."""
    surplus = [name for name in found["unexpected_keys"] if _is_encoders(name, model)]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    mismatched = {name: tuple(theirs) for name, theirs, _ in found["mismatched_keys"]}
    missing = {name for name in found["missing_keys"] if not name.startswith(_MAY_MISS)}
    expected = {name: shapes.get(name, ()) for name in {*missing, *mismatched}}
    check_names_and_shapes(expected, {**mismatched, **{name: () for name in surplus}}, file=folder)


def _is_encoders(name: str, model: Any) -> bool:
    """Whether a tensor that the model has no place for is under one of its parts, and not a head's."""
    own = name.removeprefix(f"{model.base_model_prefix}.")
    is_inside = own != name or own.startswith(tuple(f"{part}." for part, _ in model.named_children()))
    return is_inside and not own.startswith(_MAY_MISS) and not own.endswith(_BUFFERS)


def _encoder_half(model: Any, config: Any) -> nn.Module:
    half: nn.Module = model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model
    return half


def _runs_of_equal_length(lengths: NDArray[np.int64]) -> Iterator[list[int]]:
    """Places of the sequences of each length."""
    order = sorted(range(len(lengths)), key=lambda place: int(lengths[place]))
    for _, run in groupby(order, key=lambda place: int(lengths[place])):
        yield list(run)

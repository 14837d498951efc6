"""`Encoder` over a `PackedTransformer`: special tokens left out of the output; no gradients unless trainable.

Chooses the route: prepacked oneDNN layers for float32 on a CPU, variable-length attention on a CUDA device,
and what `attention.py` falls back to elsewhere; a trainable one takes plain layers.
Used by the families of ESM-like encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoformer.encoders import prepacked
from isoformer.encoders.attention import by_precision, padded, route_for
from isoformer.encoders.packed_transformer import (
    PackedTransformer,
    TransformerLayer,
    load_transformer,
    random_transformer,
)
from isoformer.encoders.registry import EncoderChoice, weights_digest
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed, padding_to_longest
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import weights_folder
from isoformer.encoders.windows import Windows
from isoformer.errors import EncoderError

# T tokens of all sequences, B sequences, P positions of all sequences, D width

DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class PackedEncoder:
    """Weights on a device."""

    def __init__(
        self,
        choice: EncoderChoice,
        spec: EncoderSpec,
        model: PackedTransformer,
        *,
        special_ids: frozenset[int],
        weights_digest: str,
        device: str,
        trainable: bool = False,
    ) -> None:
        self.spec = spec
        self.weights_digest = weights_digest
        if trainable:
            self.model, self.route = model.to(device), "plain layers, with gradients"
            self.model.attend = by_precision
            self._run = self.model.means
        else:
            self.model, self.route = for_inference(model, device, DTYPES[choice.precision])
            self._run = torch.inference_mode()(self.model.means)
        self._special_ids = np.array(sorted(special_ids), dtype=np.int32)
        self._overlap_tokens = choice.overlap_tokens

    @property
    def _device(self) -> torch.device:
        """Where the weights are: a trainable encoder moves with its model."""
        return cast(Tensor, self.model.embeddings["word_embeddings"].weight).device

    def encode(self, packed: Packed) -> Encoded:
        (encoded,) = self.encode_each(packed, [self.spec.hidden_states])
        return encoded

    def encode_each(self, packed: Packed, states: Sequence[Sequence[int]]) -> list[Encoded]:
        """One forward pass; for each entry, a `spec.hidden_states`, what that choice's encoder would give."""
        self._require_known_tokens(packed)
        is_special_T = np.isin(packed.token_ids, self._special_ids)
        kept_P = torch.from_numpy(np.flatnonzero(~is_special_T)).to(self._device)
        first_B = torch.from_numpy(packed.offsets[:-1]).to(self._device)
        offsets = np.concatenate([[0], np.cumsum(~is_special_T)])[packed.offsets].astype(np.int64)
        windows = self._windows(packed, is_special_T)
        encoded: dict[int, Encoded] = {}
        for place, mean_TD in self._means(windows.packed if windows else packed, states):
            hidden_TD = windows.joined(mean_TD.float()) if windows else mean_TD.float()
            cls_BD = hidden_TD[first_B] if self.spec.has_cls else None
            encoded[place] = Encoded(hidden_TD[kept_P], offsets, cls_BD)
        return [encoded[place] for place in range(len(states))]

    def padding_tokens(self, packed: Packed) -> int:
        """Of the padded route alone; where sequences are read in windows, of the windows."""
        if self.model.attend is not padded:
            return 0
        windows = self._windows(packed, np.isin(packed.token_ids, self._special_ids))
        return padding_to_longest((windows.packed if windows else packed).offsets)

    def _windows(self, packed: Packed, is_special_T: NDArray[np.bool_]) -> Windows | None:
        """None where every sequence is within the limit."""
        if int(np.diff(packed.offsets).max()) <= self.spec.max_tokens:
            return None
        return Windows.of(
            packed,
            most_tokens=self.spec.max_tokens,
            overlap_tokens=self._overlap_tokens,
            is_special_T=is_special_T,
        )

    def _means(self, packed: Packed, states: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        token_ids_T = torch.from_numpy(packed.token_ids.astype(np.int64)).to(self._device)
        return self._run(token_ids_T, packed.offsets.tolist(), states)

    def _require_known_tokens(self, packed: Packed) -> None:
        vocabulary = self.model.config.vocab_size
        if int(packed.token_ids.max()) >= vocabulary or int(packed.token_ids.min()) < 0:
            raise EncoderError(f"{self.spec.name}: token id outside the vocabulary of {vocabulary}")


def for_inference(model: PackedTransformer, device: str, dtype: torch.dtype) -> tuple[PackedTransformer, str]:
    """The model on its device by the fastest route that it can take, and that route's name."""
    config = model.config
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    route = route_for(device, dtype, config.hidden_size // config.num_attention_heads)
    model.attend = route.attend
    if torch.device(device).type != "cpu" or dtype != torch.float32 or not prepacked.is_available():
        return model, route.name
    layers = cast(nn.Sequential, model.encoder["layer"])
    for index, layer in enumerate(layers):
        layers[index] = prepacked.PrepackedLayer(cast(TransformerLayer, layer))
    return model, "prepacked products, attention a sequence at a time"


def load_packed_encoder(
    choice: EncoderChoice,
    spec: EncoderSpec,
    config: TransformerConfig,
    *,
    special_ids: frozenset[int],
    device: str,
    published: Callable[[], PackedTransformer] | None = None,
    trainable: bool = False,
) -> PackedEncoder:
    """The encoder that a choice names: published weights (null: the folder's), or random ones."""
    if choice.random_seed is not None:
        model = random_transformer(config, choice.random_seed)
    else:
        model = published() if published else load_transformer(config, weights_folder(choice))
    return PackedEncoder(
        choice,
        spec,
        model,
        special_ids=special_ids,
        weights_digest=weights_digest(choice),
        device=device,
        trainable=trainable,
    )

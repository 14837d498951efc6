"""Hidden states of a model of the library, sequence by sequence, from one padded batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isoformer.encoders.spec import Tokenized


def library_states(
    model: Any, tokens: list[Tokenized], padding_side: str, pad_token_id: int = 1
) -> list[tuple[Tensor, ...]]:
    """Every hidden state of every sequence; special tokens included, padding left out."""
    longest = max(map(len, tokens))
    ids = torch.full((len(tokens), longest), pad_token_id)
    for row, one in enumerate(tokens):
        place = slice(0, len(one)) if padding_side == "right" else slice(longest - len(one), longest)
        ids[row, place] = torch.from_numpy(one.token_ids).long()
    is_token = ids != pad_token_id
    with torch.no_grad():
        states = model(ids, attention_mask=is_token.long(), output_hidden_states=True).hidden_states
    return [tuple(state[row][is_token[row]] for state in states) for row in range(len(tokens))]


def with_values_that_count(model: Any) -> Any:
    """Norms off one and biases off zero, so that each part has its say."""
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()

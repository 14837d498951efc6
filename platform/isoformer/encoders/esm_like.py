"""What the families of one design share: sizes, limits and options → a spec. Needs no torch.

ESM-2, Nucleotide Transformer and RNA-FM differ in alphabet and tokenizer; each has a module of its own that
calls this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.letters import CROP_POLICY, LongPolicy
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import EncoderSpec
from isoformer.encoders.transformer_config import TransformerConfig, transformer_config
from isoformer.encoders.weights_files import config_folder, origin, read_config
from isoformer.errors import ConfigError, EncoderError
from isoformer.schema import Modality

HONOURED: Final = frozenset(
    {"layer", "average_layers", "max_tokens", "long_sequences", "overlap_tokens", "precision"}
)


def published_fields(choice: EncoderChoice) -> Mapping[str, Any]:
    """config.json's fields: the folder's, or the catalogue's where no folder is named.

    EncoderError where a folder named for a published encoder has other sizes.
    """
    entry = PUBLISHED.get(choice.name)
    if entry is not None and choice.weights is None:
        return entry.config
    found = read_config(config_folder(choice))
    if entry is not None:
        require_fields(choice, found, entry.config)
    return found


def require_fields(choice: EncoderChoice, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """EncoderError where a config.json states another value than the one that the name stands for."""
    other = {
        name: (found[name], value)
        for name, value in expected.items()
        if name in found and found[name] != value
    }
    if other:
        told = ", ".join(
            f"{name} is {got!r}, must be {value!r}" for name, (got, value) in sorted(other.items())
        )
        raise EncoderError(f"{choice.weights}/config.json: not the weights of {choice.name}: {told}")


def sizes(choice: EncoderChoice, *, gated_feed_forward: bool) -> TransformerConfig:
    """The architecture that a choice names."""
    return transformer_config(
        published_fields(choice),
        gated_feed_forward=gated_feed_forward,
        file=f"{choice.weights or choice.name}/config.json",
    )


def most_tokens(choice: EncoderChoice, config: TransformerConfig) -> int:
    """Of one sequence or window: as published, or as asked. Learned positions cannot be exceeded."""
    if choice.max_tokens is None:
        return config.most_tokens
    if config.position_embedding_type == "absolute" and choice.max_tokens > config.most_tokens:
        raise ConfigError(
            f"encoder {choice.name}: max_tokens must be at most {config.most_tokens}, the positions that it "
            f"has learned; got {choice.max_tokens}"
        )
    return choice.max_tokens


def long_policy(choice: EncoderChoice, modality: Modality) -> LongPolicy:
    """What is done with a sequence over the limit."""
    return choice.long_sequences or CROP_POLICY[modality]


def spec_of(
    choice: EncoderChoice,
    config: TransformerConfig,
    *,
    family: str,
    modality: Modality,
    letters_per_token: int,
    licence: str,
    identity: Mapping[str, Any],
) -> EncoderSpec:
    """The spec. `identity`: what the family's module alone knows (code version, tokenizer)."""
    entry = PUBLISHED.get(choice.name)
    is_shipped = choice.weights is None and entry is None
    source, revision = origin(choice)
    tokens = most_tokens(choice, config)
    policy = long_policy(choice, modality)
    require_overlap(choice, tokens, policy)
    states = states_of(choice, config.num_hidden_layers)
    share_of_layers = states[-1] / config.num_hidden_layers
    return EncoderSpec(
        name=choice.name,
        family=family,
        modality=modality,
        width=config.hidden_size,
        max_tokens=tokens,
        letters_per_token=float(letters_per_token),
        licence="Apache-2.0" if is_shipped else entry.licence if entry else licence,
        trained="pre-trained" if choice.random_seed is None else "random",
        source=source or "isoformer pretrain: see the model card",
        identity={
            **identity,
            "architecture": config.model_dump(),
            "hidden_states": states,
            "long_sequences": policy,
            "overlap_tokens": choice.overlap_tokens if policy == "windows" else None,
            "precision": choice.precision,
        },
        parameter_count=config.parameter_count,
        window_bases=_window_bases(tokens, letters_per_token)
        if modality == "dna" and policy != "windows"
        else None,
        reads_windows=policy == "windows",
        layers=config.num_hidden_layers,
        hidden_states=tuple(states),
        has_cls=True,
        hub=entry.hub if entry else "",
        revision=revision,
        flops_per_token=share_of_layers * config.flops_per_token,
        flops_per_token_pair=share_of_layers * config.flops_per_token_pair,
    )


def states_of(choice: EncoderChoice, layers: int) -> list[int]:
    """The hidden states whose mean is asked for. ConfigError where there is no such state."""
    last = choice.layer + layers + 1 if choice.layer < 0 else choice.layer
    first = last - choice.average_layers + 1
    if not 0 <= first <= last <= layers:
        raise ConfigError(
            f"encoder {choice.name}: layer {choice.layer} with average_layers {choice.average_layers} asks "
            f"for hidden states {first} to {last}; there are 0 (the embedding) to {layers} (the last)"
        )
    return list(range(first, last + 1))


def require_overlap(choice: EncoderChoice, most_tokens: int, policy: LongPolicy) -> None:
    """ConfigError for an overlap without windows, and where windows of this size could not go on."""
    default = EncoderChoice.model_fields["overlap_tokens"].default
    if policy != "windows" and choice.overlap_tokens != default:
        raise ConfigError(
            f"encoder {choice.name}: overlap_tokens is of windows; got {choice.overlap_tokens} with "
            f"long_sequences {policy!r}: set that to windows, or leave overlap_tokens out"
        )
    if policy == "windows" and choice.overlap_tokens > most_tokens // 2:
        raise ConfigError(
            f"encoder {choice.name}: overlap_tokens must be at most half of a window's {most_tokens} tokens, "
            f"got {choice.overlap_tokens}"
        )


def _window_bases(tokens: int, letters_per_token: int) -> tuple[int, int]:
    """All that the tokens after `<cls>` can hold, the TSS in the middle."""
    reach = letters_per_token * (tokens - 1)
    return reach // 2, reach - reach // 2

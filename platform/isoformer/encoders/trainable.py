"""An encoder as a module that learns: gradients flow, and its parameters are those of the published network.

In: `Packed` tokens. Out: `Encoded`, the same states that the frozen encoder gives, with their graph. Made by
`registry.load_trainable`; used by joint training and by attribution. The regimes of a modality:

    full      every parameter learns, from the published (or shipped) weights
    lora      the weights stay; low-rank adapters beside the attention's and feed-forward's matrices learn
    scratch   every parameter learns, from random weights

Batch norms keep their running statistics, except from scratch: a sequence's states must not depend on what
else is in its batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from torch import nn

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.convolutional_trunk import WindowEncoder
from isoformer.encoders.packed_encoder import PackedEncoder
from isoformer.encoders.registry import EncoderChoice, load_trainable
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed
from isoformer.encoders.weights_files import config_folder, read_config
from isoformer.encoders.weights_manifest import CONFIG
from isoformer.errors import ConfigError
from isoformer.model_config import EncoderInside

STACKS: Final = ("encoder.layer", "transformer", "conv_tower", "res_tower")
"""Where the networks keep what is repeated: blocks for recomputation and for sharding."""
LORA_TARGETS: Final = (
    "query", "key", "value", "dense",
    "to_q", "to_k", "to_v", "to_out",
    "Wqkv", "out_proj",
)  # fmt: skip


class TrainableEncoder(nn.Module):
    """`network` holds the parameters; `encoder` knows tokens, windows and special tokens."""

    def __init__(self, encoder: object) -> None:
        super().__init__()
        self.encoder = cast(PackedEncoder | WindowEncoder, encoder)
        self.network: nn.Module = self.encoder.model
        self.has_running_statistics = False
        self.config_json: Mapping[str, Any] | None = None
        self._freeze_unread_layers()

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    def forward(self, packed: Packed) -> Encoded:
        """Hidden states (P, D) in float32, special tokens left out."""
        return self.encoder.encode(packed)

    def train(self, mode: bool = True) -> TrainableEncoder:
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(mode and self.has_running_statistics)
        return self

    def blocks(self) -> list[nn.Module]:
        """Layers and convolutional blocks, in order."""
        stacks = [_at(self.network, path) for path in STACKS]
        return [block for stack in stacks if isinstance(stack, nn.Sequential) for block in stack]

    def add_adapters(self, *, rank: int, alpha: int, dropout: float, targets: Sequence[str] = ()) -> None:
        """Freeze the network and put low-rank adapters (Hu et al. 2021, arXiv 2106.09685) beside its
        matrices: those of the modules named `targets`, or attention's and the feed-forward's.
        """
        from peft import LoraConfig, inject_adapter_in_model

        names = {
            name.rpartition(".")[2] for name, m in self.network.named_modules() if isinstance(m, nn.Linear)
        }
        wanted = sorted(names & set(targets or LORA_TARGETS))
        if unknown := sorted(set(targets) - names):
            raise ConfigError(
                f"lora targets {', '.join(unknown)} are no matrices of {self.spec.name}; "
                f"allowed: {', '.join(sorted(names))}"
            )
        self.network.requires_grad_(False)
        options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
        inject_adapter_in_model(options, self.network)

    def recompute_activations(self) -> None:
        """Keep a block's input only, and compute its inside again on the way back."""
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

        blocks = {id(block) for block in self.blocks()}
        apply_activation_checkpointing(self.network, check_fn=lambda module: id(module) in blocks)

    def _freeze_unread_layers(self) -> None:
        """What lies above the hidden state that is read gets no gradient: it must not count as trained."""
        states = self.spec.hidden_states
        if not isinstance(self.encoder, PackedEncoder) or not states or states[-1] == self.spec.layers:
            return
        for layer in self.blocks()[states[-1] :]:
            layer.requires_grad_(False)
        norm = _at(self.network, "encoder.emb_layer_norm_after")
        if isinstance(norm, nn.Module):
            norm.requires_grad_(False)


def start_of(settings: EncoderInside, *, seed: int, device: str = "cpu") -> TrainableEncoder:
    """The encoder as its training starts. `seed`: of the weights from scratch, and of adapters."""
    choice = settings.encoder
    if settings.regime == "scratch":
        choice = choice.edited(random_seed=seed)
    return _prepared(load_trainable(choice, device), settings, _config_of(choice))


def unfilled(settings: EncoderInside, config: Mapping[str, Any] | None) -> TrainableEncoder:
    """The same modules with any weights, to be filled from a saved model. `config`: the config.json of an
    encoder that was named by its folder, which need not be there any more.
    """
    with tempfile.TemporaryDirectory(prefix="isoformer-config-") as folder:
        if config is not None:
            Path(folder, CONFIG).write_text(json.dumps(config), encoding="utf-8")
        choice = settings.encoder.edited(random_seed=0, weights=folder if config is not None else None)
        return _prepared(load_trainable(choice), settings, config)


def _config_of(choice: EncoderChoice) -> Mapping[str, Any] | None:
    """What `unfilled` needs later: null where the encoder's name alone says what it is."""
    if choice.weights is None or choice.name in PUBLISHED:
        return None
    return read_config(config_folder(choice))


def _prepared(
    encoder: TrainableEncoder, settings: EncoderInside, config: Mapping[str, Any] | None
) -> TrainableEncoder:
    encoder.config_json = config
    encoder.has_running_statistics = settings.regime == "scratch"
    if settings.regime == "lora":
        encoder.add_adapters(
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            targets=settings.lora_targets,
        )
    if settings.gradient_checkpointing:
        encoder.recompute_activations()
    return encoder


def _at(module: nn.Module, path: str) -> object:
    found: object = module
    for name in path.split("."):
        children = getattr(found, "_modules", {})
        found = children.get(name)
    return found

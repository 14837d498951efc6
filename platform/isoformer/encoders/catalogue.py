"""The published encoders that can be named: where they are, how large, under which licence. Needs no torch.

`config` holds the fields of the published `config.json`, so that a spec, a cost estimate and random weights
need no download; a folder's own `config.json` is what counts once there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from isoformer.schema import Modality


@dataclass(frozen=True)
class Published:
    """One published encoder. `revision`: the commit that its weights are pinned to; null: when pulled."""

    name: str
    module: str
    modality: Modality
    hub: str
    licence: str
    config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None


def _esm2() -> list[Published]:
    """Lin et al. 2023, Science 379:1123. Layers, width, heads as in the hub's config.json files."""
    common = {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "max_position_embeddings": 1026,
        "layer_norm_eps": 1e-5,
        "token_dropout": True,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
    }
    sizes = {
        "8m": ("facebook/esm2_t6_8M_UR50D", 6, 320, 20),
        "35m": ("facebook/esm2_t12_35M_UR50D", 12, 480, 20),
        "150m": ("facebook/esm2_t30_150M_UR50D", 30, 640, 20),
        "650m": ("facebook/esm2_t33_650M_UR50D", 33, 1280, 20),
        "3b": ("facebook/esm2_t36_3B_UR50D", 36, 2560, 40),
        "15b": ("facebook/esm2_t48_15B_UR50D", 48, 5120, 40),
    }
    return [
        Published(
            f"esm2-{size}",
            "isoformer.encoders.esm2",
            "protein",
            hub,
            "MIT",
            {**common, **_sizes(layers, width, heads)},
        )
        for size, (hub, layers, width, heads) in sizes.items()
    ]


def _nucleotide_transformers() -> list[Published]:
    """Dalla-Torre et al., Nature Methods 22:287. Version 1 has learned positions, version 2 rotary ones."""
    common = {
        "mask_token_id": 2,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-12,
        "token_dropout": False,
        "emb_layer_norm_before": False,
    }
    first = {
        **common,
        "vocab_size": 4105,
        "max_position_embeddings": 1002,
        "position_embedding_type": "absolute",
    }
    second = {
        **common,
        "vocab_size": 4107,
        "max_position_embeddings": 2050,
        "position_embedding_type": "rotary",
    }
    sizes = {
        "ntv1-500m-human-ref": (first, 24, 1280, 20),
        "ntv1-500m-1000g": (first, 24, 1280, 20),
        "ntv1-2.5b-1000g": (first, 32, 2560, 20),
        "ntv1-2.5b-multi-species": (first, 32, 2560, 20),
        "ntv2-50m": (second, 12, 512, 16),
        "ntv2-100m": (second, 22, 512, 16),
        "ntv2-250m": (second, 24, 768, 16),
        "ntv2-500m": (second, 29, 1024, 16),
    }
    modalities: tuple[Modality, ...] = ("dna", "rna")
    return [
        Published(
            f"{name}-{modality}",
            "isoformer.encoders.nucleotide_transformer",
            modality,
            f"InstaDeepAI/nucleotide-transformer-{_hub_name(name)}",
            "CC BY-NC-SA 4.0 (non-commercial)",
            {**generation, **_sizes(layers, width, heads)},
        )
        for name, (generation, layers, width, heads) in sizes.items()
        for modality in modalities
    ]


def _genomic_tracks() -> list[Published]:
    """Avsec et al. 2021, Nature Methods 18:1196; Linder et al. 2025, Nature Genetics 57:949; Hingerl et al.
    2025, Bioinformatics 41:btaf467."""
    enformer = {
        "model_type": "enformer",
        "dim": 1536,
        "depth": 11,
        "heads": 8,
        "target_length": 896,
        "attn_dim_key": 64,
        "num_downsamples": 7,
        "dim_divisible_by": 128,
    }
    borzoi = {
        "model_type": "borzoi",
        "dim": 1536,
        "depth": 8,
        "heads": 8,
        "attn_dim_key": 64,
        "attn_dim_value": 192,
        "bins_to_return": 6144,
        "return_center_bins_only": True,
    }
    module = "isoformer.encoders.borzoi"
    return [
        Published(
            "enformer",
            "isoformer.encoders.enformer",
            "dna",
            "EleutherAI/enformer-official-rough",
            "CC BY 4.0",
            enformer,
            revision="affe5713ae9017460706a44108289b13c5fee16c",
        ),
        Published("borzoi", module, "dna", "johahi/borzoi-replicate-0", "CC BY 4.0", borzoi),
        Published(
            "flashzoi", module, "dna", "johahi/flashzoi-replicate-0", "MIT", {**borzoi, "flashed": True}
        ),
    ]


def _hub_name(name: str) -> str:
    return (
        name.removeprefix("ntv1-") if name.startswith("ntv1-") else f"{name.removeprefix('nt')}-multi-species"
    )


def _sizes(layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


PUBLISHED: Final[dict[str, Published]] = {
    entry.name: entry for entry in (*_esm2(), *_nucleotide_transformers(), *_genomic_tracks())
}
"""Name → entry. Nobody has read these weights here: parity is proven on random weights of the same shapes."""

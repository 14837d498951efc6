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


_NT: Final = "InstaDeepAI/nucleotide-transformer-"
_REVISIONS: Final[Mapping[str, str]] = {
    "facebook/esm2_t6_8M_UR50D": "c731040fcd8d73dceaa04b0a8e6329b345b0f5df",
    "facebook/esm2_t12_35M_UR50D": "6fbf070e65b0b7291e7bbcd451118c216cff79d8",
    "facebook/esm2_t30_150M_UR50D": "a695f6045e2e32885fa60af20c13cb35398ce30c",
    "facebook/esm2_t33_650M_UR50D": "08e4846e537177426273712802403f7ba8261b6c",
    "facebook/esm2_t36_3B_UR50D": "476b639933c8baad5ad09a60ac1a87f987b656fc",
    "facebook/esm2_t48_15B_UR50D": "5fbca39631164edc1d402a5aa369f982f72ee282",
    f"{_NT}2.5b-multi-species": "b746b125aacd1b0970c05a32fd71ba726754542e",
    f"{_NT}v2-50m-multi-species": "81b29e5786726d891dbf929404ef20adca5b36f1",
    f"{_NT}v2-100m-multi-species": "f34324c6fde36a4f635f0f1f06cac5d25acd6798",
    f"{_NT}v2-250m-multi-species": "c0f0359229f36ff6bc3a021247eefe0a9c344bd1",
    f"{_NT}v2-500m-multi-species": "06615c1660c892fc199840c18123f8385b3542a8",
    "EleutherAI/enformer-official-rough": "affe5713ae9017460706a44108289b13c5fee16c",
    "multimolecule/rnafm": "bcf7cc6e8f4385449c0288b3e1f41f21d68f1be3",
}
"""Commits that public code names in full for these repositories; the others are pinned when pulled."""


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
            _REVISIONS.get(hub),
        )
        for size, (hub, layers, width, heads) in sizes.items()
    ]


def _nucleotide_transformers() -> list[Published]:
    """Dalla-Torre et al., Nature Methods 22:287. Version 1 has learned positions, version 2 rotary ones.

    As in the hub's config.json files of 500m-human-ref, v2-50m, v2-100m and v2-500m; the others by the paper
    and by their number of parameters (a test adds them up).
    """
    common = {
        "mask_token_id": 2,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-12,
        "emb_layer_norm_before": False,
    }
    first = {
        **common,
        "vocab_size": 4105,
        "max_position_embeddings": 1002,
        "position_embedding_type": "absolute",
        "token_dropout": True,
    }
    second = {
        **common,
        "vocab_size": 4107,
        "max_position_embeddings": 2050,
        "position_embedding_type": "rotary",
        "token_dropout": False,
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
            _hub_name(name),
            "CC BY-NC-SA 4.0 (non-commercial)",
            {**generation, **_sizes(layers, width, heads)},
            _REVISIONS.get(_hub_name(name)),
        )
        for name, (generation, layers, width, heads) in sizes.items()
        for modality in modalities
    ]


def _rnafm() -> Published:
    """Chen et al. 2022, arXiv 2204.00300: ESM-1b's design. Numbers of tokens and what is no size are those of
    the authors' code; the conversion on the hub numbers its tokens otherwise (`rnafm_weights.py`).
    """
    hub = "multimolecule/rnafm"
    config = {
        "vocab_size": 25,
        "mask_token_id": 24,
        "pad_token_id": 1,
        "max_position_embeddings": 1026,
        "layer_norm_eps": 1e-5,
        "token_dropout": False,
        "position_embedding_type": "absolute",
        "emb_layer_norm_before": True,
        **_sizes(12, 640, 20),
        "intermediate_size": 5120,
    }
    licence = "AGPL-3.0 (this conversion; the authors' own file: MIT)"
    return Published("rnafm", "isoformer.encoders.rnafm", "rna", hub, licence, config, _REVISIONS[hub])


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
            _REVISIONS["EleutherAI/enformer-official-rough"],
        ),
        Published("borzoi", module, "dna", "johahi/borzoi-replicate-0", "CC BY 4.0", borzoi),
        Published(
            "flashzoi", module, "dna", "johahi/flashzoi-replicate-0", "MIT", {**borzoi, "flashed": True}
        ),
    ]


def _hub_name(name: str) -> str:
    generation, _, size = name.partition("-")
    return f"{_NT}{size}" if generation == "ntv1" else f"{_NT}v2-{size}-multi-species"


def _sizes(layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


PUBLISHED: Final[dict[str, Published]] = {
    entry.name: entry for entry in (*_esm2(), *_nucleotide_transformers(), _rnafm(), *_genomic_tracks())
}
"""Name → entry. Nobody has read these weights here: parity is proven on random weights of the same shapes."""

"""A pre-trained encoder as files: `config.json`, `model.safetensors` (float16), card, settings.

The names in config.json and in the weights are the published ones, so the folder also opens with other tools.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from isoformer.encoders import esm2
from isoformer.encoders import nucleotide_transformer as ntv2
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.errors import EncoderError
from isoformer.schema import Modality
from isoformer.storage import Storage
from isoformer.training.pretrain_corpus import Corpus

if TYPE_CHECKING:
    from isoformer.training.pretrain_loop import MaskedLanguageModel

_ARCHITECTURE: Final[Mapping[Modality, str]] = {
    "protein": "ESM-2 (pre-norm, rotary positions, GELU feed-forward, token dropout)",
    "dna": "Nucleotide Transformer v2 (pre-norm, rotary positions, gated SiLU feed-forward, 6-mer tokens)",
    "rna": "Nucleotide Transformer v2 (pre-norm, rotary positions, gated SiLU feed-forward, 6-mer tokens)",
}

_START: Final = """
The embedding of the 6-mers did not start at random: it started as a random rotation of their letters and of
their counts of 1-, 2- and 3-mers, with noise. Part of what the features say about composition is that
start's, not the training's; random weights of this encoder (`random_seed`) do not have it."""


def export(
    storage: Storage,
    prefix: str,
    model: MaskedLanguageModel,
    *,
    card: str,
    modality: Modality,
    settings: str,
) -> None:
    """Write the files under `prefix`, the weights last. EncoderError where a weight is not finite."""
    from safetensors.torch import save

    halves = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    bad = [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise EncoderError(f"{prefix}: weights that float16 cannot hold: {', '.join(bad[:4])}")
    config = json.dumps(published_config(model.esm.config, modality), indent=2) + "\n"
    storage.write_bytes(f"{prefix}/config.json", config.encode())
    storage.write_bytes(f"{prefix}/model_card.md", card.encode())
    storage.write_bytes(f"{prefix}/pretrain.yaml", settings.encode())
    storage.write_bytes(f"{prefix}/model.safetensors", io.BytesIO(save(halves, {"format": "pt"})).getvalue())


def published_config(architecture: TransformerConfig, modality: Modality) -> dict[str, Any]:
    """config.json under the published names."""
    sizes = architecture.model_dump(exclude={"gated_feed_forward"})
    return {
        "model_type": "esm",
        "architectures": ["EsmForMaskedLM"],
        **sizes,
        "pad_token_id": esm2.PAD_ID if modality == "protein" else ntv2.PAD_ID,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "hidden_act": "gelu" if modality == "protein" else "silu (gated)",
        "add_bias_fnn": not architecture.gated_feed_forward,
        "tie_word_embeddings": True,
        "is_folding_model": False,
    }


def model_card(
    name: str, modality: Modality, architecture: TransformerConfig, corpus: Corpus, facts: Mapping[str, Any]
) -> str:
    """What the weights are, what they were made from and what they are not.

    `facts`: settings and last metrics.
    """
    metrics = facts["metrics"]
    counts = "\n".join(
        f"- {reason.replace('_', ' ')}: {number:,}" for reason, number in corpus.counts.items()
    )
    files = [f"`{source}`" for source in corpus.sources]
    sources = "\n".join(f"- {line}" for line in [*files, *facts["source_notes"]])
    unit = "residue" if modality == "protein" else "6-mer token"
    start = "" if modality == "protein" else _START
    return f"""# {name}

A **tiny** {modality} language model, trained from scratch by this project's own `pretrain` job so that a
pre-trained encoder of this family can be shipped and used offline. It is not the published model of that
family, shares no weight with it, and is thousands of times less trained: expect features, not state of the
art.

- Architecture: {_ARCHITECTURE[modality]}
- Size: {architecture.num_hidden_layers} layers, width {architecture.hidden_size}, \
{architecture.num_attention_heads} heads, feed-forward {architecture.intermediate_size}, \
vocabulary {architecture.vocab_size}, at most {architecture.max_position_embeddings} tokens, \
{architecture.parameter_count:,} parameters (trunk)
- Stored in float16, computed in float32. Licence of the weights: Apache-2.0.

## Data
{facts["data"]}

Sources:
{sources}

Counts:
{counts}

Held out: no sequence of the genes in the split(s) {facts["held_out"]} was read{facts["excluded_genes"]};
the genes of the validation split were read for the validation loss alone. Related sequences of other genes
(paralogs, overlapping or antisense transcripts) may still be near-copies of held-out ones, and these are
chromosomes 21, 22 (part) and Y of GRCh37 alone. No expression value was used.

## Training
Masked language modelling, 15% of the tokens chosen (80% mask, 10% random, 10% kept); AdamW, peak learning
rate {facts["learning_rate"]} (the embedding's times {facts["embedding_rate_share"]}), \
{facts["warmup_steps"]} warm-up steps, cosine decay, batches of about {facts["batch_tokens"]:,} tokens, \
seed {facts["seed"]}.
{int(metrics["step"]):,} steps, {int(metrics["tokens"]):,} tokens (epoch {int(metrics["epoch"]) + 1}), \
{metrics["seconds"] / 60:.0f} minutes, {facts["workers"]} CPU process(es) of one thread.{start}

## How well it predicts a masked {unit} of held-out genes
| | perplexity | accuracy |
|---|---|---|
| uniform | {metrics["uniform_perplexity"]:.1f} | {1 / metrics["uniform_perplexity"]:.4f} |
| letter frequencies (unigram) | {metrics["unigram_perplexity"]:.1f} | {metrics["unigram_accuracy"]:.4f} |
| **this model** | **{metrics["validation_perplexity"]:.1f}** | **{metrics["validation_accuracy"]:.4f}** |

On {int(metrics["validation_places"]):,} masked places of the validation genes. Training loss at the end: \
{metrics["train_loss"]:.3f} nats, validation loss {metrics["validation_loss"]:.3f} nats.
"""

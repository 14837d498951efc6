"""pretrain: a prepared dataset in, a small masked-language-model encoder out.

    read the corpus → pack and mask → train on Ray Train, validating on held-out genes → export at each
    validation

Writes `<root>/encoders/<name>/` (config.json, model.safetensors, model_card.md, pretrain.yaml), a folder
that `EncoderChoice.weights` takes, and checkpoints under `<root>/pretraining/<name>/`: a run with the same
name goes on from the last one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from isoformer.config import FrozenConfig, build, to_yaml
from isoformer.encoders import esm2
from isoformer.encoders import nucleotide_transformer as ntv2
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.errors import ClusterError
from isoformer.schema import Modality, Split
from isoformer.storage import open_storage
from isoformer.training.pretrain_batches import alphabet_of, known_stretches
from isoformer.training.pretrain_corpus import Corpus, CorpusRequest, read_corpus, read_gene_list
from isoformer.training.ray_storage import ray_storage

if TYPE_CHECKING:
    from isoformer.training.pretrain_loop import MaskedLanguageModel

FAILURES_FORGIVEN: Final = 2
_DATA_TEXT: Final[dict[Modality, str]] = {
    "protein": "Proteins of the dataset's coding transcripts, each distinct one once.",
    "rna": "Spliced transcripts, each distinct one once; 6-mers in a random frame.",
    "dna": "Windows around each distinct TSS, and random windows of the genome; both strands, random frames.",
}


class PretrainConfig(FrozenConfig):
    """One small encoder: ESM-2's architecture for proteins, Nucleotide Transformer v2's for DNA and RNA."""

    name: str = Field(default="ntv2-tiny-rna", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    modality: Modality = "rna"
    width: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    feed_forward_width: int = Field(default=256, ge=8)
    max_tokens: int = Field(default=512, ge=8)

    steps: int = Field(default=2000, ge=1)
    max_minutes: float | None = Field(default=None, gt=0, description="ends earlier; the schedule follows")
    batch_tokens: int = Field(default=4096, ge=16)
    learning_rate: float = Field(default=1e-3, gt=0)
    embedding_rate_share: float = Field(default=1.0, gt=0, description="the embedding's, relative to that")
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    validate_every_steps: int = Field(default=200, ge=1)
    validation_tokens: int = Field(default=60_000, ge=16)
    seed: int = 0

    held_out_splits: tuple[Split, ...] = ("test",)
    exclude_genes: str | None = Field(default=None, description="file of more genes to leave out, one a line")
    genome_windows: int = Field(default=0, ge=0, description="DNA: random windows beside those around TSSs")
    source_notes: tuple[str, ...] = Field(default=(), description="sources and licences, for the model card")
    workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1, gt=0)
    cache_dir: str | None = Field(default=None, description="for the reference; null: a temporary folder")


@dataclass(frozen=True)
class PretrainResult:
    """Where the encoder is and how well it predicts masked tokens."""

    name: str
    uri: str
    metrics: dict[str, float]


def pretrain(config: PretrainConfig, root: str) -> PretrainResult:
    """Train and export one encoder. Ray must be connected by the caller.

    InputError for an empty corpus or a missing file, ClusterError where the workers fail for good.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    read_gene_list(config.exclude_genes)
    storage_path, filesystem = ray_storage(open_storage(root), "pretraining")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "root": root},
        scaling_config=ScalingConfig(
            num_workers=config.workers, resources_per_worker={"CPU": config.cpus_per_worker}
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=FAILURES_FORGIVEN),
        ),
    )
    result = trainer.fit()
    if result.error is not None:
        raise ClusterError(f"pre-training {config.name} failed: {result.error}")
    metrics = {name: float(value) for name, value in (result.metrics or {}).items()}
    return PretrainResult(config.name, f"{open_storage(root).uri}/{encoder_prefix(config.name)}", metrics)


def train_worker(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs. `arguments`: the configuration as plain data, and the root."""
    import torch
    from ray import train
    from ray.train.torch import prepare_model

    from isoformer.training.pretrain_loop import fit

    config = build(PretrainConfig, arguments["config"])
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    context = train.get_context()
    corpus = load_corpus(config, arguments["root"])
    checkpoint = train.get_checkpoint()

    def report(metrics: dict[str, float], model: MaskedLanguageModel, save: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if context.get_world_rank() == 0:
                export_encoder(config, arguments["root"], model, corpus, metrics)
                save(Path(folder))
                train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))
            else:
                train.report(metrics)

    def run(resume_from: Path | None) -> None:
        fit(
            config,
            architecture_of(config),
            alphabet_of(config.modality, config.max_tokens),
            corpus,
            report=report,
            resume_from=resume_from,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            wrap=prepare_model if config.workers > 1 else lambda model: model,
        )

    if checkpoint is None:
        run(None)
    else:
        with checkpoint.as_directory() as folder:
            run(Path(folder))


def load_corpus(config: PretrainConfig, root: str) -> Corpus:
    """The sequences that this configuration trains on, cleaned."""
    with tempfile.TemporaryDirectory(prefix="isoformer-pretrain-") as work:
        corpus = read_corpus(
            root,
            CorpusRequest(
                modality=config.modality,
                excluded_splits=frozenset(config.held_out_splits),
                excluded_genes=read_gene_list(config.exclude_genes),
                window_bases=ntv2.WORD * config.max_tokens,
                genome_windows=config.genome_windows,
                seed=config.seed,
                cache_dir=config.cache_dir or work,
            ),
        )
    return Corpus(
        known_stretches(corpus.train, config.modality),
        known_stretches(corpus.validation, config.modality),
        corpus.counts,
        corpus.sources,
    )


def architecture_of(config: PretrainConfig) -> TransformerConfig:
    """The transformer's sizes; vocabulary and constants are the family's published ones."""
    is_protein = config.modality == "protein"
    return TransformerConfig(
        vocab_size=33 if is_protein else ntv2.vocabulary_size(2),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward_width,
        max_position_embeddings=config.max_tokens,
        layer_norm_eps=1e-5 if is_protein else 1e-12,
        mask_token_id=esm2.MASK_ID if is_protein else ntv2.MASK_ID,
        token_dropout=is_protein,
        gated_feed_forward=not is_protein,
    )


def export_encoder(
    config: PretrainConfig, root: str, model: MaskedLanguageModel, corpus: Corpus, metrics: dict[str, float]
) -> None:
    """Write the encoder's folder as it stands now, model card included."""
    from isoformer.training.pretrain_export import export, model_card

    excluded = config.exclude_genes
    facts = {
        **config.model_dump(mode="json"),
        "metrics": metrics,
        "data": _DATA_TEXT[config.modality],
        "held_out": ", ".join(config.held_out_splits) or "(none)",
        "excluded_genes": f", nor of those in `{Path(excluded).name}`" if excluded else "",
    }
    card = model_card(config.name, config.modality, model.esm.config, corpus, facts)
    export(
        open_storage(root),
        encoder_prefix(config.name),
        model,
        card=card,
        modality=config.modality,
        settings=to_yaml(config),
    )


def encoder_prefix(name: str) -> str:
    """Where a root keeps the encoders trained in it."""
    return f"encoders/{name}"

"""The masked-language-model training loop: a corpus and a configuration in, weights out. No Ray.

`fit` may be stopped at any instant and called again with the last saved state: weights, optimiser,
schedule, and the place in the data continue as they were. Validation is on fixed batches of held-out genes,
beside two baselines: every letter equally likely (uniform) and letters by their frequency (unigram).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.packed_transformer import (
    START_DEVIATION,
    MaskedLanguageHead,
    PackedTransformer,
    initialise,
)
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.errors import EncoderError
from isoformer.torch_file import TorchFileError, read_torch_file
from isoformer.training.pretrain_batches import (
    Alphabet,
    BatchSource,
    MaskedBatch,
    letter_counts,
    validation_batches,
)
from isoformer.training.pretrain_corpus import Corpus

if TYPE_CHECKING:
    from isoformer.training.pretrain import PretrainConfig

# T tokens, V vocabulary

ADAM_BETAS = (0.9, 0.98)  # ESM-2's


class MaskedLanguageModel(nn.Module):
    """Trunk and head under the published names: its state dict is what is shipped."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.esm = PackedTransformer(config)
        self.lm_head = MaskedLanguageHead(config)

    def forward(self, token_ids_T: Tensor, offsets: list[int], places: Tensor) -> Tensor:
        """Logits (chosen places, V)."""
        hidden_TD = self.esm(token_ids_T, offsets)
        return self.lm_head(hidden_TD[places], self.esm.embeddings["word_embeddings"].weight)


@dataclass
class Progress:
    """Where a run stands; saved and restored whole."""

    step: int = 0
    epoch: int = 0
    next_batch: int = 0
    tokens: int = 0
    seconds: float = 0.0


Report = Callable[[dict[str, float], MaskedLanguageModel, Callable[[Path], None]], None]
"""Called at each validation with the metrics, the model, and a function that saves the state."""


def fit(
    config: PretrainConfig,
    architecture: TransformerConfig,
    alphabet: Alphabet,
    corpus: Corpus,
    *,
    report: Report,
    resume_from: Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> dict[str, float]:
    """Train to `config.steps` (or `max_minutes`).

    Returns the last metrics. `wrap` makes a data-parallel model.
    """
    counts = torch.from_numpy(letter_counts(corpus.train, alphabet, architecture.vocab_size))
    fixed = validation_batches(
        corpus.validation,
        alphabet,
        batch_tokens=config.batch_tokens,
        most_tokens=config.validation_tokens,
        seed=config.seed,
    )
    baselines = _baselines(fixed, counts)
    model = new_model(architecture, alphabet, counts, config.seed)
    optimiser = _optimiser(model, config)
    progress = _restore(resume_from, model, optimiser) if resume_from else Progress()
    parallel = wrap(model)
    source = BatchSource(corpus.train, alphabet, batch_tokens=config.batch_tokens, seed=config.seed)
    metrics: dict[str, float] = {}
    losses: list[float] = []
    started = time.monotonic() - progress.seconds
    for batch in _batches_from(source, progress, rank, world_size):
        progress.seconds = _agreed(time.monotonic() - started, world_size)
        done = _done(config, progress)
        if done >= 1:
            break
        losses.append(_step(parallel, optimiser, batch, learning_rate_at(config, progress.step, done)))
        progress.step += 1
        progress.tokens += len(batch.token_ids) * world_size
        if progress.step % config.validate_every_steps == 0:
            metrics = _report(report, model, optimiser, progress, fixed, baselines, losses)
            losses = []
    if losses or not metrics:
        metrics = _report(report, model, optimiser, progress, fixed, baselines, losses)
    return metrics


def new_model(
    architecture: TransformerConfig, alphabet: Alphabet, counts: Tensor, seed: int
) -> MaskedLanguageModel:
    """Random weights, 6-mers with their letters in mind; the head's bias is the letters' log frequency."""
    model = MaskedLanguageModel(architecture)
    initialise(model, seed)
    if (start := alphabet.embedding_start(architecture.hidden_size, seed)) is not None:
        embedding = cast(nn.Embedding, model.esm.embeddings["word_embeddings"])
        letters = torch.from_numpy(alphabet.letter_ids).long()
        embedding.weight.data[letters] = START_DEVIATION * torch.from_numpy(start)
    frequency = (counts + 1e-3) / (counts + 1e-3).sum()
    model.lm_head.bias.data.copy_(frequency.log().float())
    return model


def learning_rate_at(config: PretrainConfig, step: int, done: float) -> float:
    """Linear warm-up, then a cosine down to a tenth of a percent of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def validate(model: MaskedLanguageModel, batches: list[MaskedBatch]) -> dict[str, float]:
    """Mean loss in nats, perplexity and accuracy over the chosen places."""
    model.eval()
    loss = correct = places = 0.0
    with torch.no_grad():
        for batch in batches:
            logits = model(torch.from_numpy(batch.token_ids), batch.offsets, torch.from_numpy(batch.places))
            targets = torch.from_numpy(batch.targets)
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            correct += float((logits.argmax(dim=-1) == targets).sum())
            places += len(targets)
    return {
        "validation_loss": loss / places,
        "validation_perplexity": math.exp(loss / places),
        "validation_accuracy": correct / places,
        "validation_places": places,
    }


def _baselines(batches: list[MaskedBatch], counts: Tensor) -> dict[str, float]:
    frequency = counts / counts.sum()
    targets = torch.cat([torch.from_numpy(batch.targets) for batch in batches])
    return {
        "uniform_perplexity": float((counts > 0).sum()),
        "unigram_perplexity": float(torch.exp(-frequency[targets].log().mean())),
        "unigram_accuracy": float((targets == frequency.argmax()).double().mean()),
    }


def _optimiser(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW without decay on vectors; the embedding moves slower, so that it keeps what its start knows."""
    named = dict(model.named_parameters())
    embedding = [p for name, p in named.items() if "word_embeddings" in name]
    matrices = [p for name, p in named.items() if p.ndim > 1 and "word_embeddings" not in name]
    vectors = [p for p in named.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_share": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_share": 1.0},
        {"params": embedding, "weight_decay": 0.0, "rate_share": config.embedding_rate_share},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAM_BETAS)


def _batches_from(
    source: BatchSource, progress: Progress, rank: int, world_size: int
) -> Iterator[MaskedBatch]:
    """Batches without an end from the place that `progress` names, which moves along.

    Each rank takes its turn.
    """
    while True:
        batches = source.epoch(progress.epoch)
        last = len(batches) // world_size * world_size or len(batches)
        while progress.next_batch < last:
            index = min(progress.next_batch + rank, last - 1)
            progress.next_batch += world_size
            yield source.batch(batches[index], progress.epoch, index)
        progress.epoch += 1
        progress.next_batch = 0


def _done(config: PretrainConfig, progress: Progress) -> float:
    by_time = progress.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
    return max(progress.step / config.steps, by_time)


def _agreed(seconds: float, world_size: int) -> float:
    """The longest time of any rank: all stop at the same step."""
    if world_size == 1:
        return seconds
    longest = torch.tensor(seconds, dtype=torch.float64)
    torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
    return float(longest)


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: MaskedBatch, learning_rate: float
) -> float:
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group["rate_share"]
    logits = model(torch.from_numpy(batch.token_ids), batch.offsets, torch.from_numpy(batch.places))
    loss = functional.cross_entropy(logits, torch.from_numpy(batch.targets))
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    optimiser.step()
    return loss.item()


def _report(
    report: Report,
    model: MaskedLanguageModel,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    fixed: list[MaskedBatch],
    baselines: dict[str, float],
    losses: list[float],
) -> dict[str, float]:
    metrics = {
        **validate(model, fixed),
        **baselines,
        "train_loss": sum(losses) / max(1, len(losses)),
        "step": float(progress.step),
        "epoch": float(progress.epoch),
        "tokens": float(progress.tokens),
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(1e-9, progress.seconds),
    }
    report(metrics, model, lambda folder: _save(folder, model, optimiser, progress))
    return metrics


def _save(
    folder: Path, model: MaskedLanguageModel, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress).copy(),
    }
    torch.save(state, folder / "state.pt")


def _restore(folder: Path, model: MaskedLanguageModel, optimiser: torch.optim.Optimizer) -> Progress:
    try:
        state: Any = read_torch_file(folder / "state.pt")
        progress = Progress(**state["progress"])
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except RuntimeError as error:
        raise EncoderError(f"{folder}: checkpoint of another architecture: {error}") from None
    except (TorchFileError, TypeError, KeyError, AttributeError) as error:
        raise EncoderError(f"{folder}/state.pt: not a checkpoint of pre-training ({error})") from None
    return progress

"""Small roots that were prepared, embedded and trained for real, for tests of what uses a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embeddings.test_plan import do_work
from isoformer.embeddings.config import EmbedConfig, EncoderJob, encoder_passes
from isoformer.embeddings.pipeline import embed
from isoformer.embeddings.plan import plan
from isoformer.embeddings.shard_sequences import TranscriptsSource, cut_window
from isoformer.manifest import read_manifest, read_shard
from isoformer.model import ModelConfig
from isoformer.sequence_model import TranscriptSequences
from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.data import load_dataset
from isoformer.training.loop import predict
from isoformer.training.runs import RunFolder, run_settings
from isoformer.training.workers import fit_in_folder
from tiny_dataset import write_dataset

MODEL = ModelConfig(width=8, heads=2)
COMPOSITION = (
    EncoderJob(name="composition-dna", resolution="bins:4"),
    EncoderJob(name="composition-rna", resolution="tokens"),
    EncoderJob(name="composition-protein", resolution="pooled"),
)


def trained_root(
    root: Path, jobs: Sequence[EncoderJob] = COMPOSITION, model: ModelConfig = MODEL, dtype: str = "f16"
) -> Path:
    """Prepared, embedded with `jobs`, trained as run `one`; the first gene's protein is all X."""
    write_dataset(str(root), shards=2, genes_per_shard=6, poison_protein=True)
    config = EmbedConfig.model_validate({"encoders": jobs, "dtype": dtype})
    do_work(plan(config, str(root)))
    embed(config, str(root))
    keys = {done.spec.modality: done.keys[0] for done in encoder_passes(config, str(root))}
    train_run(root, TrainConfig(keys=keys, model=model, epochs=3, batch_size=8, learning_rate=1e-2))
    return root


def train_run(root: Path, config: TrainConfig, run: str = "one") -> None:
    """One finished run under the root."""
    data = load_dataset(str(root), config.keys, encoders=config.model.encoders)
    folder = RunFolder(open_storage(root), run)
    folder.claim(run_settings(config, data, run), resume=False)
    fit_in_folder(config, data, folder, outbox=lambda _: None)


def transcripts_of(root: Path) -> list[TranscriptSequences]:
    """Every transcript of the root, its window cut from the reference."""
    storage = open_storage(root)
    manifest = read_manifest(storage)
    source = TranscriptsSource.of(storage, manifest)
    return [
        TranscriptSequences(row["transcript_id"], cut_window(source, row), row["rna"], row["protein"])
        for index in range(len(manifest.shards))
        for row in read_shard(storage, index).to_pylist()
    ]


def cached_predictions(root: Path, run: str = "one") -> NDArray[np.float32]:
    """What the training code predicts of the cached embeddings, in the order of `transcripts_of`."""
    folder = RunFolder(open_storage(root), run)
    train = folder.settings().train
    data = load_dataset(str(root), train.keys, encoders=train.model.encoders)
    return predict(folder.model(), data, np.arange(len(data)))

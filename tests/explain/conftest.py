"""One root of made genes, prepared, embedded by the shipped tiny encoders and trained for real; read only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from embeddings.test_plan import do_work
from explain.made_gene import Gene, gtf_lines, made_gene
from isoformer.embeddings.config import EmbedConfig, EncoderJob, encoder_passes
from isoformer.embeddings.pipeline import embed
from isoformer.embeddings.plan import plan
from isoformer.encoders.registry import EncoderChoice
from isoformer.model import EncoderInside, ModelConfig
from isoformer.planning import PrepareConfig
from isoformer.sequence_model import SequenceModel
from isoformer.splits import SplitConfig
from isoformer.training.config import TrainConfig
from isoformer.transcripts import prepare, run_here
from predict.trained import train_run
from prepare.tiny import transcript_id, write_annotation, write_expression, write_genome

WINDOW = 3072
GENES = 10
TISSUES = ("Liver", "Brain", "Testis")
JOBS = (
    EncoderJob(name="ntv2-tiny-dna", resolution="bins:8"),
    EncoderJob(name="ntv2-tiny-rna", resolution="bins:6"),
    EncoderJob(name="esm2-tiny", resolution="tokens"),
)


@dataclass(frozen=True)
class Made:
    """The root, its annotation, and its genes by transcript id; gene n lies on chromosome chr<n>."""

    root: Path
    annotation: Path
    genes: dict[str, Gene]

    def model(self, run: str = "cached") -> SequenceModel:
        return SequenceModel.from_run(str(self.root), run)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs: `cached` (frozen encoders, cross-attention), `inside` (the RNA encoder learns with the model)."""
    folder = tmp_path_factory.mktemp("made")
    genes = [made_gene(n, "+-"[n % 2], flank=1700, codons_of_cds=60) for n in range(GENES)]
    ids = [transcript_id(n) for n in range(GENES)]
    genome = write_genome(folder, {f"chr{n}": gene.letters for n, gene in enumerate(genes)})
    annotation = write_annotation(
        folder, "".join(gtf_lines(gene, n, f"chr{n}") for n, gene in enumerate(genes))
    )
    config = PrepareConfig(
        annotation=str(annotation),
        reference=(str(genome),),
        expression=str(write_expression(folder, ids, TISSUES)),
        targets=TISSUES,
        dna_window_bases=WINDOW,
        max_unknown_fraction=0.9,
        shards=2,
        split=SplitConfig(
            method="chromosome",
            validation_chromosomes=("chr1", "chr2"),
            test_chromosomes=("chr3", "chr4", "chr5"),
        ),
    )
    root = folder / "root"
    prepare(config, str(root), run_shards=run_here)
    _train(root)
    return Made(root, annotation, dict(zip(ids, genes, strict=True)))


def _train(root: Path) -> None:
    jobs = EmbedConfig(encoders=JOBS)
    do_work(plan(jobs, str(root)))
    embed(jobs, str(root))
    keys = {done.spec.modality: done.keys[0] for done in encoder_passes(jobs, str(root))}
    model = ModelConfig(heads=4, zero_start=False)
    train = TrainConfig(keys=keys, model=model, epochs=2, batch_size=4, learning_rate=1e-3)
    train_run(root, train, "cached")
    rna = EncoderInside(encoder=EncoderChoice(name="ntv2-tiny-rna"), resolution="bins:6")
    inside = model.edited(modalities=("rna", "protein"), encoders={"rna": rna})
    learning = train.edited(keys={"protein": keys["protein"]}, model=inside, learning_rate=3e-3)
    train_run(root, learning, "inside")


@pytest.fixture(scope="session")
def cached(made: Made) -> SequenceModel:
    return made.model()

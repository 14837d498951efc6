"""Cut the demo's data from whole chromosomes: run once, its output is committed.

    python -m isoformer.demo_data.cut --data FOLDER [--out FOLDER]

In: hg19 chromosomes 21, 22 and Y, their annotation, and the table of principal coding transcripts with
measured gene TPM (`README.md` names the files). Out: a bgzip FASTA in true hg19 coordinates where all but the
transcripts' exons and 16,384 bases around each TSS is N; their lines of the annotation; their TPM; digests of
their published sequences.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click
import polars as pl

from isoformer.demo_data import ANNOTATION, DIGESTS, EXPRESSION, GENOME
from isoformer.schema import TISSUES
from isoformer.sequences import normalise, sequence_digest, window_bounds
from isoformer.sources.annotation import read_annotation
from isoformer.sources.files import decompressed, existing_file, open_bytes

CHROMOSOMES: Final = {
    "chr21": "chr21.hg19.fa.gz",
    "chr22": "chr22.hg19.fa.gz",
    "chrY": "Homo_sapiens.GRCh37.75.dna.chromosome.Y.fa.gz",
}
SOURCE_ANNOTATION: Final = "annotation.hg19.gtf.gz"
SOURCE_TABLE: Final = "gene_tpm_30tissues.published_layout.csv.gz"
WINDOW_BASES: Final = 16_384
_LINE_BASES: Final = 60
_TRANSCRIPT_ID = re.compile(rb'transcript_id "([^"]+)"')
_GENE_ID = re.compile(rb'gene_id "([^"]+)"')


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent)
def main(data: Path, out: Path) -> None:
    """Cut the demo's files from the folder DATA and say how large they are."""
    out.mkdir(parents=True, exist_ok=True)
    table = pl.read_csv(io.BytesIO(decompressed(data / SOURCE_TABLE)), infer_schema=False)
    transcripts, genes = set(table["transcript_id_gtex"]), set(table["gene_id_gtex"])
    models = read_annotation(data / SOURCE_ANNOTATION).transcripts
    cut_genome(models.filter(pl.col("transcript_id").is_in(list(transcripts))), data, out / GENOME)
    cut_annotation(data / SOURCE_ANNOTATION, transcripts, genes, out / ANNOTATION)
    write_expression(table, out / EXPRESSION)
    write_digests(table, out / DIGESTS)
    for name in (GENOME, ANNOTATION, EXPRESSION, DIGESTS):
        click.echo(f"{(out / name).stat().st_size:>10,} bytes  {out / name}")


def cut_genome(models: pl.DataFrame, data: Path, out: Path) -> None:
    """Write the FASTA with everything N but the kept stretches; names and soft-masking stay as the sources
    have them.
    """
    import pysam

    kept = kept_stretches(models)
    with pysam.BGZFile(str(out), "wb", None) as fasta:
        for chromosome, name in CHROMOSOMES.items():
            header, bases = _chromosome(existing_file(data / name, "chromosome"))
            fasta.write(b">" + header + b"\n")
            masked = masked_outside(bases, kept[chromosome])
            for start in range(0, len(masked), _LINE_BASES * 1000):
                fasta.write(_wrapped(masked[start : start + _LINE_BASES * 1000]))


def kept_stretches(models: pl.DataFrame) -> dict[str, list[tuple[int, int]]]:
    """Plus-strand stretches by chromosome: the window around each TSS, and the exons."""
    kept: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in models.iter_rows(named=True):
        tss_bp = row["exon_starts"][0] if row["strand"] == "+" else row["exon_ends"][-1] - 1
        kept[row["chromosome"]].append(window_bounds(tss_bp, row["strand"], WINDOW_BASES))
        kept[row["chromosome"]].extend(zip(row["exon_starts"], row["exon_ends"], strict=True))
    return kept


def masked_outside(bases: bytes, stretches: Iterable[tuple[int, int]]) -> bytes:
    """The same length, with N wherever no stretch lies."""
    masked = bytearray(b"N" * len(bases))
    for start_bp, end_bp in stretches:
        inside = slice(max(0, start_bp), min(end_bp, len(bases)))
        masked[inside] = bases[inside]
    return bytes(masked)


def cut_annotation(source: Path, transcripts: set[str], genes: set[str], out: Path) -> None:
    """The annotation's own lines of these transcripts and of their genes."""
    lines = []
    with open_bytes(source) as file:
        for line in file:
            transcript, gene = _TRANSCRIPT_ID.search(line), _GENE_ID.search(line)
            wanted = transcript.group(1).decode() in transcripts if transcript else False
            gene_line = transcript is None and gene is not None and gene.group(1).decode() in genes
            if line.startswith(b"#") or wanted or gene_line:
                lines.append(line)
    _write_gzip(out, b"".join(lines))


def write_expression(table: pl.DataFrame, out: Path) -> None:
    """The measured gene TPM as a wide table of transcript × tissue, digit for digit."""
    rows = table.select(pl.col("transcript_id_gtex").alias("transcript_id"), *TISSUES).sort("transcript_id")
    _write_gzip(out, _tsv(rows.columns, rows.rows()))


def write_digests(table: pl.DataFrame, out: Path) -> None:
    """Digests of the published table's whole RNA and protein: what extraction must arrive at."""
    rows = []
    for row in table.sort("transcript_id_gtex").iter_rows(named=True):
        rna, protein = normalise(row["RNA"], "rna")[0], normalise(row["Protein"], "protein")[0]
        lengths = (len(row["5UTR"] or ""), len(row["CDS"]), len(row["3UTR"] or ""))
        rows.append((row["transcript_id_gtex"], sequence_digest(rna), sequence_digest(protein), *lengths))
    names = [
        "transcript_id",
        "rna_digest",
        "protein_digest",
        "five_utr_bases",
        "cds_bases",
        "three_utr_bases",
    ]
    out.write_bytes(_tsv(names, rows))


def _chromosome(path: Path) -> tuple[bytes, bytes]:
    with open_bytes(path) as file:
        header = file.readline().rstrip()[1:]
        return header, file.read().replace(b"\n", b"")


def _wrapped(bases: bytes) -> bytes:
    return b"".join(bases[start : start + _LINE_BASES] + b"\n" for start in range(0, len(bases), _LINE_BASES))


def _tsv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue().encode()


def _write_gzip(path: Path, data: bytes) -> None:
    """Without a time stamp, so that the same cut is the same file."""
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()

"""The doors of genomes, gene models and variants, and an independent reading of each.

What was accepted is compared with what a few plain lines of Python read from the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.door import Door
from fuzz.prepared import check_prepared
from fuzz.seeds import AWKWARD, GENOME, GFF3, GTF, MODEL_WORDS, WORDS, packed_seeds, unpacked
from isoformer.sources.annotation import read_annotation
from isoformer.sources.reference import Reference, build_reference

Exons = dict[tuple[str, str], list[tuple[int, int]]]
IUPAC = "ACGTUNRYSWKMBDHV"
VCF = b"""##fileformat=VCFv4.2
##contig=<ID=chr1,length=36>
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
chr1\t6\trs1\tC\tT\t.\t.\t.
chr1\t7\t.\tCA\tC,<DEL>\t.\t.\t.
"""


def fasta(data: bytes, folder: Path) -> None:
    """The file as it is: plain, or whatever it begins as."""
    (folder / "genome.fa").write_bytes(data)
    _check_genome(folder / "genome.fa", lambda: unpacked(data))


def fasta_compressed(data: bytes, folder: Path) -> None:
    """The text as gzip, or as bgzip where its length is odd."""
    (folder / "genome.fa").write_bytes(
        bgzip(data, folder) if len(data) % 2 else gzip.compress(data, 1, mtime=0)
    )
    _check_genome(folder / "genome.fa", lambda: data)


def bgzip(data: bytes, folder: Path) -> bytes:
    import pysam

    path = folder / "packed.gz"
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(data)
    return path.read_bytes()


def _check_genome(path: Path, text: Callable[[], bytes]) -> None:
    reference = Reference.open(build_reference([path], path.parent / "built")[0])
    records = fasta_records(text())
    assert reference.lengths == {name: len(bases) for name, bases in records}, "names and lengths"
    for name, bases in records:
        assert set(bases) <= set(IUPAC), f"{name} holds letters of no alphabet: {sorted(set(bases))}"
        bases = "".join("T" if b in "TU" else b if b in "ACG" else "N" for b in bases)
        third = len(bases) // 3
        assert reference.fetch(name, 0, len(bases)) == bases, "the whole"
        assert reference.fetch(name, third, 2 * third) == bases[third : 2 * third], "a slice"
        assert reference.fetch(name, -2, len(bases) + 1) == f"NN{bases}N", "past the ends"


def fasta_records(text: bytes) -> list[tuple[str, str]]:
    """(name, letters in upper case), white space left out."""
    records: list[tuple[str, list[str]]] = []
    for line in text.decode("utf-8", "replace").split("\n"):
        if line.startswith(">"):
            records.append(((line[1:].split() or [""])[0], []))
        elif line.strip():
            assert records, "letters before the first header"
            records[-1][1].append("".join(line.split()).upper())
    return [(name, "".join(parts)) for name, parts in records]


def gene_models(data: bytes, folder: Path) -> None:
    """GTF or GFF3: the same exons of the same transcripts, and every line counted."""
    (folder / "models.gtf").write_bytes(data)
    found = read_annotation(folder / "models.gtf")
    lines = list(_feature_lines(unpacked(data).decode("utf-8-sig")))
    assert found.counts["lines"] == len(lines), f"{found.counts['lines']} lines counted of {len(lines)}"
    exons: Exons = {
        (row["transcript_id"], row["chromosome"]): list(
            zip(row["exon_starts"], row["exon_ends"], strict=True)
        )
        for row in found.transcripts.iter_rows(named=True)
    }
    is_gtf = any(re.search(r'gene_id "?[^=;]', line[8]) for line in lines[:200])
    assert exons == _exons(lines, _gtf_ids if is_gtf else _gff3_ids)
    assert found.counts["transcripts"] == len(found.transcripts)


def _feature_lines(text: str) -> Iterator[list[str]]:
    for line in re.split(r"\r\n|\n|\r", text):
        if line.startswith("##FASTA"):
            return
        if line and not line.startswith("#"):
            fields = line.split("\t")
            assert len(fields) == 9, f"a line of {len(fields)} fields was accepted"
            yield fields


def _exons(lines: list[list[str]], ids: object) -> Exons:
    found: Exons = defaultdict(list)
    for fields in lines:
        assert re.fullmatch(r"[+]?\d+", fields[3]) and re.fullmatch(r"[+]?\d+", fields[4]), f"{fields[3:5]}"
        if fields[2] == "exon" and fields[6] in "+-":
            for identifier in ids(fields[8]):  # type: ignore[operator]
                found[identifier, fields[0]].append((int(fields[3]) - 1, int(fields[4])))
    return {key: sorted(spans, key=lambda span: span[0]) for key, spans in found.items()}


def _gtf_ids(attributes: str) -> list[str]:
    found = re.search(r'(?:^|;)\s*transcript_id\s+"?([^";]*)', attributes)
    return [found[1]] if found and found[1] else []


def _gff3_ids(attributes: str) -> list[str]:
    found = re.search(r"(?:^|;)\s*Parent=([^;]*)", attributes)
    names = found[1].split(",") if found else []
    return [bare for name in names if (bare := re.sub(r"^(transcript:|gene:|rna-|gene-)", "", name))]


def annotation(data: bytes, folder: Path) -> None:
    """Gene models with a genome, through the whole of prepare."""
    (folder / "models.gtf").write_bytes(data)
    (folder / "genome.fa").write_bytes(GENOME)
    settings = {
        "annotation": str(folder / "models.gtf"),
        "reference": [str(folder / "genome.fa")],
        "keep_unmeasured": True,
        "targets": ["Liver"],
    }
    check_prepared(folder, settings, data)


def variants(data: bytes, folder: Path) -> None:
    """VCF: one row for every allele, on the reference's own letters."""
    from isoformer.explain.vcf import read_variants

    (folder / "genome.fa").write_bytes(GENOME)
    (folder / "x.vcf").write_bytes(data)
    reference = Reference.open(folder / "genome.fa")
    for variant in read_variants(folder / "x.vcf", reference, max_allele_bases=50):
        assert (variant.edit is None) == bool(variant.reason), variant
        if variant.edit is not None:
            start, end = variant.edit.start, variant.edit.end
            ref = variant.ref.upper().replace("U", "T")
            assert 0 <= start <= end <= reference.length(variant.contig), variant
            assert reference.fetch(variant.contig, start, end) in ref, variant


csv.field_size_limit(1 << 20)

DOORS = (
    Door(
        "fasta", fasta, packed_seeds(GENOME), (*AWKWARD, b">", b"\n>", b">chr1\n", b"N" * 8), ("genome.fa",)
    ),
    Door(
        "fasta compressed",
        fasta_compressed,
        (GENOME, GENOME + b"\n"),
        (*AWKWARD, b">", b"\n>"),
        ("genome.fa",),
    ),
    Door("gtf", gene_models, packed_seeds(GTF), MODEL_WORDS, ("models.gtf",)),
    Door("gff3", gene_models, packed_seeds(GFF3), MODEL_WORDS, ("models.gtf",)),
    Door("annotation", annotation, (GTF, GFF3), MODEL_WORDS, ("models.gtf", "transcript", "split")),
    Door(
        "vcf",
        variants,
        packed_seeds(VCF),
        (*WORDS, b"<DEL>", b"chr2", b"chr1", b"##contig", b"]chr1:2]", b"*"),
        ("x.vcf",),
    ),
)

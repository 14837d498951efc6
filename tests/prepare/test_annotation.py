"""Gene models from GTF and GFF3, GENCODE and Ensembl flavours; lines that are not what they should be."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from isoformer.errors import InputError
from isoformer.sources.annotation import read_annotation
from prepare.tiny import gtf_lines

GENCODE = gtf_lines(1, "chr1", "+", extra='tag "basic"; tag "cds_start_NF"; level 2;')
Line = tuple[str, int, int, str, str]


def _lines(chromosome: str, source: str, lines: list[Line], header: str = "##format") -> str:
    written = [
        f"{chromosome}\t{source}\t{feature}\t{start}\t{end}\t.\t+\t{frame}\t{attributes}"
        for feature, start, end, frame, attributes in lines
    ]
    return "\n".join([header, *written]) + "\n"


_GTF_ID = 'gene_id "ENSG1"; transcript_id "ENST1"; '
ENSEMBL_75 = _lines(
    "1",
    "processed_transcript",
    [
        ("gene", 6, 31, ".", 'gene_id "ENSG1"; gene_name "A"; gene_biotype "protein_coding";'),
        ("transcript", 6, 31, ".", _GTF_ID + 'gene_name "A"; gene_biotype "protein_coding"; '
         'transcript_source "havana"; tag "cds_start_NF";'),
        ("exon", 6, 12, ".", _GTF_ID + 'exon_number "1";'),
        ("CDS", 8, 12, "0", _GTF_ID + 'exon_number "1";'),
        ("exon", 23, 31, ".", _GTF_ID + 'exon_number "2";'),
        ("CDS", 23, 26, "1", _GTF_ID + 'exon_number "2";'),
        ("stop_codon", 27, 29, "0", _GTF_ID),
    ],
    header="#!genome-build GRCh37.p13",
)  # fmt: skip
_GFF3_ID = "gene_id=ENSG1.2;transcript_id=ENST1.3"
GENCODE_GFF3 = _lines(
    "chr1",
    "HAVANA",
    [
        ("gene", 6, 31, ".", "ID=ENSG1.2;gene_id=ENSG1.2;gene_type=protein_coding;gene_name=A"),
        ("transcript", 6, 31, ".", f"ID=ENST1.3;Parent=ENSG1.2;{_GFF3_ID};gene_name=A;"
         "transcript_type=protein_coding;tag=basic,cds_start_NF"),
        ("exon", 6, 12, ".", f"ID=exon:1;Parent=ENST1.3;{_GFF3_ID}"),
        ("CDS", 8, 12, "0", "ID=CDS:1;Parent=ENST1.3"),
        ("exon", 23, 31, ".", "ID=exon:2;Parent=ENST1.3"),
        ("CDS", 23, 29, "1", "ID=CDS:1;Parent=ENST1.3"),
    ],
)  # fmt: skip
_PARENT = "Parent=transcript:ENST1"
ENSEMBL_GFF3 = _lines(
    "1",
    "ensembl_havana",
    [
        ("chromosome", 1, 36, ".", "ID=chromosome:1"),
        ("gene", 6, 31, ".", "ID=gene:ENSG1;Name=A;biotype=protein_coding;gene_id=ENSG1;version=2"),
        ("mRNA", 6, 31, ".", "ID=transcript:ENST1;Parent=gene:ENSG1;Name=A-201;biotype=protein_coding;"
         "tag=cds_start_NF;transcript_id=ENST1;version=3"),
        ("five_prime_UTR", 6, 7, ".", _PARENT),
        ("exon", 6, 12, ".", _PARENT),
        ("CDS", 8, 12, "0", f"ID=CDS:ENSP1;{_PARENT}"),
        ("exon", 23, 31, ".", _PARENT),
        ("CDS", 23, 29, "1", f"ID=CDS:ENSP1;{_PARENT}"),
    ],
) + "###\n##FASTA\n>1\nACGT\n"  # fmt: skip


def _read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "annotation"
    path.write_bytes(gzip.compress(text.encode()))
    return read_annotation(path)


@pytest.mark.parametrize(
    ("text", "transcript", "gene", "biotype"),
    [
        (GENCODE, "ENST00000000001.1", "ENSG00000000001.1", "protein_coding"),
        (ENSEMBL_75, "ENST1", "ENSG1", "processed_transcript"),
        (GENCODE_GFF3, "ENST1.3", "ENSG1.2", "protein_coding"),
        (ENSEMBL_GFF3, "ENST1", "ENSG1", "protein_coding"),
    ],
    ids=["gencode-gtf", "ensembl75-gtf", "gencode-gff3", "ensembl-gff3"],
)
def test_every_flavour_gives_the_same_model(
    tmp_path: Path, text: str, transcript: str, gene: str, biotype: str
) -> None:
    annotation = _read(tmp_path, text)
    [row] = annotation.transcripts.to_dicts()
    assert (row["transcript_id"], row["gene_id"], row["biotype"]) == (transcript, gene, biotype)
    assert row["gene_name"] in {"A", "TINY1"}
    assert (row["strand"], row["strands"], row["lines"]) == ("+", 1, 1)
    assert (row["exon_starts"], row["exon_ends"]) == ([5, 22], [12, 31])
    assert (row["cds_starts"], row["cds_frames"]) == ([7, 22], [0, 1])
    assert max(row["cds_ends"] + (row["stop_ends"] or [])) == 29
    assert (row["cds_start_nf"], row["cds_end_nf"], row["seleno"]) == (True, False, False)
    assert (annotation.counts["transcripts"], annotation.counts["coding"]) == (1, 1)


def test_selenocysteine_lines_and_tags(tmp_path: Path) -> None:
    line = GENCODE.splitlines()[-1].replace("stop_codon\t27\t29", "Selenocysteine\t24\t26")
    [row] = _read(tmp_path, GENCODE.replace("cds_start_NF", "seleno") + line + "\n").transcripts.to_dicts()
    assert (row["sec_starts"], row["seleno"]) == ([23], True)


def test_transcripts_without_a_line_of_their_own_are_made_of_their_exons(tmp_path: Path) -> None:
    text = "".join(line + "\n" for line in GENCODE.splitlines() if "\ttranscript\t" not in line)
    [row] = _read(tmp_path, text).transcripts.to_dicts()
    assert (row["gene_id"], row["lines"], row["biotype"]) == ("ENSG00000000001.1", 1, None)


def test_duplicates_copies_and_odd_lines_are_counted(tmp_path: Path) -> None:
    odd = GENCODE.splitlines()[1].replace("\t+\t", "\t.\t") + "\n"
    nameless = GENCODE.splitlines()[1].replace('transcript_id "ENST00000000001.1"; ', "") + "\n"
    annotation = _read(tmp_path, GENCODE + GENCODE + GENCODE.replace("chr1", "chrY") + odd + nameless)
    rows = {row["chromosome"]: row for row in annotation.transcripts.to_dicts()}
    assert (rows["chr1"]["lines"], rows["chrY"]["lines"]) == (2, 1)
    assert annotation.counts["lines_without_strand"] == 1
    assert annotation.counts["lines_without_transcript"] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("chr1\tHAVANA\texon\t6\n", r"line 2.*9 tab-separated columns"),
        (
            GENCODE.splitlines()[1].replace("\t6\t", "\tsix\t") + "\n",
            r"line 2, field 'start, end, strand'.*got 'six-12 \+'",
        ),
        (
            GENCODE.splitlines()[1].replace("\t6\t", "\t60\t") + "\n",
            r"line 2.*got '60-12 \+'; allowed: whole numbers",
        ),
        (GENCODE.splitlines()[1].replace("\t6\t", "\t0\t") + "\n", r"line 2.*got '0-12 \+'"),
        ("chr1\ta\texon\t1\t2\t.\t+\t.\tnothing\n", "neither GTF nor GFF3"),
        (GENCODE.splitlines()[0] + "\n", "no exons of transcripts"),
        ("", "no feature lines"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        _read(tmp_path, "# a comment\n" + text)


def test_a_truncated_annotation_is_an_error_and_not_a_smaller_one(tmp_path: Path) -> None:
    path = tmp_path / "a.gtf.gz"
    whole = "".join(gtf_lines(number, "chr1", "+") for number in range(2000))
    path.write_bytes(gzip.compress(whole.encode())[:-200])
    with pytest.raises(InputError, match="truncated"):
        read_annotation(path)


def test_what_follows_the_sequences_of_a_gff3_is_not_read(tmp_path: Path) -> None:
    lines = gtf_lines(1, "chr1", "+")
    whole = _read(tmp_path, lines)
    assert _read(tmp_path, f"{lines}##FASTA\n>chr1\nACGT\n{gtf_lines(2, 'chr1', '+')}").counts == whole.counts


def test_a_byte_order_mark_is_no_part_of_the_first_chromosome(tmp_path: Path) -> None:
    assert set(_read(tmp_path, "\ufeff" + gtf_lines(1, "chr1", "+")).transcripts["chromosome"]) == {"chr1"}


def test_an_attribute_is_not_found_within_the_value_of_another(tmp_path: Path) -> None:
    line = gtf_lines(1, "chr1", "+").replace('gene_id "', 'note "like transcript_id X"; gene_id "')
    assert _read(tmp_path, line).transcripts["transcript_id"].to_list() == ["ENST00000000001.1"]


@pytest.mark.parametrize("bad", [b"\xff", b"\0"])
def test_an_annotation_that_is_no_text_names_the_line(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "models.gtf"
    path.write_bytes(gtf_lines(1, "chr1", "+").encode().replace(b"stop_codon", b"stop" + bad))
    with pytest.raises(InputError, match=r"models\.gtf, line 6: is not text; allowed: UTF-8"):
        read_annotation(path)


@pytest.mark.parametrize("text", ["#a\tb\tc\td\te\tf\tg\th\ti\n", "##FASTA\n>a\nACGT\n"])
def test_an_annotation_of_comments_alone_has_no_features(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="annotation has no feature lines"):
        _read(tmp_path, text)

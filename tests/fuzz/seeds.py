"""What several doors begin with: valid inputs, the words of a mutator, and what turns bytes into files."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.door import Skip
from prepare.tiny import CHR1, CHR2, PROTEIN, RNA, gtf_lines

GENOME = f">chr1 first\n{CHR1[:20]}\n{CHR1[20:]}\n>chr2\n{CHR2}\n".encode()

GTF = (gtf_lines(1, "chr1", "+") + gtf_lines(2, "chr2", "-")).encode()

GFF3 = b"""##gff-version 3
chr1\tHAVANA\tgene\t6\t31\t.\t+\t.\tID=gene:ENSG1;gene_name=TINY1;biotype=protein_coding
chr1\tHAVANA\tmRNA\t6\t31\t.\t+\t.\tID=transcript:ENST1;Parent=gene:ENSG1;biotype=protein_coding
chr1\tHAVANA\texon\t6\t12\t.\t+\t.\tParent=transcript:ENST1
chr1\tHAVANA\texon\t23\t31\t.\t+\t.\tParent=transcript:ENST1
chr1\tHAVANA\tCDS\t8\t12\t.\t+\t0\tParent=transcript:ENST1
chr1\tHAVANA\tCDS\t23\t29\t.\t+\t1\tParent=transcript:ENST1
##FASTA
>chr1
ACGT
"""

NUMBERS = (
    b"NaN",
    b"-1",
    b"1e309",
    b"inf",
    b"0x10",
    b"1_0",
    b"9" * 25,
    b"-0",
    b"+1",
    b" 1",
    b"1.5e",
    "١".encode(),
)

AWKWARD = (b"\0", b"\r", b"\xff", b"\xef\xbb\xbf", b'"', b"\xe2\x80\xa8", b"\x1b[31m", b"../..", "ß".encode())

WORDS = (*NUMBERS, *AWKWARD)

MODEL_WORDS = (
    *WORDS,
    b"exon",
    b"CDS",
    b"stop_codon",
    b"transcript_id",
    b"gene_id",
    b"Parent=",
    b"ID=",
    b"##FASTA",
    b"Selenocysteine",
    b"chr2",
    b'tag "seleno"',
    b'tag "cds_end_NF"',
    b"chrM",
)

TABLE_WORDS = (
    *WORDS,
    b"\t",
    b",",
    b"\n",
    b"NA",
    b"transcript_id",
    b"Liver",
    b"Brain",
    b"gene_id",
    b"rna",
    b"split",
)

JSON_ROWS = [
    {"transcript_id": "T1", "gene_id": "G1", "rna": RNA, "protein": PROTEIN, "Liver": 1.5, "Brain": 2},
    {"transcript_id": "T2", "gene_id": "G2", "rna": "ACGU", "protein": None, "Liver": 0.0, "Brain": None},
]

DEEP = b"[" * 20_000

MARKUP = "<img src=x onerror=alert(1)>"


JSON_WORDS = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b'""',
    b"9" * 400,
    b"\\u0000",
    b"../",
    b"/etc/passwd",
    b"\xff",
    b"\\ud800",
    b"1.5",
    b'"x"',
    b"Infinity",
    MARKUP.encode(),
    b"[" * 2000,
    b"\n",
)

NOT_JSON = (b"", b"[]", b"{}", b"null", b"3", DEEP, b"\xff\xfe{}")

DAMAGE = (b"PAR1", b"\xff" * 8, b"\0" * 8, b"\x15\x00", b"isoformer", b"ARROW:schema", b"\x80" * 4)


def unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def packed_seeds(text: bytes) -> tuple[bytes, ...]:
    return text, gzip.compress(text, mtime=0), text.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + text


def parquet_bytes(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def made_parquet(data: bytes, path: Path) -> list[dict[str, object]]:
    try:
        rows = json.loads(data)
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            raise Skip
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        raise Skip from error
    return rows


def edited(data: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(data), **changes}).encode()

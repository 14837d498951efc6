"""What can be predicted from: a FASTA of RNA, gene models, a table, or a prepared transcripts shard.

    .fa .fasta .fna    RNA, the transcript's id first in its header; DNA and protein in files beside it
    .gtf .gff .gff3    gene models, cut from a reference as prepare cuts them
    .csv .tsv          columns transcript_id and any of dna, rna, protein
    .parquet           the same, or a shard of a prepared transcripts dataset

All may be compressed with gzip. Every input gives a row for every transcript, in an order that is always the
same, and is read as a stream: memory holds a batch (of gene models also the exons), not the file.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from isoformer.errors import InputError
from isoformer.extraction import Policy
from isoformer.manifest import MANIFEST_KEY, read_manifest
from isoformer.parquet_file import open_parquet
from isoformer.planning import PrepareConfig
from isoformer.predict.on_disk import OnDisk
from isoformer.predict.rows import ROWS_AT_ONCE, PredictRow, given_row, planned_rows, prepared_row
from isoformer.schema import MODALITIES, Modality, digest_column, transcripts_schema
from isoformer.sequences import sequence_digest
from isoformer.sources.files import existing_file, is_bgzip, is_gzip, open_bytes, open_text
from isoformer.sources.reference import Reference, build_reference
from isoformer.sources.tables import read_header
from isoformer.splits import SplitConfig
from isoformer.storage import open_storage

FASTA: Final = (".fa", ".fasta", ".fna")
GENE_MODELS: Final = (".gtf", ".gff", ".gff3")
DELIMITED: Final = (".csv", ".tsv")
PARQUET: Final = ".parquet"
_PREPARED: Final = ("window_start_bp", "dna_digest", "status")
_BLOCK_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class PredictInput:
    """The input file and what goes with it. `dna`, `protein`: FASTA files beside a FASTA of RNA."""

    path: str
    reference: str | None = None
    dna: str | None = None
    protein: str | None = None
    chromosome_aliases: Mapping[str, str] = field(default_factory=dict)

    def rows(self, policy: Policy) -> Iterator[PredictRow]:
        """A row for every transcript. InputError for a file that is not what its name says, for options that
        do not go with it, and for a table without the columns.
        """
        kind = self._kind()
        if kind != FASTA and (self.dna or self.protein):
            raise InputError("go with a FASTA of RNA only", field="--dna, --protein", value=self.path)
        if kind == FASTA:
            yield from _fasta_rows(self, policy)
        elif kind == GENE_MODELS:
            yield from _gene_model_rows(self, policy)
        elif kind == DELIMITED:
            yield from _table_rows(_delimited(existing_file(self.path, "input")), self.path, policy)
        else:
            yield from _parquet_rows(self, policy)

    @property
    def is_gene_models(self) -> bool:
        """Whether the input needs a genome."""
        return self._kind() == GENE_MODELS

    def _kind(self) -> Sequence[str]:
        suffix = Path(self.path.lower().removesuffix(".gz")).suffix
        for kind in (FASTA, GENE_MODELS, DELIMITED, (PARQUET,)):
            if suffix in kind:
                return kind
        allowed = [*FASTA, *GENE_MODELS, *DELIMITED, PARQUET]
        raise InputError("not a kind of input", file=self.path, value=suffix, allowed=allowed)


def _fasta_rows(given: PredictInput, policy: Policy) -> Iterator[PredictRow]:
    """RNA in the order of its file, then what only the files beside it have."""
    beside: dict[Modality, str | None] = {"dna": given.dna, "protein": given.protein}
    with OnDisk() as disk:
        for modality, path in beside.items():
            for number, (identifier, sequence) in enumerate(_records(path, modality) if path else ()):
                if not disk.put(modality, identifier, sequence):
                    raise InputError("is there twice", file=path, record=identifier or f"record {number + 1}")
        for identifier, sequence in _records(given.path, "rna"):
            if problem := _identifier_problem(identifier, disk):
                yield problem
                continue
            yield given_row(identifier, {**disk.beside(identifier), "rna": sequence}, policy)
        for modality in beside:
            for identifier in disk.unseen(modality):
                yield given_row(identifier, disk.beside(identifier), policy)


def _records(path: str, role: str) -> Iterator[tuple[str, str]]:
    """(transcript id, sequence) of a FASTA file. InputError where it is none."""
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    source = existing_file(path, role)
    with open_bytes(source) as file:
        first = file.read(1)
    if first != b">":
        raise InputError("not FASTA", file=source, line=1, value=first, allowed="a line that begins with >")
    with open_bytes(source) as file, io.TextIOWrapper(file, encoding="ascii", errors="replace") as text:
        for title, sequence in cast(Any, SimpleFastaParser)(text):
            yield _transcript_id(title), sequence


def _transcript_id(title: str) -> str:
    """The header's first word; of GENCODE's `ENSP…|ENST…|ENSG…` the part that is a transcript."""
    parts = (title.split() or [""])[0].split("|")
    return next((part for part in parts if part.startswith("ENST")), parts[0])


def _gene_model_rows(given: PredictInput, policy: Policy) -> Iterator[PredictRow]:
    from isoformer.routes import plan_annotation

    if given.reference is None:
        raise InputError("gene models need the genome that they are of", file=given.path, field="--reference")
    config = PrepareConfig(
        annotation=given.path,
        reference=(given.reference,),
        keep_unmeasured=True,
        targets=("none",),
        split=SplitConfig(allow_empty=True),
    )
    with _opened_reference(given.reference, given.chromosome_aliases) as reference:
        plan = plan_annotation(config, reference)
        for row in plan.quarantined:
            yield PredictRow.set_aside(row["transcript_id"], row["reason"], row["detail"])
        yield from planned_rows(plan.rows, reference, policy)


@contextmanager
def _opened_reference(path: str, aliases: Mapping[str, str]) -> Iterator[Reference]:
    """A plain or bgzip FASTA where it lies; one in plain gzip is packed anew for the length of the block."""
    source = existing_file(path, "reference")
    if not is_gzip(source) or is_bgzip(source):
        yield Reference.open(source, aliases)
        return
    with tempfile.TemporaryDirectory(prefix="isoformer-predict-") as folder:
        yield Reference.open(build_reference([source], Path(folder))[0], aliases)


Table = Iterator[Mapping[str, Any]]


def _table_rows(rows: Table, path: str, policy: Policy) -> Iterator[PredictRow]:
    with OnDisk() as disk:
        for number, row in enumerate(rows, 1):
            identifier = str(row["transcript_id"] or "").strip()
            if problem := _identifier_problem(identifier, disk, f"row {number} of {path}"):
                yield problem
            else:
                yield given_row(identifier, {m: row.get(m) for m in MODALITIES}, policy)


def _delimited(path: Path) -> Table:
    """The columns that count, as strings. InputError for a missing column or a ragged line."""
    names, delimiter = read_header(path)
    wanted = _wanted_columns(names, path)
    odd: list[csv.InvalidRow] = []

    def ragged(row: csv.InvalidRow) -> str:
        odd.append(row)
        return "error"

    with open_text(path) as file:
        try:
            reader = csv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=ragged),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.large_string()),
                    include_columns=wanted,
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise _unreadable(path, error, odd) from None


def _unreadable(path: Path, error: pa.ArrowInvalid, odd: list[csv.InvalidRow]) -> InputError:
    if not odd:
        return InputError(f"cannot be read as a table ({str(error).splitlines()[0][:120]})", file=path)
    return InputError(
        "line has another number of columns than the header",
        file=path,
        line=odd[0].number,
        value=odd[0].actual_columns,
        allowed=str(odd[0].expected_columns),
    )


def _parquet_rows(given: PredictInput, policy: Policy) -> Iterator[PredictRow]:
    path = existing_file(given.path, "input")
    try:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            if all(name in names for name in _PREPARED):
                _require_columns_of_shard(file.schema_arrow, path)
                yield from _prepared_rows(_streamed(file, names), given)
            else:
                wanted = _wanted_columns(names, path)
                yield from _table_rows(_streamed(file, wanted), given.path, policy)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as Parquet ({error})", file=path) from None


def _streamed(file: pq.ParquetFile, columns: Sequence[str]) -> Table:
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
        yield from batch.to_pylist()


def _prepared_rows(rows: Table, given: PredictInput) -> Iterator[PredictRow]:
    """Rows of a transcripts shard; DNA windows are cut from the reference of the root that it lies in."""
    from isoformer.embeddings.shard_sequences import TranscriptsSource, cut_window

    storage = open_storage(Path(given.path).absolute().parent.parent)
    source = None
    if storage.exists(MANIFEST_KEY):
        source = TranscriptsSource.of(storage, read_manifest(storage))
    for row in rows:
        dna = row["dna"]
        if dna is None and row["dna_digest"] is not None:
            if source is None:
                raise InputError(
                    f"a transcripts shard outside of its root: {storage.uri}/{MANIFEST_KEY} is not there",
                    file=given.path,
                    allowed="<root>/transcripts/shard-00000.parquet",
                )
            dna = cut_window(source, row)
        _require_digests({**row, "dna": dna}, given.path)
        yield prepared_row(row, dna)


def _require_columns_of_shard(schema: pa.Schema, path: Path) -> None:
    """InputError where a column of a transcripts shard is missing, or of another type."""
    for column in transcripts_schema(0):
        if column.name in ("targets", "target_mask"):
            continue
        place = schema.get_field_index(column.name)
        if place < 0 or schema.field(place).type != column.type:
            found = "nothing" if place < 0 else str(schema.field(place).type)
            raise InputError(
                "not a column of a transcripts shard",
                file=path,
                field=column.name,
                value=found,
                allowed=str(column.type),
            )


def _require_digests(row: Mapping[str, Any], path: str) -> None:
    """InputError where a row's sequence is not the one that its digest names: the shard was damaged."""
    for modality in MODALITIES:
        sequence, digest = row[modality], row[digest_column(modality)]
        if sequence and (not sequence.isascii() or sequence_digest(sequence) != digest):
            raise InputError(
                f"sequence is not that of its digest {digest}: the shard is damaged; prepare again",
                file=path,
                record=row["transcript_id"],
                field=modality,
            )


def _wanted_columns(names: Sequence[str], path: Path) -> list[str]:
    """transcript_id and those of the sequences that are there."""
    found = [modality for modality in MODALITIES if modality in names]
    for column, is_there in (("transcript_id", "transcript_id" in names), ("rna", bool(found))):
        if not is_there:
            allowed = "transcript_id and at least one of dna, rna, protein; the file has " + ", ".join(
                names[:20]
            )
            raise InputError("column is missing", file=path, field=column, allowed=allowed)
    return ["transcript_id", *found]


def _identifier_problem(identifier: str, disk: OnDisk, place: str = "a record") -> PredictRow | None:
    if not identifier:
        return PredictRow.set_aside("", "without_id", f"{place} has no transcript id")
    if not disk.put("seen", identifier, ""):
        return PredictRow.set_aside(identifier, "duplicate_transcript", "the first with this id is predicted")
    return None

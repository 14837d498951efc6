"""The genome: FASTA in, bases out, at any place, on either strand.

`build_reference` brings one or several FASTA files (plain, gzip or bgzip) into one indexed bgzip file;
`Reference` reads it. Names are matched with and without `chr` (`chr21` and `21`, `chrM` and `MT`). Who calls
it: `transcripts.py` while preparing, and the embedding stage, which cuts the DNA windows again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from isoformer.errors import InputError
from isoformer.sequences import reverse_complement
from isoformer.sources.fasta import ALLOWED, copy_fasta
from isoformer.sources.files import existing_file, is_bgzip, open_bytes
from isoformer.storage import LocalStorage, Storage

if TYPE_CHECKING:
    from isoformer.manifest import Manifest

INDEX_SUFFIXES = ("", ".fai", ".gzi")
_NOT_ACGT_TO_N = str.maketrans(
    {letter: "N" for letter in "RYSWKMBDHVryswkmbdhvn"} | dict(zip("acgtuU", "ACGTTT", strict=True))
)
_NOT_A_BASE = re.compile("[^ACGTN]")


class Reference:
    """An indexed FASTA. `fetch` pads with N beyond the ends and normalises; names match with or without
    `chr`.
    """

    def __init__(self, path: Path, fasta: Any, aliases: Mapping[str, str]) -> None:
        self.path = path
        self._fasta = fasta
        self._lengths = dict(zip(fasta.references, fasta.lengths, strict=True))
        self._aliases = aliases

    @classmethod
    def open(cls, path: str | Path, aliases: Mapping[str, str] | None = None) -> Self:
        """Open a bgzip or plain FASTA that lies on disk with its index; the index is made where it is
        missing.
        """
        import pysam

        found = existing_file(path, "reference")
        try:
            return cls(found, pysam.FastaFile(str(found)), dict(aliases or {}))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be opened as an indexed FASTA ({error})", file=path) from None

    @property
    def lengths(self) -> dict[str, int]:
        """Bases of every sequence, under the names of the file."""
        return dict(self._lengths)

    def resolve(self, chromosome: str) -> str | None:
        """The file's own name of a chromosome, or None where the file has no such sequence."""
        return next((name for name in _spellings(chromosome, self._aliases) if name in self._lengths), None)

    def length(self, chromosome: str) -> int:
        """Bases of a chromosome; 0 where the file has no such sequence."""
        return self._lengths.get(self.resolve(chromosome) or "", 0)

    def fetch(self, chromosome: str, start_bp: int, end_bp: int, strand: str = "+") -> str:
        """Bases [start_bp, end_bp) of the plus strand, read on `strand`; N outside the chromosome.

        InputError where the file has no such chromosome.
        """
        name = self.resolve(chromosome)
        if name is None:
            raise InputError(
                "chromosome is not in the reference",
                file=self.path,
                value=chromosome,
                allowed=_some(self._lengths),
            )
        inside_start, inside_end = max(0, start_bp), min(end_bp, self._lengths[name])
        if inside_start >= inside_end:
            return "N" * (end_bp - start_bp)
        bases = self._fasta.fetch(name, inside_start, inside_end).translate(_NOT_ACGT_TO_N)
        if strange := _NOT_A_BASE.search(bases):
            raise InputError(
                "letter of a sequence is not one",
                file=self.path,
                record=name,
                value=strange.group(),
                allowed=ALLOWED,
            )
        padded = "N" * (inside_start - start_bp) + bases + "N" * (end_bp - inside_end)
        return padded if strand == "+" else reverse_complement(padded)


def build_reference(paths: Sequence[str | Path], folder: Path) -> tuple[Path, str]:
    """Write `<folder>/<digest>.fa.gz` with its indexes from FASTA files; return the path and the digest.

    The digest is over the decompressed text, so that compression does not change it. InputError where a file
    is not FASTA, is truncated, or names a sequence twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=".fa.gz", dir=folder)
    os.close(descriptor)
    temporary = Path(name)
    try:
        digest, headers = _recompress(paths, temporary)
        _index(temporary, paths, headers)
        target = folder / f"{digest}.fa.gz"
        for suffix in reversed(INDEX_SUFFIXES):
            os.replace(f"{temporary}{suffix}", f"{target}{suffix}")
        return target, digest
    finally:
        for suffix in INDEX_SUFFIXES:
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)


def reference_key(digest: str) -> str:
    """Where a dataset keeps its reference."""
    return f"reference/{digest}.fa.gz"


def open_dataset_reference(
    storage: Storage, manifest: Manifest, cache_dir: str | Path | None = None
) -> Reference:
    """The reference of a prepared dataset; see `open_stored_reference`. InputError where it brings its own
    DNA.
    """
    if manifest.reference_digest is None:
        raise InputError("this dataset brings its own DNA: it has no reference", file=storage.uri)
    return open_stored_reference(storage, manifest.reference_digest, cache_dir, manifest.chromosome_aliases)


def open_stored_reference(
    storage: Storage,
    digest: str,
    cache_dir: str | Path | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Reference:
    """Open a root's reference: where it lies on a local root, else copied once a node, under a file lock.

    `cache_dir` null: `isoformer-reference` in the system's temporary folder, shared by all runs of the node.
    """
    from filelock import FileLock

    if isinstance(storage, LocalStorage):
        return Reference.open(storage.root / reference_key(digest), aliases)
    cache = Path(cache_dir or Path(tempfile.gettempdir(), "isoformer-reference"))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{digest}.fa.gz"
    with FileLock(f"{target}.lock"):
        for suffix in reversed(INDEX_SUFFIXES):
            local = Path(f"{target}{suffix}")
            if not local.exists():
                storage.download(reference_key(digest) + suffix, local)
    return Reference.open(target, aliases)


def _spellings(chromosome: str, aliases: Mapping[str, str]) -> Iterable[str]:
    yield chromosome
    if chromosome in aliases:
        yield aliases[chromosome]
    bare = chromosome.removeprefix("chr")
    yield from ("chrM", "MT", "M", "chrMT") if bare in {"M", "MT"} else (bare, f"chr{bare}")


def _recompress(paths: Sequence[str | Path], target: Path) -> tuple[str, int]:
    """Write one bgzip file; return the digest of the text and the number of header lines."""
    import pysam

    sources = [existing_file(path, "reference") for path in paths]
    digest = hashlib.blake2b(digest_size=16)
    if len(sources) == 1 and is_bgzip(sources[0]):
        with open_bytes(sources[0]) as file:
            headers = copy_fasta(file, sources[0], digest, None)
        shutil.copyfile(sources[0], target)
        return digest.hexdigest(), headers
    headers = 0
    with pysam.BGZFile(str(target), "wb", None) as out:
        for source in sources:
            with open_bytes(source) as file:
                headers += copy_fasta(file, source, digest, out)
    return digest.hexdigest(), headers


def _index(fasta: Path, paths: Sequence[str | Path], headers: int) -> None:
    import pysam
    from pysam.utils import SamtoolsError

    try:
        pysam.faidx(str(fasta), catch_stdout=False)
    except SamtoolsError as error:
        files = ", ".join(str(path) for path in paths)
        raise InputError(f"cannot be indexed as FASTA ({str(error).strip()})", file=files) from None
    names = [line.split(b"\t")[0] for line in Path(f"{fasta}.fai").read_bytes().split(b"\n") if line]
    if strange := [name for name in names if not _is_printable(name)]:
        shown = strange[0].decode("latin-1")
        files = ", ".join(map(str, paths))
        raise InputError(
            "name of a sequence cannot be printed", file=files, value=shown, allowed="UTF-8 text"
        )
    if len(names) != headers:
        raise _named_twice(paths)  # the indexer keeps the first of the two without an error


def _is_printable(name: bytes) -> bool:
    try:
        return name.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _named_twice(paths: Sequence[str | Path]) -> InputError:
    seen: dict[bytes, Path] = {}
    for path in map(Path, paths):
        with open_bytes(path) as file:
            for name in (
                line[1:].split()[0] for line in file if line.startswith(b">") and line.strip() != b">"
            ):
                if name in seen:
                    return InputError(
                        f"sequence is there twice, first in {seen[name]}",
                        file=path,
                        record=name.decode(errors="replace"),
                    )
                seen[name] = path
    return InputError("a sequence has no name", file=", ".join(map(str, paths)), allowed=">name")


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (f", … ({len(listed)} in all)" if len(listed) > limit else "")

"""The genome reader: every compression, one digest; names with and without chr; padding; broken files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pysam
import pytest

from isoformer.errors import InputError
from isoformer.sources.fasta import FastaLines
from isoformer.sources.reference import Reference, build_reference, open_stored_reference, reference_key
from isoformer.storage import LocalStorage
from prepare.tiny import CHR1, CHR2, write_genome


def _bgzip(source: Path) -> Path:
    target = source.with_suffix(".bgz.gz")
    with pysam.BGZFile(str(target), "wb", None) as out:
        out.write(source.read_bytes())
    return target


def _gzip(source: Path) -> Path:
    target = source.with_suffix(".fa.gz")
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    return target


def test_plain_gzip_and_bgzip_are_one_reference(tmp_path: Path) -> None:
    plain = write_genome(tmp_path)
    built = [
        build_reference([path], tmp_path / f"{path.name}.out")
        for path in (plain, _gzip(plain), _bgzip(plain))
    ]
    assert len({digest for _, digest in built}) == 1
    for path, _ in built:
        reference = Reference.open(path)
        assert reference.lengths == {"chr1": 36, "chr2": 36}
        assert reference.fetch("chr1", 0, 36) == CHR1
        assert reference.fetch("chr1", 0, 36, "-") == CHR2


def test_several_files_are_one_reference_even_without_a_last_newline(tmp_path: Path) -> None:
    first, second = tmp_path / "a.fa", tmp_path / "b.fa"
    first.write_text(f">chr1\n{CHR1}")
    second.write_text(f">Y some words\n{CHR2.lower()}\n")
    path, _ = build_reference([first, _gzip(second)], tmp_path / "out")
    reference = Reference.open(path)
    assert reference.fetch("chrY", 0, 36) == CHR2
    assert reference.fetch("chr1", 30, 36) == CHR1[30:]


def test_names_match_with_and_without_chr_and_by_alias(tmp_path: Path) -> None:
    path = write_genome(tmp_path, {"21": CHR1, "chrM": CHR2, "odd": CHR1})
    reference = Reference.open(path, {"NC_000001": "odd"})
    assert reference.resolve("chr21") == "21"
    assert reference.resolve("MT") == "chrM"
    assert reference.resolve("NC_000001") == "odd"
    assert reference.resolve("chr7") is None
    assert (reference.length("chr21"), reference.length("chr7")) == (36, 0)
    with pytest.raises(
        InputError, match=r"chromosome is not in the reference: got 'chr7'; allowed: 21, chrM"
    ):
        reference.fetch("chr7", 0, 1)


def test_fetch_pads_and_normalises(tmp_path: Path) -> None:
    reference = Reference.open(write_genome(tmp_path, {"chr1": "acgtRyN"}))
    assert reference.fetch("chr1", -2, 9) == "NNACGTNNNNN"
    assert reference.fetch("chr1", -2, 9, "-") == "NNNNNACGTNN"
    assert reference.fetch("chr1", 20, 24) == "NNNN"
    assert reference.fetch("chr1", -9, -5) == "NNNN"


def test_a_stored_reference_opens_from_its_root(tmp_path: Path) -> None:
    path, digest = build_reference([write_genome(tmp_path)], tmp_path / "work")
    storage = LocalStorage(tmp_path / "root")
    for suffix in (".gzi", ".fai", ""):
        storage.put_file(Path(f"{path}{suffix}"), reference_key(digest) + suffix)
    assert open_stored_reference(storage, digest).fetch("1", 5, 12) == "CCATGGC"


class _Remote:
    """A storage that is not a folder of this machine, over one that is; it counts downloads."""

    def __init__(self, inner: LocalStorage) -> None:
        self.inner, self.uri, self.downloads = inner, "s3://bucket", 0

    def download(self, key: str, local_path: Path) -> Path:
        self.downloads += 1
        return self.inner.download(key, local_path)


def test_a_remote_reference_is_copied_once_a_node(tmp_path: Path) -> None:
    path, digest = build_reference([write_genome(tmp_path)], tmp_path / "work")
    inner = LocalStorage(tmp_path / "root")
    for suffix in (".gzi", ".fai", ""):
        inner.put_file(Path(f"{path}{suffix}"), reference_key(digest) + suffix)
    remote = _Remote(inner)
    for _ in range(2):
        found = open_stored_reference(remote, digest, tmp_path / "cache")  # type: ignore[arg-type]
        assert found.fetch("1", 5, 12) == "CCATGGC"
    assert remote.downloads == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "file is empty"),
        (b"chr1\tHAVANA\n", r"is not FASTA: got 'chr1.*line starting with '>'"),
        (gzip.compress(b">chr1\n" + b"ACGT" * 4000, mtime=0)[:-9], "truncated"),
        (b">chr1\nACGT\nAC\nACGT\n", "cannot be indexed as FASTA"),
        (b">chr1\nACGT\n>chr1\nACGT\n", "chr1: sequence is there twice"),
    ],
)
def test_a_broken_genome_is_one_clear_error(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        build_reference([path], tmp_path / "out")
    assert str(path) in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_genome_and_a_truncated_bgzip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reference file does not exist"):
        build_reference([tmp_path / "none.fa"], tmp_path / "out")
    whole = _bgzip(write_genome(tmp_path))
    whole.write_bytes(whole.read_bytes()[:-28])
    with pytest.raises(InputError, match="end-of-file block is missing: the file is truncated"):
        build_reference([whole], tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b">a\nACGT\nAC\0GT\n", r"line 3: letter of a sequence is not one: got '\\x00'"),
        (b">a\nACGT\nACEGT\n", "line 3: letter of a sequence is not one: got 'E'"),
        (b">a\nAC>GT\n", "line 2: letter of a sequence is not one: got '>'"),
        (b">a\nACGT\nAC GT\n", "line 3: letter of a sequence is not one: got ' '"),
        (b">a\rACGT\n>b\nAC\rGT\n", "line 3: letter of a sequence is not one"),
        (b">a\0b\nACGT\n", "line 1: letter of a sequence is not one"),
        (b">\xd5a\nACGT\n", "name of a sequence cannot be printed"),
    ],
)
def test_what_the_indexer_would_pass_over_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"genome\.fa.*{problem}"):
        build_reference([path], tmp_path / "built")


def test_windows_line_ends_and_pieces_of_any_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(b">a first\r\nACGT\r\nacgu\r\n>b\r\nRYN\r\n")
    assert Reference.open(build_reference([path], tmp_path / "built")[0]).fetch("a", 0, 8) == "ACGTACGT"
    for size in (1, 2, 3, 7):
        lines = FastaLines(path)
        for start in range(0, len(content := path.read_bytes()), size):
            lines.add(content[start : start + size])
        assert lines.headers == 2


def test_a_genome_that_is_opened_where_it_lies_gives_no_strange_letter(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text(">a\nACEGT\n")
    with pytest.raises(InputError, match="letter of a sequence is not one: got 'E'"):
        Reference.open(path).fetch("a", 0, 5)

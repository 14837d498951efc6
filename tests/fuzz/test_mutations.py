"""A valid file with one thing changed: the change is refused, or it changes that thing and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isoformer.config import load_yaml
from isoformer.errors import ConfigError, InputError
from isoformer.settings import load_settings
from isoformer.sources.annotation import read_annotation
from isoformer.sources.expression import Expression, read_expression
from isoformer.sources.reference import Reference, build_reference

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STRANGE = st.sampled_from(
    [
        "",
        " ",
        "x",
        "-1",
        "0",
        "1.5",
        "1e309",
        "nan",
        "NA",
        "inf",
        "9" * 25,
        "\x00",
        "\t",
        "\r",
        '"',
        "ß",
        "\u2028",
        "#",
        "+",
        ">",
        "\n",
    ]
)
CELL = st.one_of(STRANGE, st.text(max_size=5))
TISSUES = ("Liver", "Brain", "Lung")


def read(text: str, name: str, reader: Callable[[Path], Any]) -> Any:
    """From a file that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return reader(path)


@st.composite
def gene_models(draw: st.DrawFn) -> dict[str, list[tuple[int, int]]]:
    """Exons of some transcripts, apart from each other."""
    models = {}
    for number in range(draw(st.integers(2, 4))):
        edges = sorted(draw(st.sets(st.integers(1, 5000), min_size=4, max_size=8)))
        edges = edges[: len(edges) // 2 * 2]
        models[f"ENST{number}.1"] = list(zip(edges[::2], edges[1::2], strict=True))
    return models


def as_gtf(models: dict[str, list[tuple[int, int]]]) -> list[list[str]]:
    attributes = 'gene_id "G{0}"; transcript_id "{0}"; gene_name "n";'
    return [
        ["chr1", "x", "exon", str(start), str(end), ".", "+", ".", attributes.format(name)]
        for name, exons in models.items()
        for start, end in exons
    ]


@FEW
@given(models=gene_models(), data=st.data(), cell=CELL)
def test_a_changed_cell_of_a_gtf_touches_its_own_transcript_alone(
    models: dict[str, list[tuple[int, int]]], data: st.DataObject, cell: str
) -> None:
    lines = as_gtf(models)
    line = data.draw(st.integers(0, len(lines) - 1))
    owner = lines[line][8].split('"')[3]
    lines[line][data.draw(st.integers(0, 7))] = cell
    try:
        found = read("\n".join(map("\t".join, lines)) + "\n", "x.gtf", read_annotation).transcripts
    except InputError:
        return
    rows = {row["transcript_id"]: row for row in found.iter_rows(named=True) if row["chromosome"] == "chr1"}
    for name, exons in models.items():
        if name != owner:
            assert rows[name]["exon_starts"] == [start - 1 for start, _ in exons]
            assert rows[name]["exon_ends"] == [end for _, end in exons]


@FEW
@given(
    values=st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=2, max_size=5),
    data=st.data(),
    cell=CELL,
)
def test_a_changed_cell_of_a_table_is_refused_or_is_the_only_change(
    values: list[list[float]], data: st.DataObject, cell: str
) -> None:
    rows = [[f"T{number}", *map(repr, row)] for number, row in enumerate(values)]
    place, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 3))
    rows[place][column] = cell
    text = "\n".join(map("\t".join, [["transcript_id", *TISSUES], *rows])) + "\n"
    try:
        found: Expression = read(text, "wide.tsv", read_expression)
    except InputError:
        return
    if any(letter in cell for letter in '\n\r\t"'):  # it may make cells and lines of its own
        return
    ids = [f"T{number}" for number in range(len(values))]
    expected = np.array(
        [[values[r][TISSUES.index(name)] for name in found.target_names] for r in range(len(values))]
    )
    if column:
        own = found.target_names.index(TISSUES[column - 1])
        expected[place, own] = found.tpm[place, own]
        assert np.isnan(found.tpm[place, own]) or found.tpm[place, own] == float(cell)
    else:
        ids[place] = cell
    assert found.transcript_ids == ids
    np.testing.assert_array_equal(found.tpm, expected)


@FEW
@given(
    bases=st.text("ACGT", min_size=20, max_size=90),
    place=st.integers(0, 19),
    letter=st.characters(max_codepoint=0x17F),
)
@example(bases="A" * 20, place=0, letter="ſ")  # an S in capitals, and yet no letter of a sequence
def test_a_changed_letter_of_a_genome_is_refused_or_is_the_only_change(
    bases: str, place: int, letter: str
) -> None:
    changed = bases[:place] + letter + bases[place + 1 :]
    text = ">a\n" + "\n".join(changed[start : start + 30] for start in range(0, len(changed), 30)) + "\n"

    def fetched(path: Path) -> tuple[int, str]:
        reference = Reference.open(build_reference([path], path.parent / "built")[0])
        return reference.length("a"), reference.fetch("a", 0, reference.length("a"))

    try:
        length, found = read(text, "x.fa", fetched)
    except InputError:
        assert letter not in "ACGTUNRYSWKMBDHVacgtunryswkmbdhv"
        return
    if letter in "\r\n" and letter:
        return
    assert length == len(bases)
    assert found[:place] + found[place + 1 :] == bases[:place] + bases[place + 1 :]
    assert found[place] == {"U": "T"}.get(letter.upper(), letter.upper() if letter.upper() in "ACGT" else "N")


CONFIG: dict[str, Any] = {
    "root": "data",
    "run": "final",
    "train": {"epochs": 3, "learning_rate": 0.01, "model": {"width": 16, "heads": 4}},
    "sweep": {"trials": 4, "seed": 1},
    "embed": {"actors": 2},
}
KEYS = (
    "root",
    "run",
    "train.epochs",
    "train.learning_rate",
    "train.model.width",
    "sweep.trials",
    "sweep.seed",
    "embed.actors",
)
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(), max_size=2),
)


@pytest.mark.parametrize("by_override", [False, True])
@FEW
@given(key=st.sampled_from(KEYS), value=VALUE)
def test_a_changed_value_of_a_configuration_is_refused_or_is_the_only_change(
    by_override: bool, key: str, value: Any
) -> None:
    text = yaml.safe_dump(CONFIG)
    before = read(text, "run.yaml", load_settings).model_dump()
    try:
        if by_override:
            shown = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
            after = read(text, "run.yaml", lambda path: load_settings(path, [f"{key}={shown}"])).model_dump()
        else:
            after = read(yaml.safe_dump(_changed(CONFIG, key, value)), "run.yaml", load_settings).model_dump()
    except ConfigError as error:
        assert key.split(".")[-1] in str(error)
        return
    assert _changed(after, key, None) == _changed(before, key, None)


def _changed(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {**data, first: _changed(data[first], rest, value) if rest else value}


@FEW
@given(text=st.text(max_size=80))
def test_any_text_is_a_mapping_or_refused_with_its_file(text: str) -> None:
    try:
        assert isinstance(read(text, "run.yaml", load_yaml), dict)
    except ConfigError as error:
        assert "run.yaml" in str(error) and "\n" not in str(error)

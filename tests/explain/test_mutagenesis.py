"""Every base changed: the deltas are those of predicting each changed transcript by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from Bio.Seq import Seq

from explain.conftest import TISSUES, Made
from isoformer.errors import BudgetError, InputError
from isoformer.explain.edits import Edit, find_coding, rna_effect
from isoformer.explain.mutagenesis import Scope, mutagenesis
from isoformer.explain.regions import RnaRegions
from isoformer.explain.rows import DatasetRow, find_row
from isoformer.sequence_model import SequenceModel
from isoformer.storage import open_storage
from prepare.tiny import transcript_id

TOLERANCE = 2e-3  # of a prediction whose cached states are rounded to float16, in other batches


@pytest.fixture
def row(made: Made) -> DatasetRow:
    return find_row(open_storage(str(made.root)), transcript_id(4))


def run(model: SequenceModel, row: DatasetRow, scope: Scope, batch_size: int = 32) -> pl.DataFrame:
    return mutagenesis(model, row, scope, batch_size=batch_size, max_predictions=500).table


@pytest.mark.parametrize("run_name", ["cached", "inside"])
def test_an_rna_change_goes_through_the_protein(made: Made, row: DatasetRow, run_name: str) -> None:
    model, regions = made.model(run_name), row.regions
    assert regions is not None
    start = regions.five_utr
    table = run(model, row, Scope("rna", start=start - 2, end=start + 9))
    assert len(table) == 11 * 3
    assert table["region"].to_list()[:7] == ["5utr"] * 6 + ["cds"]
    rna = row.sequences.rna or ""
    reference = model.predict([row.sequences])[0]
    for told in table.iter_rows(named=True):
        place, base = told["position"], told["alternative"]
        assert rna[place] == told["reference"] != base
        changed = rna[:place] + base + rna[place + 1 :]
        coding = changed[start:]
        starts = coding[:3] == "ATG"
        whole = coding[: len(coding) // 3 * 3]
        protein = "M" + str(Seq(whole).translate(to_stop=True))[1:] if starts else None
        alone = model.predict([replace(row.sequences, rna=changed, protein=protein)])[0]
        deltas = [told[f"delta_{tissue}"] for tissue in TISSUES]
        np.testing.assert_allclose(deltas, alone - reference, atol=TOLERANCE)
        assert told["delta_mean"] == pytest.approx(np.mean(deltas), abs=1e-5)
    assert set(table["consequence"]) >= {"5utr", "start_lost", "cds_missense"}


def test_a_dna_change_moves_the_window_alone(row: DatasetRow, cached: SequenceModel) -> None:
    table = run(cached, row, Scope("dna", start=-3, end=3))
    window = row.sequences.dna or ""
    assert len(table) == 18 and table["region"].null_count() == 18
    reference = cached.predict([row.sequences])[0]
    for told in table.iter_rows(named=True):
        place = len(window) // 2 + told["position"]
        assert window[place] == told["reference"]
        changed = window[:place] + told["alternative"] + window[place + 1 :]
        alone = cached.predict([replace(row.sequences, dna=changed)])[0]
        np.testing.assert_allclose(
            [told[f"delta_{tissue}"] for tissue in TISSUES], alone - reference, atol=TOLERANCE
        )


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_the_answer_is_the_same_at_every_batch_size(
    row: DatasetRow, cached: SequenceModel, batch_size: int
) -> None:
    whole = run(cached, row, Scope("rna", "3utr"), 32)
    other = run(cached, row, Scope("rna", "3utr"), batch_size)
    np.testing.assert_allclose(whole["delta_mean"], other["delta_mean"], atol=TOLERANCE)


def test_scopes(row: DatasetRow, cached: SequenceModel) -> None:
    regions = row.regions
    assert regions is not None
    cds = run(cached, row, Scope("rna", "cds", stride=30))
    assert set(cds["region"]) == {"cds"}
    assert cds["position"].unique().sort().to_list() == list(range(regions.five_utr, regions.cds_end, 30))
    inside = run(cached, row, Scope("rna", "cds", regions.five_utr, regions.five_utr + 3))
    assert len(inside) == 9
    for scope, message in (
        (Scope("rna", "5utr", 0, regions.five_utr + 1), "these are not all there"),
        (Scope("rna", start=0, end=10**6), "allowed: 0:"),
        (Scope("dna", "cds"), "only the RNA of a coding transcript has regions"),
        (Scope("dna", start=-2000, end=5), "allowed: -1533:1533"),
    ):
        with pytest.raises(InputError, match=message):
            run(cached, row, scope)


def test_too_many_are_refused_with_their_cost(row: DatasetRow, cached: SequenceModel) -> None:
    with pytest.raises(BudgetError, match=r"9,198 predictions .* floating-point operations each .*500"):
        run(cached, row, Scope("dna"))


def test_unknown_bases_are_counted_and_not_changed(row: DatasetRow, cached: SequenceModel) -> None:
    rna = "NN" + str(row.fields["rna"])[2:]
    unknown = DatasetRow({**row.fields, "rna": rna}, row.source)
    made = mutagenesis(cached, unknown, Scope("rna", start=0, end=4), batch_size=8, max_predictions=500)
    assert made.unknown_bases == 2 and made.table["position"].unique().sort().to_list() == [2, 3]


def test_a_modality_that_is_not_there_is_named(made: Made, row: DatasetRow, cached: SequenceModel) -> None:
    with pytest.raises(InputError, match=r"does not read it.*'dna'.*allowed: rna"):
        run(made.model("inside"), row, Scope("dna"))
    without = DatasetRow({**row.fields, "rna": None}, row.source)
    with pytest.raises(InputError, match="the transcript has none"):
        run(cached, without, Scope("rna"))


RNA = "GGATGGCTTGAAAATAGCCCTAA"  # GG, ATG GCT TGA AAA TAG, CCCTAA


def test_a_selenocysteine_is_read_where_it_was() -> None:
    regions = RnaRegions(2, 15, 6)
    coding = find_coding(RNA, regions, "MAUK", "chr1")
    assert coding is not None and coding.selenocysteines == {8}
    kept = rna_effect(RNA, regions, coding, "MAUK", Edit(12, 13, "G"))
    assert (kept.protein, kept.consequence) == ("MAUR", "cds_missense")
    moved = rna_effect(RNA, regions, coding, "MAUK", Edit(5, 5, "CCC"))
    assert (moved.protein, moved.consequence) == ("MPAUK", "inframe")
    other = rna_effect(RNA, regions, coding, "MAUK", Edit(11, 12, "T"))
    assert (other.protein, other.consequence) == ("MAU", "stop_gained")
    lost = rna_effect(RNA, regions, coding, "MAUK", Edit(16, 17, "C"))
    assert (lost.protein, lost.consequence) == ("MAUKYP", "stop_lost")


def test_a_cds_that_was_cut_off_keeps_what_came_before() -> None:
    rna, regions = RNA[6:], RnaRegions(0, 11, 6)
    coding = find_coding(rna, regions, "MAUK", "chr1")
    assert coding is not None and (coding.before, coding.start) == ("MA", 2)
    effect = rna_effect(rna, regions, coding, "MAUK", Edit(6, 7, "G"))
    assert effect.protein == "MAUR"


def test_the_mitochondrial_code_is_its_own() -> None:
    rna, regions = "ATGTGAATATAA", RnaRegions(0, 12, 0)
    coding = find_coding(rna, regions, "MWM", "chrM")
    assert coding is not None
    assert find_coding(rna, regions, "MWM", "chr1") is None
    effect = rna_effect(rna, regions, coding, "MWM", Edit(5, 6, "G"))
    assert (effect.protein, effect.consequence) == ("MWM", "cds_synonymous")


def test_a_protein_that_the_cds_does_not_give_is_kept_and_said_so() -> None:
    regions = RnaRegions(2, 15, 6)
    assert find_coding(RNA, regions, "MOTHER", "chr1") is None
    effect = rna_effect(RNA, regions, None, "MOTHER", Edit(6, 7, "A"))
    assert (effect.protein, effect.consequence, effect.reason) == (
        "MOTHER", "cds_unknown", "cds_does_not_give_the_protein",
    )  # fmt: skip

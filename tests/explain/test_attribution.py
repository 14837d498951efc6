"""Integrated gradients: they sum to what the prediction changes by, land where the signal is, and leave the
model as it was. And the fusion's cross-attention, against what the fusion computes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from encoders.tiny import write_folder
from explain.conftest import TISSUES, WINDOW, Made
from isoformer.encoders.enformer import EnformerConfig
from isoformer.encoders.enformer_model import EnformerModel
from isoformer.encoders.registry import EncoderChoice, get_spec, load_tokenizer, load_trainable
from isoformer.encoders.spec import pack
from isoformer.errors import EncoderError, InputError
from isoformer.explain.attribution import attribute
from isoformer.explain.config import Baseline, ExplainConfig
from isoformer.explain.cross_maps import cross_maps, map_table
from isoformer.explain.reading import position_spans
from isoformer.explain.rows import DatasetRow, find_row
from isoformer.explain.taps import ColumnTap, tap_of
from isoformer.fusion import CrossAttention
from isoformer.sequence_model import SequenceModel
from isoformer.storage import open_storage
from prepare.tiny import transcript_id

FAST = ExplainConfig(steps=16, step_batch=8)
EXACT = FAST.edited(steps=64)
CLOSE = 2e-3
"""How far attributions may be from their sum with 64 steps; measured: 2e-4. Their sizes add up to 2 to 9."""


@pytest.fixture
def row(made: Made) -> DatasetRow:
    return find_row(open_storage(str(made.root)), transcript_id(3))


@pytest.mark.parametrize("run", ["cached", "inside"])
def test_attributions_sum_to_the_predictions_change(made: Made, row: DatasetRow, run: str) -> None:
    model = made.model(run)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    found = attribute(model, row.sequences, row.regions, EXACT, tissues=["Testis"])
    predicted = model.predict([row.sequences])[0]
    assert set(found.outputs) == {"mean", "Testis"} and not found.not_attributed
    for name, expected in (("mean", predicted.mean()), ("Testis", predicted[2])):
        one = found.outputs[name]
        assert one.prediction == pytest.approx(expected, abs=max(1e-5, 2 * found.rounding))
        assert abs(one.prediction - one.baseline) > 1e-3
        assert abs(one.delta) < CLOSE
        assert found.table[name].sum() == pytest.approx(one.prediction - one.baseline, abs=CLOSE)
        assert found.table[name].abs().sum() > 100 * CLOSE
    assert set(found.table["modality"]) == set(model.modalities)
    assert np.array_equal(model.predict([row.sequences])[0], predicted)
    after = model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_the_baseline_is_the_prediction_of_the_baselines_letters(made: Made, row: DatasetRow) -> None:
    """X throughout is a protein that can be predicted; with the other modalities away it must agree."""
    model = made.model("inside")
    alone = replace(row.sequences, rna=None)
    found = attribute(model, alone, None, FAST)
    letters = "M" + "X" * (len(alone.protein or "") - 1)
    real_first = model.predict([replace(alone, protein=letters)])[0].mean()
    assert found.outputs["mean"].baseline == pytest.approx(real_first, abs=0.02)
    assert found.not_attributed == {"rna": "the transcript has none"}


def test_more_steps_come_closer(made: Made, row: DatasetRow, cached: SequenceModel) -> None:
    few, many = (
        abs(attribute(cached, row.sequences, None, FAST.edited(steps=steps)).outputs["mean"].delta)
        for steps in (2, 24)
    )
    assert many < few / 3


@pytest.mark.parametrize("baseline", ["unknown", "mask"])
def test_attributions_are_complete_from_other_baselines(
    row: DatasetRow, cached: SequenceModel, baseline: Baseline
) -> None:
    found = attribute(cached, row.sequences, None, EXACT.edited(baseline=baseline)).outputs["mean"]
    assert abs(found.delta) < CLOSE


def test_a_baseline_that_norms_make_steep_is_told_by_its_delta(
    row: DatasetRow, cached: SequenceModel
) -> None:
    """Layer norms bring states next to zero to full size: the way from zero is all at its beginning."""
    found = attribute(cached, row.sequences, None, EXACT.edited(baseline="zero")).outputs["mean"]
    assert abs(found.delta) > 10 * CLOSE and not found.is_complete
    assert attribute(cached, row.sequences, None, EXACT).outputs["mean"].is_complete


def test_batches_of_steps_change_nothing(row: DatasetRow, cached: SequenceModel) -> None:
    tables = [
        attribute(cached, row.sequences, None, FAST.edited(step_batch=size)).table["mean"].to_numpy()
        for size in (1, 5, 64)
    ]
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)
    np.testing.assert_allclose(tables[0], tables[2], atol=1e-5)


def test_tokens_are_told_with_their_letters_and_regions(
    made: Made, row: DatasetRow, cached: SequenceModel
) -> None:
    table = attribute(cached, row.sequences, row.regions, FAST.edited(steps=2)).table
    sequences, gene = row.sequences, made.genes[transcript_id(3)]
    rna = table.filter(pl.col("modality") == "rna")
    assert "".join(rna["letters"]) == sequences.rna == gene.rna()
    assert rna["start"][0] == 0 and rna["end"][-1] == len(gene.rna())
    assert set(rna["region"].drop_nulls()) >= {"cds", "3utr"}
    protein = table.filter(pl.col("modality") == "protein")
    assert "".join(protein["letters"]) == sequences.protein
    dna = table.filter(pl.col("modality") == "dna")
    assert dna["start"].min() == -1533 and dna["end"].max() == 1533
    window = sequences.dna or ""
    for start, end, letters in dna.select("start", "end", "letters").iter_rows():
        assert window[WINDOW // 2 + start : WINDOW // 2 + end] == letters


def test_the_attribution_is_where_the_models_answer_is(row: DatasetRow, cached: SequenceModel) -> None:
    """A head that reads the protein alone gives DNA and RNA nothing."""
    model = replace(cached, model=cached.model.unfilled_copy())
    model.model.load_state_dict(cached.model.state_dict())
    model.model.eval()
    protein = slice(128 * 2, 128 * 3)
    with torch.no_grad():
        model.model.head.weight[:, : protein.start] = 0
        for name, unit in model.model.named_modules():
            if isinstance(unit, CrossAttention) and ".protein." in name:
                unit.dense.weight.zero_()
                unit.dense.bias.zero_()
    table = attribute(model, row.sequences, None, FAST).table
    size = {m: table.filter(pl.col("modality") == m)["mean"].abs().sum() for m in model.modalities}
    assert size["protein"] > 1e-3 and size["dna"] == size["rna"] == 0


def test_unknown_tissues_and_windows_are_refused(row: DatasetRow, cached: SequenceModel) -> None:
    with pytest.raises(InputError, match=r"'Skin'.*Liver"):
        attribute(cached, row.sequences, None, FAST, tissues=["Skin"])
    choice = EncoderChoice(name="ntv2-tiny-rna", long_sequences="windows", max_tokens=16, overlap_tokens=4)
    with pytest.raises(EncoderError, match=r"in several windows; .* at most 16"):
        tap_of(load_trainable(choice), load_tokenizer(choice), "ACGTAC" * 40, "rna", "unknown")


def test_a_network_that_reads_a_window_is_tapped_at_its_columns(tmp_path: Path) -> None:
    from encoders.test_enformer import CONFIG

    fields = {name: CONFIG[name] for name in EnformerConfig.model_fields if name in CONFIG}
    state = EnformerModel(EnformerConfig(**fields)).state_dict()
    choice = EncoderChoice(name="enformer", weights=str(write_folder(tmp_path / "e", CONFIG, state)))
    encoder, tokenizer = load_trainable(choice).eval(), load_tokenizer(choice)
    letters = "".join(np.random.default_rng(0).choice(list("ACGTN"), get_spec(choice).max_tokens * 8))
    tap = tap_of(encoder, tokenizer, letters, "dna", "unknown")
    assert isinstance(tap, ColumnTap) and len(tap.spans) == len(letters)
    with torch.no_grad():
        plain = encoder(pack([tokenizer(letters)]))
        twice = tap.encode(torch.stack([tap.real, tap.real]))
        unknown = encoder(pack([tokenizer("A" + "N" * (len(letters) - 1))]))
        column = tap.baseline.clone()
        column[0, 0] = 1
        ours = tap.encode(column[None])
    torch.testing.assert_close(twice.hidden_PD, plain.hidden_PD.repeat(2, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.hidden_PD, unknown.hidden_PD, rtol=1e-5, atol=1e-5)


def test_cross_attention_maps_are_what_the_fusion_mixes_with(row: DatasetRow, cached: SequenceModel) -> None:
    """The map times the values, through the unit's output, is what the unit adds."""
    inputs = cached.read([row.sequences]).inputs
    seen = {}
    units = {n: u for n, u in cached.model.named_modules() if isinstance(u, CrossAttention)}
    handles = [
        unit.register_forward_hook(lambda _u, given, out, name=name: seen.__setitem__(name, (given, out)))
        for name, unit in units.items()
    ]
    maps = cross_maps(cached, inputs)
    for handle in handles:
        handle.remove()
    assert [(one.asking, one.asked) for one in maps] == [
        ("dna", "rna"), ("dna", "protein"), ("rna", "dna"), ("rna", "protein"), ("protein", "dna"),
        ("protein", "rna"),
    ]  # fmt: skip
    for one in maps:
        name = f"fusion.blocks.0.{one.asking}.{one.asked}"
        (tokens, context), out = seen[name]
        unit = units[name]
        with torch.inference_mode():
            values_SHE = unit.value(context.hidden_BLD[0]).reshape(len(context.hidden_BLD[0]), unit.heads, -1)
            mixed_LD = torch.einsum("hls,she->lhe", torch.from_numpy(one.weights_HLS), values_SHE).flatten(1)
            added_LD = out.hidden_BLD[0] - tokens.hidden_BLD[0]
            torch.testing.assert_close(unit.dense(mixed_LD), added_LD, rtol=1e-4, atol=1e-5)


def test_the_table_of_maps_places_positions(made: Made, row: DatasetRow, cached: SequenceModel) -> None:
    maps = cross_maps(cached, cached.read([row.sequences]).inputs)
    lengths = {one.asked: one.weights_HLS.shape[2] for one in maps}
    spans = {m: position_spans(cached, row.sequences, m, lengths[m]) for m in cached.modalities}
    table = map_table(maps, spans, row.regions)
    sums = table.group_by("block", "asking", "asked", "head").agg(pl.col("attention").sum())
    np.testing.assert_allclose(sums["attention"], 1, rtol=1e-5)
    assert lengths == {"rna": 6, "protein": len(row.sequences.protein or ""), "dna": 8}
    rna = table.filter(pl.col("asked") == "rna", pl.col("asking") == "dna", pl.col("head") == 1)
    assert rna["start"][0] == 0 and rna["end"][-1] == len(row.sequences.rna or "")
    dna = table.filter(pl.col("asked") == "dna", pl.col("asking") == "rna", pl.col("head") == 1)
    assert (dna["start"][0], dna["end"][-1]) == (-1533, 1533)
    missing = cached.read([replace(row.sequences, protein=None)])
    assert {(one.asking, one.asked) for one in cross_maps(cached, missing.inputs)} == {
        ("dna", "rna"),
        ("rna", "dna"),
    }
    assert cached.target_names == TISSUES

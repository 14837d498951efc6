"""The loop learns, resumes exactly, and its export opens with the registry and with the library."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmForMaskedLM

from isoformer.config import build, load_yaml
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import pack
from isoformer.errors import EncoderError
from isoformer.storage import open_storage
from isoformer.training.pretrain import PretrainConfig, architecture_of, encoder_prefix, export_encoder
from isoformer.training.pretrain_batches import BatchSource, alphabet_of
from isoformer.training.pretrain_corpus import Corpus
from isoformer.training.pretrain_loop import (
    MaskedLanguageModel,
    Progress,
    _batches_from,
    fit,
    learning_rate_at,
)

HALVES = ("MKVLA", "WGHQE")
SETTINGS = PretrainConfig(
    name="esm2-small",
    modality="protein",
    width=32,
    layers=2,
    heads=2,
    feed_forward_width=64,
    max_tokens=66,
    steps=60,
    batch_tokens=512,
    learning_rate=5e-3,
    warmup_steps=5,
    validate_every_steps=30,
    validation_tokens=600,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Each protein is of one half of the letters: a masked place can only be guessed with its neighbours."""
    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list(HALVES[i % 2]), size=60)) for i in range(80)]
    return Corpus(proteins[:60], proteins[60:], {"train_sequences": 60}, ["made-up.fa"])


def run(
    config: PretrainConfig, corpus: Corpus, folder: Path, resume_from: Path | None = None
) -> tuple[dict[str, float], MaskedLanguageModel]:
    models: list[MaskedLanguageModel] = []

    def report(metrics: dict[str, float], model: MaskedLanguageModel, save: Callable[[Path], None]) -> None:
        models.append(model)
        step = folder / f"step-{int(metrics['step'])}"
        step.mkdir(parents=True)
        save(step)

    metrics = fit(
        config,
        architecture_of(config),
        alphabet_of(config.modality, config.max_tokens),
        corpus,
        report=report,
        resume_from=resume_from,
    )
    return metrics, models[-1]


def test_it_learns_what_is_there_and_resumes_exactly(corpus: Corpus, tmp_path: Path) -> None:
    metrics, model = run(SETTINGS, corpus, tmp_path / "whole")
    assert metrics["uniform_perplexity"] == 20
    assert metrics["unigram_perplexity"] == pytest.approx(10, abs=1)
    assert metrics["validation_perplexity"] < 0.7 * metrics["unigram_perplexity"]  # 5 is the least possible
    assert metrics["step"] == 60
    halfway = tmp_path / "whole" / "step-30"
    resumed_metrics, resumed = run(SETTINGS, corpus, tmp_path / "resumed", resume_from=halfway)
    assert resumed_metrics["validation_loss"] == metrics["validation_loss"]
    assert resumed_metrics["tokens"] == metrics["tokens"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_export_opens_with_the_registry_and_with_the_library(corpus: Corpus, tmp_path: Path) -> None:
    metrics, model = run(SETTINGS.edited(steps=3), corpus, tmp_path / "run")
    export_encoder(SETTINGS, str(tmp_path), model, corpus, metrics)
    folder = tmp_path / encoder_prefix(SETTINGS.name)
    choice = EncoderChoice(name="esm2", weights=str(folder))
    assert get_spec(choice).width == 32
    tokens = load_tokenizer(choice)("MKVLAWGHQEX")
    ours = load_encoder(choice).encode(pack([tokens])).hidden_PD
    library = EsmForMaskedLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        ids = torch.from_numpy(tokens.token_ids).long()[None]
        theirs = library.esm(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 1:-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert build(PretrainConfig, load_yaml(folder / "pretrain.yaml")) == SETTINGS
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    for words in ("tiny", "made-up.fa", "unigram", "uniform", "Held out", "No expression value was used"):
        assert words in card


def test_weights_that_float16_cannot_hold_are_not_exported(corpus: Corpus, tmp_path: Path) -> None:
    metrics, model = run(SETTINGS.edited(steps=1), corpus, tmp_path / "run")
    model.lm_head.bias.data[0] = 1e6
    with pytest.raises(EncoderError, match=r"lm_head\.bias"):
        export_encoder(SETTINGS, str(tmp_path), model, corpus, metrics)
    assert not open_storage(str(tmp_path)).exists(f"{encoder_prefix(SETTINGS.name)}/model.safetensors")


def test_a_checkpoint_of_another_architecture_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    run(SETTINGS.edited(steps=1), corpus, tmp_path / "run")
    shutil.move(tmp_path / "run" / "step-1", tmp_path / "kept")
    with pytest.raises(EncoderError, match="another architecture"):
        run(SETTINGS.edited(width=16), corpus, tmp_path / "other", resume_from=tmp_path / "kept")


def test_each_rank_gets_its_own_share_of_an_epoch(corpus: Corpus) -> None:
    source = BatchSource(corpus.train, alphabet_of("protein", 66), batch_tokens=128, seed=0)
    batches = source.epoch(0)
    half = len(batches) // 2
    streams = [_batches_from(source, Progress(), rank, 2) for rank in (0, 1)]
    seen = [[next(stream).token_ids.tobytes() for _ in range(half)] for stream in streams]
    whole = [source.batch(members, 0, index).token_ids.tobytes() for index, members in enumerate(batches)]
    assert seen[0] == whole[0 : 2 * half : 2]
    assert seen[1] == whole[1 : 2 * half : 2]


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate_at(SETTINGS, step, step / SETTINGS.steps) for step in range(SETTINGS.steps)]
    assert rates[0] == pytest.approx(SETTINGS.learning_rate / 5, rel=0.01)
    assert max(rates) == rates[4]
    assert rates[-1] < 0.01 * SETTINGS.learning_rate

"""The job on Ray Train with two workers: from a prepared dataset to an encoder that the registry opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
from isoformer.encoders.spec import pack
from isoformer.errors import InputError
from isoformer.training.pretrain import PretrainConfig, pretrain
from tiny_dataset import write_dataset


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_two_workers_make_an_encoder(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), window_bases=2048)
    config = PretrainConfig(
        name="ntv2-small-dna",
        modality="dna",
        width=16,
        layers=1,
        heads=2,
        feed_forward_width=16,
        max_tokens=32,
        steps=4,
        batch_tokens=128,
        validate_every_steps=2,
        validation_tokens=100,
        genome_windows=20,
        workers=2,
    )
    result = pretrain(config, str(tmp_path))
    assert result.metrics["step"] == 4
    assert result.metrics["uniform_perplexity"] == 4100
    folder = tmp_path / "encoders" / "ntv2-small-dna"
    assert result.uri.endswith("encoders/ntv2-small-dna")
    choice = EncoderChoice(name="ntv2-dna", weights=str(folder))
    encoded = load_encoder(choice).encode(pack([load_tokenizer(choice)("ACGTACGTACGT")]))
    assert tuple(encoded.hidden_PD.shape) == (2, 16)


def test_a_missing_gene_list_is_found_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude_genes"):
        pretrain(PretrainConfig(exclude_genes="/nowhere.txt"), str(tmp_path))

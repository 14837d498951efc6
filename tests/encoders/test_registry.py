"""Names, and that the registry needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from isoformer.encoders.registry import EncoderChoice, encoder_names, get_spec
from isoformer.errors import ConfigError


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'esm3'.*composition-dna"):
        get_spec(EncoderChoice(name="esm3"))


def test_specs_and_tokenizers_of_what_is_shipped_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from isoformer.encoders.registry import *\n"
        "for name in encoder_names():\n"
        "    choice = EncoderChoice(name=name)\n"
        "    try:\n"
        "        spec = get_spec(choice); letters = 'ACGT' * (sum(spec.window_bases or (1000,)) // 4)\n"
        "        load_tokenizer(choice)(letters); weights_digest(choice)\n"
        "    except Exception as error:\n"
        "        assert 'weights' in str(error), error\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_spec_per_name_carries_the_name_and_modality() -> None:
    for name in encoder_names():
        if name.startswith("composition-"):
            assert get_spec(EncoderChoice(name=name)).modality == name.removeprefix("composition-")


def test_an_encoder_on_the_wrong_modality_is_refused() -> None:
    assert get_spec(EncoderChoice(name="esm2-tiny", modality="protein")).modality == "protein"
    with pytest.raises(ConfigError, match="esm2-tiny reads protein; got modality 'rna'"):
        get_spec(EncoderChoice(name="esm2-tiny", modality="rna"))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("xpresso", "layer", 2), ("composition-rna", "precision", "bf16"), ("unirep-64", "max_tokens", 99)],
)
def test_an_option_that_an_encoder_lacks_is_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no option {option}: got {value!r}"):
        get_spec(EncoderChoice.model_validate({"name": name, option: value}))

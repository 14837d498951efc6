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

"""One trained root for the tests of predict; it is read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.sequence_model import SequenceModel
from predict.trained import trained_root


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transcripts, composition embeddings and the run `one`."""
    return trained_root(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def model(root: Path) -> SequenceModel:
    """The run `one`, from its folder."""
    return SequenceModel.from_run(str(root), "one")

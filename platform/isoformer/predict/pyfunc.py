"""The model as an MLflow one: `mlflow.pyfunc.load_model`, `mlflow models serve`, a registry.

In: a table with the columns dna, rna and protein (text, each may be missing or null). Out: a column a tissue,
natural log(1 + TPM). The artefact is a bundle, the code is `pyfunc_model.py`, three lines that name this
module: nothing is pickled. Whoever serves it needs this package installed.

A request is answered whole or refused with the row, the column and the value: a client that sends what cannot
be read is told so, and never gets a number for something else.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from isoformer import __version__
from isoformer.errors import ConfigError, InputError, StorageError
from isoformer.predict.bundle import TARGET_UNIT, load_bundle, save_bundle
from isoformer.predict.device import require_device
from isoformer.predict.mlflow_place import mlflow_at
from isoformer.predict.rows import given_row
from isoformer.schema import MODALITIES, Modality
from isoformer.tracking.sink import MlflowSink, quiet_environment

quiet_environment()  # before MLflow is there to look
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints while it is imported
    import mlflow
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.pyfunc.model import PythonModel
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec, DataType, Schema

if TYPE_CHECKING:
    from isoformer.sequence_model import SequenceModel, TranscriptSequences
    from isoformer.tracking import TrackingConfig

CODE_FILE: Final = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS: Final = (f"isoformer=={__version__}",)


class IsoformerModel(PythonModel):
    """What MLflow calls. `model_config` may name the device: {"device": "cuda"}."""

    def load_context(self, context: Any) -> None:
        device = require_device(str((context.model_config or {}).get("device", "cpu")))
        self._model = load_bundle(Path(context.artifacts["bundle"]), device=device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Natural log(1 + TPM), a row a row and a column a tissue; HTTP 400 where a row cannot be read."""
        try:
            return predicted_frame(self._model, model_input)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def predicted_frame(model: SequenceModel, frame: pd.DataFrame, *, batch_size: int = 32) -> pd.DataFrame:
    """A row a row, a column a tissue. InputError names the first row (from 0), its column and the value that
    cannot be read.
    """
    columns = [modality for modality in MODALITIES if modality in frame.columns]
    if not columns:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise InputError(f"no column of sequences; the columns are {found}", allowed=MODALITIES)
    cells = frame[columns].itertuples(index=False, name=None)
    rows = [dict(zip(columns, values, strict=True)) for values in cells]
    given = [_sequences(model, number, row) for number, row in enumerate(rows)]
    parts = [np.empty((0, len(model.target_names)), np.float32)]
    for start in range(0, len(rows), batch_size):
        predicted_BK, read = model.predict_read(given[start : start + batch_size])
        for number, problems in enumerate(read.unusable, start):
            for modality, problem in problems.items():
                value = rows[number][modality]
                raise InputError(problem, record=f"row {number}", field=modality, value=value)
        parts.append(predicted_BK)
    return pd.DataFrame(np.concatenate(parts).astype(np.float64), columns=list(model.target_names))


def save_pyfunc(model: SequenceModel, folder: Path, *, with_weights: bool = True) -> Path:
    """Write an MLflow model. StorageError where the folder is not empty; else as `save_bundle`."""
    if folder.exists():
        raise StorageError(f"{folder}: is there already; give a folder that is not there")
    with tempfile.TemporaryDirectory(prefix="isoformer-export-") as work:
        bundle = save_bundle(model, Path(work, "bundle"), with_weights=with_weights)
        mlflow.pyfunc.save_model(str(folder), **_described(model, bundle))
    return folder


def log_model(
    model: SequenceModel,
    *,
    tracking: TrackingConfig,
    registered_name: str | None = None,
    alias: str | None = None,
    with_weights: bool = True,
) -> str:
    """Log an MLflow model in a run of its own, and register it under a name where one is given.

    Returns its address: `models:/<name>/<version>` or `models:/<id>`. With an `alias` the new version is
    `models:/<name>@<alias>`, too, and no other version is any longer. ConfigError, before anything is logged,
    for an alias that MLflow does not take.
    """
    if alias is not None:
        _require_alias(alias, registered_name)
    MlflowSink(tracking).warm()  # makes a fresh store's tables and the experiment
    with mlflow_at(tracking.resolved_uri), tempfile.TemporaryDirectory(prefix="isoformer-export-") as work:
        bundle = save_bundle(model, Path(work, "bundle"), with_weights=with_weights)
        mlflow.set_experiment(tracking.experiment)
        with mlflow.start_run(run_name=f"export {model.origin.run}"):
            mlflow.set_tag("run_fingerprint", model.origin.fingerprint)
            logged = mlflow.pyfunc.log_model(
                name="model", registered_model_name=registered_name, **_described(model, bundle)
            )
    if registered_name is not None:
        version = str(logged.registered_model_version)
        if alias is not None:
            MlflowClient(tracking.resolved_uri).set_registered_model_alias(registered_name, alias, version)
        return f"models:/{registered_name}/{version}"
    return str(logged.model_uri)


def signature(model: SequenceModel) -> ModelSignature:
    """Three optional columns of text in, a column of doubles a tissue out."""
    inputs = Schema([ColSpec(DataType.string, name=m, required=False) for m in MODALITIES])
    outputs = Schema([ColSpec(DataType.double, name=name) for name in model.target_names])
    return ModelSignature(inputs=inputs, outputs=outputs)


def input_example(model: SequenceModel) -> pd.DataFrame:
    """One made-up transcript, with a window as long as the model was trained on."""
    random = np.random.default_rng(0)
    dna = "".join(random.choice(list("ACGT"), model.policy.dna_window_bases))
    rna = "".join(random.choice(list("ACGT"), 600))
    protein = "M" + "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 150))
    return pd.DataFrame({"dna": [dna], "rna": [rna], "protein": [protein]})


def _require_alias(alias: str, registered_name: str | None) -> None:
    if registered_name is None:
        raise ConfigError(f"alias {alias!r} is of a registered version: give registered_name, too")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", alias) or re.fullmatch(r"(?i)v[0-9]+|latest", alias):
        raise ConfigError(
            f"alias {alias!r}: must be letters, digits, - and _, and neither `latest` nor like v2"
        )


def _described(model: SequenceModel, bundle: Path) -> dict[str, Any]:
    return {
        "python_model": str(CODE_FILE),
        "artifacts": {"bundle": str(bundle)},
        "signature": signature(model),
        "input_example": input_example(model),
        "pip_requirements": list(REQUIREMENTS),
        "metadata": {"unit": TARGET_UNIT, **model.origin.model_dump(mode="json")},
    }


def _sequences(model: SequenceModel, number: int, cells: Mapping[Modality, Any]) -> TranscriptSequences:
    """A row's sequences as prepare makes them."""
    place = f"row {number}"
    given = {modality: _text(place, modality, value) for modality, value in cells.items()}
    if not any(given.get(modality) for modality in model.modalities):
        allowed = f"at least one of {', '.join(model.modalities)}, which the model reads"
        raise InputError("no sequence", record=place, allowed=allowed)
    row = given_row(place, given, model.policy)
    if row.sequences is None:
        modality = row.reason.partition("_")[0]
        raise InputError(f"{row.reason}: {row.notes}", record=place, field=modality)
    return row.sequences


def _text(place: str, modality: Modality, value: object) -> str | None:
    """A cell: text, or nothing."""
    if value is None or value is pd.NA or value != value:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            "not a sequence",
            record=place,
            field=modality,
            value=value,
            allowed="letters, or null where missing",
        )
    return value

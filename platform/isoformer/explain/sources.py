"""The model and the encoders that an explanation is of, from what the command line names."""

from __future__ import annotations

from typing import Final

from isoformer.encoders.registry import load_trainable
from isoformer.errors import InputError
from isoformer.explain.attention import RnaEncoder
from isoformer.explain.config import ExplainConfig
from isoformer.predict.device import require_device
from isoformer.schema import Modality
from isoformer.sequence_model import SequenceModel
from isoformer.settings import Settings

PUBLISHED: Final = "published"
"""In the place of a run: an encoder as it was before the model was trained."""


def open_model(settings: Settings, *, run: str | None = None, source: str | None = None) -> SequenceModel:
    """A run of the root (null: the settings' own), or a model anywhere. ConfigError where its device is not
    there.
    """
    device = require_device(settings.explain.device)
    if source is not None:
        tracking = settings.tracking.for_root(settings.root)
        return SequenceModel.open(source, device=device, tracking_uri=tracking.resolved_uri)
    return SequenceModel.from_run(settings.root, run or settings.run, device=device)


def rna_encoder(model: SequenceModel, name: str, options: ExplainConfig) -> RnaEncoder:
    """The RNA encoder as the model has it. InputError where the model reads no RNA."""
    modality: Modality = "rna"
    if modality not in model.modalities:
        raise InputError("the model reads no RNA", file=name, allowed=model.modalities)
    tokenizer = model.tokenizer_of(modality)
    if modality in model.model.config.encoders:
        return RnaEncoder(name, model.model.encoder_inside(modality).eval(), tokenizer)
    choice = model.encoders[modality].choice.edited(precision="f32")
    return RnaEncoder(name, load_trainable(choice, options.device).eval(), tokenizer)


def published_rna_encoder(model: SequenceModel, options: ExplainConfig) -> RnaEncoder:
    """The RNA encoder with the weights that it had before the model was trained."""
    if "rna" in model.encoders:
        choice = model.encoders["rna"].choice
    else:
        settings = model.model.config.encoders["rna"]
        choice = settings.encoder
        if settings.regime == "scratch":
            raise InputError(
                "its RNA encoder was trained from random weights", field="against", value=PUBLISHED
            )
    choice = choice.edited(precision="f32")
    return RnaEncoder(PUBLISHED, load_trainable(choice, options.device).eval(), model.tokenizer_of("rna"))

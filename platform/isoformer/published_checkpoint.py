"""The published IsoFormer checkpoint (`InstaDeepAI/isoformer`), as three encoders and a model of ours.

    FILE  →  OUTPUT/dna, /rna, /protein   config.json and model.safetensors: `weights` of an EncoderChoice
             OUTPUT/model.safetensors     cross-attentions and head: what `load_model` reads

In it DNA asks RNA, then protein, and DNA alone is averaged for the head. What the public code evidences are
`cross_attention_layer_rna` and `cross_attention_layer_protein` with `query, key, value, dense`; the rest is
found by shape, and a tensor that has no place here is refused by name: nothing is left out silently.

NOT VERIFIED against the real file: nobody has compared predictions with the authors' yet
(`compare_published`: the README says how). Assumed until then: 8 heads, and a head that is one linear layer
with a row a tissue, in the published table's order. The checkpoint predicts standardised
values; their means and deviations are not in it, so `predict` gives them as they are.

Shapes: B samples, L positions, D width, K tissues.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isoformer.encoders.esm_like import sizes
from isoformer.encoders.packed_encoder import load_packed_encoder
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import Encoder, pack
from isoformer.encoders.weights_files import check_names_and_shapes, read_tensors, state_file
from isoformer.errors import EncoderError, InputError
from isoformer.fusion import Tokens
from isoformer.model import IsoFormer, ModelConfig, load_model, save_model
from isoformer.published_parts import ENCODERS, EncoderPart, take_encoders
from isoformer.schema import TISSUES, Modality

HEADS: Final = 8
MODEL_FILE: Final = "model.safetensors"
_CHILDREN: Final = ("query", "key", "value", "dense")
_ASKED: Final[tuple[Modality, ...]] = ("rna", "protein")


def import_published(checkpoint: Path, output: Path, *, heads: int = HEADS) -> dict[Modality, EncoderChoice]:
    """Write `output` whole or not at all; gives the choices that load its encoders.

    `checkpoint` is a file of plain tensors, or the folder that holds it. EncoderError naming the tensors that
    are missing, surplus or of another shape; InputError where `output` exists.
    """
    if output.exists():
        raise InputError("exists already; name a new folder", file=output)
    file = state_file(checkpoint) if checkpoint.is_dir() else checkpoint
    state = read_tensors(file)
    parts = take_encoders(state, file=file)
    model = _model({modality: part.width for modality, part in parts.items()}, state, heads, file)
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        for modality, part in parts.items():
            _write_encoder(fresh / modality, modality, part, file)
        save_model(model, fresh / MODEL_FILE, {"imported_from": file.name})
        os.rename(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return encoder_choices(output)


def encoder_choices(folder: Path) -> dict[Modality, EncoderChoice]:
    """The encoders of an imported checkpoint."""
    return {m: EncoderChoice(name=name, weights=str(folder / m)) for m, name in ENCODERS.items()}


@dataclass(frozen=True)
class Comparison:
    """Largest absolute differences from the authors' predictions (standardised values).

    `as_stored_here`: with the positions that this platform keeps, which leave special tokens out; the
    authors' code attends to them.
    """

    with_special_tokens: float
    as_stored_here: float
    fused_dna: float
    revision: str


def compare_published(folder: Path, reference: Path) -> Comparison:
    """Predict with an imported checkpoint what the authors' code did.

    `reference`: a safetensors file with `predictions` (1, K) and `fused_dna` (1, L, D), and in its metadata
    `sequences` (JSON: dna, rna, protein) and `revision`. InputError where it is another file.
    """
    try:
        with safe_open(reference, framework="pt") as file:
            sequences = json.loads(file.metadata()["sequences"])
            revision = file.metadata()["revision"]
            predictions_BK, fused_BLD = file.get_tensor("predictions"), file.get_tensor("fused_dna")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a reference file ({error})", file=reference) from error
    model, choices = load_model(folder / MODEL_FILE), encoder_choices(folder)
    kept = {
        modality: _states(load_encoder(choices[modality]), choices[modality], text)
        for modality, text in sequences.items()
    }
    everything = {
        **kept,
        **{m: _states(_with_special_tokens(m, choices[m]), choices[m], sequences[m]) for m in _ASKED},
    }
    with torch.no_grad():
        return Comparison(
            with_special_tokens=_largest(model(everything), predictions_BK),
            as_stored_here=_largest(model(kept), predictions_BK),
            fused_dna=_largest(model.fusion(everything)[0].hidden_BLD, fused_BLD),
            revision=revision,
        )


def _model(widths: Mapping[Modality, int], rest: Mapping[str, Tensor], heads: int, file: Path) -> IsoFormer:
    """Cross-attentions and head, from all that is not an encoder's."""
    config = ModelConfig(queries=("dna",), heads=heads, standardise_inputs=False, zero_start=False)
    model = IsoFormer(config, widths, TISSUES)
    names = _names(rest)
    expected = {theirs: tuple(model.state_dict()[ours].shape) for theirs, ours in names.items()}
    check_names_and_shapes(expected, {name: tuple(rest[name].shape) for name in rest}, file=file)
    model.load_state_dict({**model.state_dict(), **{ours: rest[theirs] for theirs, ours in names.items()}})
    return model.eval()


def _names(rest: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the checkpoint → name in our model. The head is known by its bias, a value a tissue."""
    names = {
        f"cross_attention_layer_{asked}.{child}.{kind}": f"fusion.blocks.0.dna.{asked}.{child}.{kind}"
        for asked in _ASKED
        for child in _CHILDREN
        for kind in ("weight", "bias")
    }
    biases = [name for name in rest if name.endswith(".bias") and name not in names]
    of_tissues = [name for name in biases if tuple(rest[name].shape) == (len(TISSUES),)]
    head = of_tissues[0].removesuffix(".bias") if len(of_tissues) == 1 else "head"
    return {**names, f"{head}.weight": "head.weight", f"{head}.bias": "head.bias"}


def _write_encoder(folder: Path, modality: Modality, part: EncoderPart, file: Path) -> None:
    """Written, then loaded by its family, which names what does not fit."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(part.config, indent=2), encoding="utf-8")
    tensors = {name: tensor.contiguous().clone() for name, tensor in part.tensors.items()}
    save_file(tensors, folder / MODEL_FILE, metadata={"format": "pt"})
    try:
        load_encoder(EncoderChoice(name=ENCODERS[modality], weights=str(folder)))
    except EncoderError as error:
        raise EncoderError(f"{file}: the {modality} encoder: {error}") from error


def _with_special_tokens(modality: Modality, choice: EncoderChoice) -> Encoder:
    config = sizes(choice, gated_feed_forward=modality == "rna")
    return load_packed_encoder(choice, get_spec(choice), config, special_ids=frozenset(), device="cpu")


def _states(encoder: Encoder, choice: EncoderChoice, sequence: str) -> Tokens:
    """A batch of one."""
    hidden_LD = encoder.encode(pack([load_tokenizer(choice)(sequence)])).hidden_PD
    return Tokens(hidden_LD[None], torch.ones(1, len(hidden_LD), dtype=torch.bool))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise InputError(f"the authors' values are {tuple(theirs.shape)}, ours {tuple(ours.shape)}")
    return float((ours - theirs).abs().max())

"""The name of an embedding dataset: readable, and different wherever a value could be.

    esm2-tiny.3f9a01bc.bins-16.f16.5d0c77e2
    name      weights  resolution dtype hash over everything that can change a value

Called by the plan (to know what is wanted) and by whoever trains (to ask for it).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.resolution import max_positions
from isoformer.encoders.spec import EncoderSpec
from isoformer.errors import ConfigError
from isoformer.schema import Modality

DType = Literal["f16", "f32"]
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
CODE_VERSION: Final = 1
"""Goes up when this package cuts, packs, reduces or rounds differently: old values are not taken for new."""


def encoder_key(spec: EncoderSpec, weights_digest: str, resolution: str, dtype: str = "f16") -> str:
    """The key under `embeddings/<modality>/`. ConfigError for an unknown resolution or dtype."""
    max_positions(resolution)
    if dtype not in NUMPY_DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known; allowed: {', '.join(get_args(DType))}")
    identity = json.dumps(_identity(spec, weights_digest, resolution, dtype), sort_keys=True)
    short = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
    weights = weights_digest if weights_digest.startswith("random-") else weights_digest[:8]
    return ".".join((spec.name, weights, resolution.replace(":", "-"), dtype, short))


def dataset_prefix(modality: Modality, key: str) -> str:
    """Where a dataset's objects are, under the root, with the final '/'."""
    return f"embeddings/{modality}/{key}/"


def to_dtype(values_LD: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round to the stored type; a value too large for it becomes infinite, which the caller checks."""
    with np.errstate(over="ignore"):
        return values_LD.astype(NUMPY_DTYPES[dtype])


def _identity(spec: EncoderSpec, weights_digest: str, resolution: str, dtype: str) -> dict[str, Any]:
    return {
        "code": CODE_VERSION,
        "name": spec.name,
        "family": spec.family,
        "modality": spec.modality,
        "width": spec.width,
        "max_tokens": spec.max_tokens,
        "window_bases": spec.window_bases,
        "identity": dict(spec.identity),
        "weights": weights_digest,
        "resolution": resolution,
        "dtype": dtype,
    }

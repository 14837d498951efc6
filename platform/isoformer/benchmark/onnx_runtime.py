"""The library's model in ONNX Runtime: the fastest exact way to run it on a CPU that is offered elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import EsmModel

from isoformer.encoders.spec import Tokenized
from isoformer.errors import ConfigError

# L tokens of a sequence, D width


def onnx_runtime(library: EsmModel, threads: int, folder: Path) -> Callable[[Tokenized], NDArray[np.float32]]:
    """A function from one sequence to its states (L, D). `folder` keeps the exported file.

    ConfigError where the packages of `isoformer[benchmark]` are not installed.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    file = _exported(library, folder / "model.onnx")
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(one: Tokenized) -> NDArray[np.float32]:
        ids = one.token_ids[None].astype(np.int64)
        return session.run(["states"], {"ids": ids, "mask": np.ones_like(ids)})[0][0]

    return run


def _exported(library: EsmModel, file: Path) -> Path:
    """With a length that may vary. The exporter's remarks on packages that nothing needs are not shown."""
    example = (torch.full((1, 64), 5), torch.ones(1, 64, dtype=torch.long))
    length = torch.export.Dim("length")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _LastHiddenState(library),
            example,
            file,
            input_names=["ids", "mask"],
            output_names=["states"],
            dynamic_shapes={"ids": {1: length}, "mask": {1: length}},
            dynamo=True,
        )
    return file


class _LastHiddenState(nn.Module):
    def __init__(self, library: EsmModel) -> None:
        super().__init__()
        self._library = library

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._library(ids, attention_mask=mask).last_hidden_state


def _runtime() -> Any:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(f"{error}; to compare with ONNX Runtime, install isoformer[benchmark]") from None

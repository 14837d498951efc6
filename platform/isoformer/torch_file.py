"""A file of torch's, read without running a line of it: tensors, plain containers, numbers and texts.

In: a path. Out: what the file holds; a `TorchFileError` in one line for everything that a damaged, cut or
hostile file can do. Called by the readers of weights and of checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile


class TorchFileError(ValueError):
    """Why a file is not one of plain tensors; without the file's name."""


def read_torch_file(path: Path, *, classes: Sequence[type] = (), mmap: bool = False) -> object:
    """The content; also instances of `classes`. `mmap`: tensors stay in the file where its format can."""
    import torch

    try:
        with torch.serialization.safe_globals(list(classes)), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # the reader says what is wrong
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zipfile(path))
    except MemoryError:
        raise TorchFileError("asks for more memory than there is") from None
    except Exception as error:  # opcodes of a damaged file meet whatever they meet
        raise TorchFileError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Torch's own text advises to run the file's code; only what is wrong is kept of it."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
    return f"{text.partition(' was not an allowed global')[0]}" if text else type(error).__name__

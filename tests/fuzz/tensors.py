"""Files of tensors as seeds: whole ones, those that lie about their sizes, and pickles that run a command."""

from __future__ import annotations

import io
import json
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fuzz.door import CANARY


class Hostile:
    """Unpickled, it makes the canary in the working folder's place that the harness looks at."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def plant(data: bytes, folder: Path) -> bytes:
    """Hostile inputs hold a place of equal length for the folder that the canary is to be made in."""
    return data.replace(b"@" * 64, str(folder / CANARY).encode().rjust(64, b"/"))


@cache
def tensors_bytes() -> bytes:
    return save({"w": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.float16)}, {"format": "pt"})


def torch_bytes(content: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, **options)
    return sink.getvalue()


@cache
def hostile_pickles() -> tuple[bytes, ...]:
    """Pickles that run a command, bare and in torch's two formats."""
    command = "touch " + "@" * 64
    return (
        pickle.dumps(Hostile(command)),
        torch_bytes({"w": Hostile(command)}),
        torch_bytes(Hostile(command), _use_new_zipfile_serialization=False),
    )


def safetensors_of(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


HEADERS = (
    safetensors_of({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, b"\0" * 4),
    safetensors_of({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
    b"\xff" * 8 + b"{}",
    b"",
    safetensors_of({}),
    safetensors_of([]),
)

TORCH_WORDS = (
    b"cos\nsystem\n",
    b"PK\x03\x04",
    b"(",
    b"R",
    b".",
    b"\x80\x02",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\xff" * 8,
    b"cbuiltins\neval\n",
)

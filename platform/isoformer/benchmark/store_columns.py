"""Arrow types that hold the values of (positions, width) arrays: built from them, and flattened again.

Every one takes and gives the values of a row group laid end to end, without a copy where Arrow allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# N values of a row group laid end to end

Values = NDArray[np.float16]
_HALF_BYTES: Final = 2


@dataclass(frozen=True)
class Column:
    """An Arrow type for the values. `build` takes values (N,), positions of each sequence, and the width.

    `flat` gives back the (N,) values of a whole column. `a_position`: a row is a position, not a sequence.
    `leaf`: the name of the Parquet column that holds them.
    """

    build: Callable[[Values, NDArray[np.int64], int], pa.Array]
    flat: Callable[[pa.Array], Values]
    a_position: bool = False
    leaf: str = "embedding"


def _binary(
    kind: pa.DataType, offset: type[np.integer[Any]], values_N: Values, counts: NDArray[np.int64], width: int
) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts) * width * _HALF_BYTES]).astype(offset)
    return pa.Array.from_buffers(kind, len(counts), [None, pa.py_buffer(offsets), pa.py_buffer(values_N)])


def _binary_values(array: pa.Array) -> Values:
    bounds = _bounds(array)
    return np.frombuffer(array.buffers()[2], np.float16)[bounds[0] // _HALF_BYTES : bounds[-1] // _HALF_BYTES]


def _bounds(array: pa.Array) -> NDArray[Any]:
    """(rows + 1,) where each value begins and ends among the bytes."""
    offset = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    return np.frombuffer(array.buffers()[1], offset)[array.offset : array.offset + len(array) + 1]


def _split_binary(values_N: Values, counts: NDArray[np.int64], width: int) -> pa.Array:
    whole, split = values_N.view(np.uint8), np.empty(values_N.nbytes, np.uint8)
    ends = np.cumsum(counts) * width * _HALF_BYTES
    for start, stop in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        split[start:stop].reshape(_HALF_BYTES, -1)[:] = whole[start:stop].reshape(-1, _HALF_BYTES).T
    return _binary(pa.large_binary(), np.int64, split.view(np.float16), counts, width)


def _split_binary_values(array: pa.Array) -> Values:
    bounds = _bounds(array)
    split = np.frombuffer(array.buffers()[2], np.uint8)[bounds[0] : bounds[-1]]
    whole = np.empty_like(split)
    ends = bounds[1:] - bounds[0]
    for start, stop in zip(bounds[:-1] - bounds[0], ends, strict=True):
        whole[start:stop].reshape(-1, _HALF_BYTES)[:] = split[start:stop].reshape(_HALF_BYTES, -1).T
    return whole.view(np.float16)


def _list(values_N: Values, counts: NDArray[np.int64], width: int) -> pa.Array:
    return pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(counts) * width]), pa.array(values_N))


def _nested_list(values_N: Values, counts: NDArray[np.int64], width: int) -> pa.Array:
    positions = pa.FixedSizeListArray.from_arrays(pa.array(values_N), width)
    return pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]), positions)


def _tensor(values_N: Values, counts: NDArray[np.int64], width: int) -> pa.Array:
    shapes = pa.array(np.stack([counts, np.full_like(counts, width)], axis=1).astype(np.int32).reshape(-1))
    shape = pa.FixedSizeListArray.from_arrays(shapes, 2)
    return pa.StructArray.from_arrays([_list(values_N, counts, width), shape], ["data", "shape"])


def _fixed_binary(values_N: Values, counts: NDArray[np.int64], width: int) -> pa.Array:
    kind = pa.binary(width * _HALF_BYTES)
    return pa.Array.from_buffers(kind, int(counts.sum()), [None, pa.py_buffer(values_N)])


def _fixed_binary_values(array: pa.Array) -> Values:
    size = array.type.byte_width // _HALF_BYTES
    values = np.frombuffer(array.buffers()[1], np.float16)
    return values[array.offset * size : (array.offset + len(array)) * size]


LARGE_BINARY: Final = Column(partial(_binary, pa.large_binary(), np.int64), _binary_values)
COLUMNS: Final[Mapping[str, Column]] = {
    "large_binary": LARGE_BINARY,
    "binary": Column(partial(_binary, pa.binary(), np.int32), _binary_values),
    "split_large_binary": Column(_split_binary, _split_binary_values),
    "list": Column(_list, lambda array: array.flatten().to_numpy(), leaf="embedding.list.element"),
    "list_of_fixed_list": Column(
        _nested_list,
        lambda array: array.flatten().flatten().to_numpy(),
        leaf="embedding.list.element.list.element",
    ),
    "tensor": Column(
        _tensor,
        lambda array: array.field("data").flatten().to_numpy(),
        leaf="embedding.data.list.element",
    ),
    "position_fixed_list": Column(
        lambda values_N, _, width: pa.FixedSizeListArray.from_arrays(pa.array(values_N), width),
        lambda array: array.flatten().to_numpy(),
        a_position=True,
        leaf="embedding.list.element",
    ),
    "position_fixed_binary": Column(_fixed_binary, _fixed_binary_values, a_position=True),
}
"""Name → column.

`split_large_binary`: of each sequence first all low bytes, then all high bytes, so that a compressor finds
the exponents together; Parquet itself (BYTE_STREAM_SPLIT) does so for values of a fixed length only.
`tensor`: data and shape, the storage of Arrow's canonical variable-shape tensor and of Ray's own.
`position_…`: a row a position.
"""

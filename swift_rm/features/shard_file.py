"""One shard of features as a safetensors file: what belongs to the responses in front, their states behind, memory-mapped.

Checksums are zlib's CRC-32, several times as fast as SHA-256: they are there against a broken disk, not against an enemy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swift_rm.files.atomic_write import write_whole

_NAMES = {
    torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.float32: "F32", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
STATES, RECORDS = "states", "records"
_ALIGNED = 64  # bytes: where the states begin, so that their rows begin like those of any tensor


@dataclass(frozen=True)
class Checksums:
    """A shard's size and CRC-32, and the same of its head: everything before the states."""

    bytes: int
    crc32: int
    head_bytes: int
    head_crc32: int


@dataclass(frozen=True)
class ShardHead:
    """What a shard holds besides states: small tensors by name, a JSON record, and the states' dtype and shape."""

    tensors: Mapping[str, Tensor]
    records: Mapping[str, Any]
    dtype: torch.dtype
    shape: tuple[int, int]


class ShardImage:
    """A shard's file in memory, made at its final size, so that ``states`` are rounded straight into it.

    ``head`` are the small tensors by name, in place too: the longest kinds of numbers must come first.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], records: Mapping[str, Any], dtype: torch.dtype, shape: tuple[int, int]
    ) -> None:
        padding = torch.zeros(-sum(tensor.nbytes for tensor in tensors.values()) % _ALIGNED, dtype=torch.int8)
        tensors = {**tensors, "padding": padding}
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} | {STATES: (dtype, shape)}
        layout: dict[str, Any] = {}
        end = 0
        for name, (kind, dimensions) in shapes.items():
            start, end = end, end + math.prod(dimensions) * kind.itemsize
            layout[name] = {"dtype": _NAMES[kind], "shape": list(dimensions), "data_offsets": [start, end]}
        text = json.dumps({"__metadata__": {RECORDS: json.dumps(records, ensure_ascii=False)}, **layout}).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNED)
        self.head_bytes = 8 + len(text) + layout[STATES]["data_offsets"][0]
        self._image = torch.empty(8 + len(text) + end, dtype=torch.uint8)
        head = len(text).to_bytes(8, "little") + text
        self._image[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        views = _tensors(self._image, layout, len(head))
        self.states = views.pop(STATES)
        for name, tensor in tensors.items():
            views[name].copy_(tensor)
        self.head = views

    def write(self, path: Path) -> Checksums:
        """Write the file whole and return its checksums."""
        image = self._image.numpy().data
        head_crc32 = zlib.crc32(image[: self.head_bytes])
        write_whole(path, image)
        return Checksums(len(image), zlib.crc32(image[self.head_bytes :], head_crc32), self.head_bytes, head_crc32)


def read_head(path: Path, expected: Checksums) -> ShardHead:
    """Read everything but the states; raise ValueError with the reason if the file is not as it was written."""
    data = bytearray(expected.head_bytes)
    with _opened(path, expected) as file:
        if file.readinto(data) != len(data) or zlib.crc32(data) != expected.head_crc32:
            raise ValueError("its checksum differs")
    length = 8 + int.from_bytes(data[:8], "little")
    layout = json.loads(bytes(data[8:length]))
    records = json.loads(layout.pop("__metadata__")[RECORDS])
    states = layout.pop(STATES)
    tensors = _tensors(torch.frombuffer(data, dtype=torch.uint8), layout, length)
    return ShardHead(tensors, records, _DTYPES[states["dtype"]], tuple(states["shape"]))


def map_states(path: Path, expected: Checksums, dtype: torch.dtype, shape: tuple[int, int], *, verify: bool) -> Tensor:
    """Map the states ``[T, D]`` into memory without a copy; they are let go with the last tensor that looks at them.

    Raises ValueError with the reason if the file is not as it was written; ``verify`` reads it whole for its checksum.
    """
    with _opened(path, expected) as file:
        # A private map, so that torch takes it for memory that may be written; nothing gets back to the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if verify and zlib.crc32(mapped) != expected.crc32:
        raise ValueError("its checksum differs")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, offset=expected.head_bytes).view(shape)


def broken(path: Path, expected: Checksums) -> str | None:
    """Return why a shard cannot be used, having read all of it, or None."""
    try:
        with _opened(path, expected) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return None if zlib.crc32(mapped) == expected.crc32 else "its checksum differs"
    except ValueError as error:
        return str(error)


@contextmanager
def _opened(path: Path, expected: Checksums) -> Iterator[FileIO]:
    """Open a file of the size expected, unbuffered; raise ValueError with the reason if there is none."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        raise ValueError("it is missing") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise ValueError(f"it has {size:,} bytes instead of {expected.bytes:,}")
        yield file


def _tensors(data: Tensor, layout: Mapping[str, Any], start: int) -> dict[str, Tensor]:
    found = {}
    for name, one in layout.items():
        first, last = (start + offset for offset in one["data_offsets"])
        found[name] = data[first:last].view(_DTYPES[one["dtype"]]).view(one["shape"])
    return found

"""Safetensors files, read by rows: into memory that the reader owns, never mapped, so that nothing is there twice."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}
"""What the format calls the types that a checkpoint of ours may have."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class StoredTensor(NamedTuple):
    """One tensor of a file; `offset` is where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """A file whose header is read and found right; stays open. Raises OSError and SafetensorError."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="np"):  # the library checks sizes and offsets against the file
            pass
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        size = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = json.loads(os.pread(self._descriptor, size, 8))
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Return some rows of a tensor, all of them by default. Raises SafetensorError where the file was cut short."""
        stored = self.tensors[name]
        dtype, shape = _DTYPES[stored.dtype], stored.shape
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        row_bytes = dtype.itemsize * torch.Size(shape[1:]).numel()
        made = torch.empty((last - first, *shape[1:]) if shape else (), dtype=dtype)
        into = made.reshape(-1).view(torch.uint8).numpy().data
        offset = stored.offset + first * row_bytes
        while into:
            count = os.preadv(self._descriptor, [into], offset)
            if not count:
                raise SafetensorError("it ends before the tensor does")
            into, offset = into[count:], offset + count
        return made


__all__ = ["DTYPE_NAMES", "SafetensorError", "StoredTensor", "TensorFile"]

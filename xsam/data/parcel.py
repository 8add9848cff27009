"""Batches on their way from a worker: all tensors in one, which is pinned, and so copied to the GPU, as a whole. Each
would be a shared file: referring sentences have hundreds of small ones, a process may open 1024 files by default."""

import io
import pickle
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

ALIGNED = 64  # bytes: a view needs its own dtype's, vector loads like more

Place = tuple[torch.dtype, torch.Size, int]  # of a tensor among the packed ones; the last is its first byte


def pack(value: Any) -> tuple[bytes, Tensor]:
    """Any dataclasses, tuples and lists of tensors -> what they are without tensors, and uint8[bytes] of the tensors,
    each once."""
    pickler = _Pickler(file := io.BytesIO())
    pickler.dump(value)
    if get_worker_info() is None:
        packed = torch.empty(pickler.size, dtype=torch.uint8)
    else:  # shared from the start, as in torch's own collate: a copy less
        packed = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(pickler.size, 1)))
    for tensor, place in pickler.tensors.values():
        _view(packed, place).copy_(tensor)
    return file.getvalue(), packed


def unpack(parcel: tuple[bytes, Tensor]) -> Any:
    """What was packed; its tensors are views into the parcel's."""
    return _Unpickler(io.BytesIO(parcel[0]), parcel[1]).load()


class _Pickler(pickle.Pickler):  # writes everything but tensors, of which it writes the place
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: dict[int, tuple[Tensor, Place]] = {}  # by identity
        self.size = 0

    def persistent_id(self, value: Any) -> Place | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self.tensors:
            self.tensors[id(value)] = value, (value.dtype, value.shape, self.size)
            self.size += -(-value.nbytes // ALIGNED) * ALIGNED
        return self.tensors[id(value)][1]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, packed: Tensor) -> None:
        super().__init__(file)
        self.packed = packed

    def persistent_load(self, pid: Place) -> Tensor:
        return _view(self.packed, pid)


def _view(packed: Tensor, place: Place) -> Tensor:
    dtype, shape, start = place
    return packed[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)

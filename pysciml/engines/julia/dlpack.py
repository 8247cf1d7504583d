"""Memory of Julia's as torch tensors, without a copy: the DLPack protocol by hand."""

from __future__ import annotations

import ctypes as ct
from typing import Any

import torch
from torch import Tensor

#: DLPack's numbers for kinds of memory.
CPU, CUDA = 1, 2
_FLOAT = 2


class _Device(ct.Structure):
    _fields_ = [("type", ct.c_int32), ("index", ct.c_int32)]


class _Type(ct.Structure):
    _fields_ = [("code", ct.c_uint8), ("bits", ct.c_uint8), ("lanes", ct.c_uint16)]


class _Array(ct.Structure):
    _fields_ = [
        ("data", ct.c_void_p),
        ("device", _Device),
        ("ndim", ct.c_int32),
        ("dtype", _Type),
        ("shape", ct.POINTER(ct.c_int64)),
        ("strides", ct.c_void_p),
        ("byte_offset", ct.c_uint64),
    ]


class _Managed(ct.Structure):
    pass


_DELETE = ct.CFUNCTYPE(None, ct.POINTER(_Managed))
_Managed._fields_ = [("array", _Array), ("context", ct.c_void_p), ("deleter", _DELETE)]

_capsule = ct.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ct.py_object, (ct.c_void_p, ct.c_char_p, ct.c_void_p)

#: What tensors that were handed out stand on, by the address of their description.
_alive: dict[int, tuple[Any, ...]] = {}


@_DELETE
def _delete(managed: Any) -> None:
    _alive.pop(ct.addressof(managed.contents), None)


class _Exported:
    def __init__(self, managed: _Managed) -> None:
        self.managed = managed

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self.managed.array.device
        return device.type, device.index

    def __dlpack__(self, **_: Any) -> Any:
        """The capsule; whoever made the memory has waited for the device already."""
        return _capsule(ct.addressof(self.managed), b"dltensor", None)


def tensor_at(
    pointer: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, owner: object
) -> Tensor:
    """The contiguous array of ``shape`` at an address on ``device`` (cpu or cuda) as a tensor.

    ``owner`` is kept for as long as the tensor's memory is used.
    """
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    lengths = (ct.c_int64 * len(shape))(*shape)
    kind = CUDA if device.type == "cuda" else CPU
    array = _Array(
        pointer, _Device(kind, device.index or 0), len(shape),
        _Type(_FLOAT, 8 * dtype.itemsize, 1),
        ct.cast(lengths, ct.POINTER(ct.c_int64)), None, 0,
    )  # fmt: skip
    managed = _Managed(array, None, _delete)
    _alive[ct.addressof(managed)] = (managed, lengths, owner)
    out: Tensor = torch.utils.dlpack.from_dlpack(_Exported(managed))
    return out

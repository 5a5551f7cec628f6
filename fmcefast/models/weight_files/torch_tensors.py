"""Tensors as torch.save describes them in its pickle, and how they lie in the bytes of a storage."""

import math
import re
from typing import Any, NamedTuple

import torch

from fmcefast.models.weight_files.pickles import Global, Placeholder

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}
_NEWER_DTYPES = (
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
_DTYPES = {str(dtype): dtype for dtype in (*_STORAGES.values(), *_NEWER_DTYPES)}
_QUANTISED = {"QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32}

_REBUILD = "torch._utils._rebuild_"
_STRIDED = (_REBUILD + "tensor", _REBUILD + "tensor_v2", _REBUILD + "tensor_v3")
# The tensor is their first argument; they would have made a Parameter of it, or put it onto a device.
_AROUND_A_TENSOR = (
    _REBUILD + "parameter",
    _REBUILD + "parameter_with_state",
    _REBUILD + "device_tensor_from_cpu_tensor",
)
_SUBCLASS = ("torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2")


class Storage(NamedTuple):
    """Elements that tensors share. key: their name in the file; first: the element at which a view of them begins."""

    key: str
    dtype: torch.dtype
    elements: int
    first: int = 0


class StoredTensor(NamedTuple):
    """A tensor in a file. offset, stride: in elements, from the beginning of the storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Unreadable(NamedTuple):
    """A tensor that cannot be read, and what it is."""

    what: str


def storage_of(identifier: Any) -> Storage | Global:
    """The storage of a persistent identifier in torch.save's pickle, or the class of one about a module's source code.

    Raises ValueError for any other identifier.
    """
    match identifier:
        case ("storage", Global(name=name), str(key), str(), int(elements), *views):
            kind = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?_?(\w+)Storage", name)
            dtype = None if kind is None else {**_STORAGES, **_QUANTISED}.get(kind[1])
            if dtype is None:
                raise ValueError(f"it holds a storage of the unknown type {name}")
            first = 0 if not views or views[0] is None else views[0][1]
            return Storage(key, dtype, _count(elements), _count(first))
        case ("module", Global() as owner, *_):
            return owner
    raise ValueError("it refers to something that is no storage")


def tensor_of(value: Any) -> StoredTensor | Unreadable | None:
    """The tensor that a value of the pickle describes; None for any other value. Raises ValueError for nonsense."""
    while isinstance(value, Placeholder):
        if value.name in _SUBCLASS:
            function, _, arguments, *_ = value.arguments
            if not isinstance(arguments, tuple):
                raise ValueError("it calls what is no function")
            value = Placeholder(function.name, arguments)
        elif value.name in _AROUND_A_TENSOR:
            value = value.arguments[0]
        elif value.name in _STRIDED:
            return _strided(value)
        elif value.name.startswith(_REBUILD):
            return Unreadable(value.name.removeprefix(_REBUILD).replace("_", " "))
        else:
            return None
    return None


def read_tensor(stored: StoredTensor, content: torch.Tensor) -> torch.Tensor:
    """The tensor in the bytes of its storage (n,) uint8, whose memory it shares.

    Raises ValueError when it is not in there, or claims to have more elements than there are.
    """
    end = stored.offset + 1 + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
    elements = len(content) // stored.dtype.itemsize
    number = math.prod(stored.shape)
    if number and max(end, number) > elements:
        raise ValueError(f"a tensor of the shape {stored.shape} does not lie in its storage of {elements} elements")
    values = content[: elements * stored.dtype.itemsize].view(stored.dtype)
    return values.as_strided(stored.shape, stored.stride, stored.offset if number else 0)


def _strided(value: Placeholder) -> StoredTensor | Unreadable:
    storage, offset, shape, stride, *more = value.arguments
    if not isinstance(storage, Storage):
        raise ValueError("it holds a tensor without a storage")
    dtype, metadata = str(storage.dtype), more[2:]
    if value.name.endswith("v3"):
        dtype, metadata = more[2].name, more[3:]
    if dtype not in _DTYPES:
        return Unreadable(f"the type {dtype}")
    if any(metadata):
        return Unreadable("conjugated or negated")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise ValueError("the shape or the stride of a tensor is wrong")
    return StoredTensor(
        storage, _DTYPES[dtype], storage.first + _count(offset), tuple(map(_count, shape)), tuple(map(_count, stride))
    )


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise ValueError("what should be a number of elements is none")
    return number

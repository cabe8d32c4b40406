"""What takes the place of the names in a pickle of tensors: functions and classes of ours, for torch's and NumPy's."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from .unpickle import Block, Name, Stream

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a value, by the names of torch's dtypes.
SIZES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16},
}
_STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}
_MOST_DIMENSIONS = 64
_MOST_SHARED = 4  # times its size, what all tensors of a storage may take together: weights are tied, not repeated


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known and whose values are read when `load()` is called, each time anew."""

    shape: tuple[int, ...]
    load: Callable[[], "Tensor"]


class Storage:
    """The memory of tensors.

    Args:
        room: values in it, or more. What its tensors take together is bounded by that.
        find: its dtype, and where its bytes are; asked when a tensor is loaded.
    """

    def __init__(self, room: int, find: Callable[[], tuple[str, Block]]) -> None:
        self.left, self.find = _MOST_SHARED * room, find

    def view(self, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> LazyTensor:
        """A tensor in it; offset, size and stride in values, of the storage's dtype unless another is given."""
        shape, strides, (start,) = whole(size), whole(stride), whole((offset,))
        self.left -= math.prod(shape)
        if self.left < 0:
            raise UnpicklingError(f"the tensors of a storage take more than {_MOST_SHARED} times what it holds")

        def load() -> "Tensor":
            import torch

            name, block = self.find()
            name = dtype or name
            if not math.prod(shape):
                return torch.empty(shape, dtype=getattr(torch, name))
            extent = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
            values = torch.from_numpy(block.read(start * SIZES[name], extent * SIZES[name]))
            # as_strided() checks that all of the view lies inside
            return values.view(getattr(torch, name)).as_strided(shape, strides)

        return LazyTensor(shape, load)


def whole(values: Any) -> tuple[int, ...]:
    """A shape, checked."""
    if type(values) is not tuple or len(values) > _MOST_DIMENSIONS:
        raise UnpicklingError(f"a shape must be a tuple of at most {_MOST_DIMENSIONS} whole numbers")
    if any(type(v) is not int or not 0 <= v < 2**63 for v in values):
        raise UnpicklingError("a shape must be a tuple of whole numbers")
    return values


# torch's functions


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    """`torch._utils._rebuild_tensor_v2`; what follows the stride concerns autograd."""
    if not isinstance(storage, Storage):
        raise UnpicklingError("a tensor must have a storage")
    return storage.view(offset, size, stride)


def _tensor_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *_: Any
) -> LazyTensor:
    """`torch._utils._rebuild_tensor_v3`, for dtypes that have no storage of their own."""
    if not (isinstance(storage, Storage) and isinstance(dtype, DType)):
        raise UnpicklingError("a tensor must have a storage and a dtype")
    return storage.view(offset, size, stride, dtype.text.removeprefix("torch."))


def _parameter(tensor: Any, *_: Any) -> LazyTensor:
    if not isinstance(tensor, LazyTensor):
        raise UnpicklingError("a parameter must be a tensor")
    return tensor


def _with_attributes(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor to which somebody has given attributes."""
    if type(arguments) is not tuple:
        raise UnpicklingError("a tensor without arguments")
    return function.reduce(*arguments)


class DType(Name):
    """One of torch's dtypes."""


class StorageType(Name):
    """One of torch's classes of storages.

    Attributes:
        dtype: name of the values' dtype.
    """

    def __init__(self, text: str, dtype: str) -> None:
        super().__init__(text)
        self.dtype = dtype


# NumPy's


class NumpyDType:
    """`numpy.dtype`, of plain numbers, or of text of a length."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if type(code) is not str or not re.fullmatch(r"f[248]|[iu][1248]|b1|U\d{1,4}", code):
            raise UnpicklingError("an array must be of plain numbers")
        import numpy as np

        self.value = np.dtype(code)

    def set_state(self, state: Any, stream: Stream) -> "NumpyDType":
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("a dtype has no byte order")
        self.value = self.value.newbyteorder(state[1])
        return self


def _scalar(dtype: Any, data: Any) -> Any:
    """`numpy.core.multiarray.scalar`: the number, or text, as Python has it."""
    if not isinstance(dtype, NumpyDType) or type(data) is not bytes or len(data) != dtype.value.itemsize:
        raise UnpicklingError("a scalar must have a dtype, and bytes of its size")
    import numpy as np

    return np.frombuffer(data, dtype.value)[0].item()


# Python's


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`: how Python 2's protocol writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise UnpicklingError("bytes that are written as text must be latin1")
    return text.encode("latin1")


def _same(kind: type, empty: bool = True) -> Callable[..., Any]:
    """What is made of one thing of a kind, or of nothing, is that thing."""

    def take(*arguments: Any) -> Any:
        if not arguments and empty:
            return kind()
        (value,) = arguments
        if type(value) is not kind:
            raise UnpicklingError(f"it must be made of {kind.__name__}, not of {type(value).__name__}")
        return value

    return take


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise UnpicklingError("a complex number must be made of two others")
    return complex(real, imaginary)


NAMES: dict[str, Name] = {
    name.text: name
    for name in (
        Name("collections.OrderedDict", lambda: {}),
        Name("collections.Counter", _same(dict)),
        Name("builtins.set", _same(list)),
        Name("builtins.bytearray", _same(bytes)),
        Name("builtins.complex", _complex),
        Name("_codecs.encode", _encode),
        Name("torch._utils._rebuild_tensor_v2", _tensor),
        Name("torch._utils._rebuild_tensor_v3", _tensor_with_dtype),
        Name("torch._utils._rebuild_parameter", _parameter),
        Name("torch._utils._rebuild_parameter_with_state", _parameter),
        Name("torch._tensor._rebuild_from_type_v2", _with_attributes),
        Name("torch.Size", _same(tuple, empty=False)),
        *(DType(f"torch.{name}") for name in SIZES),
        *(StorageType(f"torch.{name}", dtype) for name, dtype in _STORAGES.items()),
        *(StorageType(f"torch.cuda.{name}", dtype) for name, dtype in _STORAGES.items()),
        StorageType("torch.storage.UntypedStorage", "uint8"),
        Name("numpy.dtype", NumpyDType),
        Name("numpy.core.multiarray.scalar", _scalar),
        Name("numpy._core.multiarray.scalar", _scalar),
    )
}

"""Read a joblib pickle of tensors, as the files of GHN-3 are, without joblib and without running anything in it.

A pickle is a program that calls functions by name. `_NAMES` lists all names that a file may use here; each stands for
a function or class of this module that returns a tensor or a plain value. Any other name ends the reading.
"""

import io
import math
import pickle
import re
import zlib
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_LARGEST_SIDE = 2**40  # of an array; larger ones only waste time
_EXPANSION = 4  # weights do not get smaller than that when they are packed
_ALWAYS_UNPACKED = 2**24  # bytes


def read_joblib(path: Path) -> Any:
    """The object in a file, plain or packed with zlib or gzip, with a tensor for every tensor and array.

    Raises:
        UnpicklingError: it holds anything but tensors, arrays, dictionaries, lists, tuples and plain values.
        Exception: it is damaged. Readers of pickles raise all kinds.
    """
    with open(path, "rb") as file:
        head = file.read(1)
        file.seek(0)
        if head == b"\x80":
            return _Reader(file).load()
        return _Reader(io.BytesIO(_unpack(file.read()))).load()


def _unpack(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
    try:
        data = unpacker.decompress(packed, _ALWAYS_UNPACKED + _EXPANSION * len(packed))
    except zlib.error as error:
        raise UnpicklingError(f"it cannot be unpacked: {error}. Dump it again without compression") from None
    if not unpacker.eof:
        raise UnpicklingError("its packed data end early, or unpack to more bytes than weights need")
    return data


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]  # the one in Python, as joblib uses it


class _Reader(_Unpickler):  # type: ignore[misc]
    """An unpickler that knows `_NAMES` only, and reads joblib's arrays, whose bytes follow their description."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        text = f"{module}.{name}"
        if text not in _NAMES:
            raise UnpicklingError(f"{text} is not admitted")
        return _NAMES[text]

    def load_build(self) -> None:
        """The state of an object. The ordinary unpickler would set attributes, of classes and functions too."""
        import numpy as np

        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Array:
            self.stack[-1] = target.read(state, self._file)
        elif isinstance(target, np.dtype):
            if state[1] not in ("<", "=", "|"):
                raise UnpicklingError("an array of another byte order than this machine's")
        elif type(target) is not OrderedDict:  # its `_metadata` only holds versions of modules
            raise UnpicklingError(f"a state for {type(target).__name__} is not admitted")

    def refuse(self) -> None:
        raise UnpicklingError("an instruction that could reach other code is not admitted")

    dispatch[pickle.BUILD[0]] = load_build
    # They take objects from a table of the process, not by their name.
    dispatch |= dict.fromkeys(map(ord, (pickle.EXT1, pickle.EXT2, pickle.EXT4)), refuse)


class _Array:
    """Stands for joblib's `NumpyArrayWrapper`: its state describes an array."""

    def read(self, state: Any, file: Any) -> "Tensor":
        import numpy as np
        import torch

        shape, dtype = state["shape"], state["dtype"]
        if any(type(side) is not int or not 0 <= side < _LARGEST_SIDE for side in shape) or len(shape) > 64:
            raise UnpicklingError("an array has no shape")
        if state.get("numpy_array_alignment_bytes") is not None:  # joblib >= 1.2 writes how many bytes to skip
            file.read(file.read(1)[0])
        size = math.prod(shape) * dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise UnpicklingError("it ends early")
        return torch.from_numpy(np.frombuffer(data, dtype).copy().reshape(shape, order=state["order"]))


def _dtype(code: Any, *_: Any) -> "np.dtype":
    """Stands for `numpy.dtype`: plain numbers only."""
    import numpy as np

    if type(code) is not str or not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
        raise UnpicklingError("an array must be of plain numbers")
    return np.dtype(code)


def _storage(data: Any) -> "Tensor":
    """Stands for `torch.storage._load_from_bytes`: the memory of tensors, as bytes of `torch.save`."""
    import torch

    storage = torch.load(io.BytesIO(data), weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,  # named in the description of an array, never called
    "joblib.numpy_pickle.NumpyArrayWrapper": _Array,
    "torch.storage._load_from_bytes": _storage,
    # `as_strided` raises if the tensor does not lie in the storage
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: storage.as_strided(
        size, stride, offset
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}

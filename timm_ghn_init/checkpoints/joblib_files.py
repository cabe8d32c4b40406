"""Read a joblib pickle of tensors, as GHN-3's files are, without joblib and without running anything that it says."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from ..utils.files import own_folder
from .stand_ins import NAMES, LazyTensor, NumpyDType, Storage, whole
from .torch_files import expansion_limit, read_legacy
from .unpickle import Block, Machine, Name, Stream

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_CHUNK = 2**20
_PACKED = {
    b"\x78": "zlib",
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ": "xz",
    b"\x5d\x00": "lzma",
    b"\x04\x22M\x18": "lz4",
}


@contextmanager
def read_joblib(path: Path) -> Iterator[Any]:
    """Open a joblib file; yields what was dumped, with a `LazyTensor` for every tensor and array.

    Args:
        path: the file, plain or packed with zlib or gzip (it is unpacked into a temporary file, then).

    Raises:
        UnpicklingError: the file holds anything but tensors, arrays, dictionaries, lists, tuples and plain values, is
            damaged, or beyond all bounds.
    """
    with open(path, "rb") as start:
        head = start.read(8)
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packing is None:
        yield _run(path)
    elif packing in ("zlib", "gzip"):
        with own_folder(Path(gettempdir())) as folder:
            yield _run(_unpack(path, folder / "unpacked"))
    else:
        raise UnpicklingError(f"it is packed with {packing}, which is not read: dump it again with zlib or unpacked")


def _unpack(path: Path, target: Path) -> Path:
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
    limit = expansion_limit(path.stat().st_size)
    try:
        with open(path, "rb") as packed, open(target, "wb") as out:
            while chunk := packed.read(_CHUNK):
                while chunk:
                    out.write(unpacker.decompress(chunk, _CHUNK))
                    chunk = unpacker.unconsumed_tail
                    if out.tell() > limit:
                        raise UnpicklingError(f"it unpacks to more than {limit} bytes, more than weights can need")
            out.write(unpacker.flush())
    except zlib.error as error:
        raise UnpicklingError(f"it cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise UnpicklingError("its packed data end early")
    return target


def _run(path: Path) -> Any:
    with open(path, "rb") as file:
        return Machine(Stream(file, path), _name).run()


def _name(module: str, name: str) -> Name:
    text = f"{module}.{name}"
    if text not in _NAMES:
        raise UnpicklingError(f"{text} is not admitted")
    return _NAMES[text]


def _storage(data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: a storage, as bytes that `torch.save` wrote before there were archives."""
    if isinstance(data, bytes):
        data = Block(data, 0, len(data))
    if not isinstance(data, Block):
        raise UnpicklingError("a storage must be bytes")

    def find() -> tuple[str, Block]:
        with open(data.place, "rb") if isinstance(data.place, Path) else BytesIO(data.place) as file:
            file.seek(data.offset)
            storage = read_legacy(file, data.place)
        if not isinstance(storage, Storage):
            raise UnpicklingError(f"a storage holds {type(storage).__name__}")
        return storage.find()

    return Storage(data.size, find)


class _Array:
    """`joblib.numpy_pickle.NumpyArrayWrapper`: its state describes an array, whose bytes follow in the file."""

    def set_state(self, state: Any, stream: Stream) -> LazyTensor:
        if type(state) is not dict or not isinstance(state.get("dtype"), NumpyDType):
            raise UnpicklingError("an array has no dtype")
        shape, dtype = whole(state.get("shape")), state["dtype"].value
        order = state.get("order")
        if order not in ("C", "F"):
            raise UnpicklingError("an array's order must be C or F")
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2: one byte, and as many to skip
            stream.skip(stream.take(1)[0])
        block = stream.skip(math.prod(shape) * dtype.itemsize)
        return LazyTensor(shape, lambda: _load_array(block, dtype, shape, order))


def _load_array(block: Block, dtype: "np.dtype", shape: tuple[int, ...], order: Any) -> "Tensor":
    import torch

    flat = block.read(0, block.size).view(dtype)
    return torch.from_numpy(flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order=order))


_NAMES = {
    "torch.storage._load_from_bytes": Name("torch.storage._load_from_bytes", _storage),
    "joblib.numpy_pickle.NumpyArrayWrapper": Name("joblib's NumpyArrayWrapper", None, _Array),
    **dict.fromkeys(("numpy.ndarray", "numpy.memmap"), Name("numpy.ndarray")),
    **{
        text: NAMES[text]
        for text in (
            "collections.OrderedDict",
            "numpy.dtype",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_parameter",
        )
    },
}

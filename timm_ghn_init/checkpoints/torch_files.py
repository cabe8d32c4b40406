"""Read what `torch.save` wrote, a zip archive or the format before it, without running anything that it says.

`torch.load(weights_only=True)` runs nothing either, but it takes what memory and time a file asks for.
"""

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from pickle import UnpicklingError
from tempfile import gettempdir
from typing import Any, BinaryIO

from ..utils.files import own_folder
from .stand_ins import NAMES, SIZES, Storage, StorageType
from .unpickle import INSTRUCTIONS, MOST_TEXT, Block, Inert, Instruction, Machine, Name, Stream

_CHUNK = 2**20
_ALWAYS_UNPACKED = 2**24  # bytes
_MOST_EXPANSION = 8  # times its size: weights are noise, which hardly can be packed
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

# What torch admits, and nobody needs for a GHN: devices, other tensors than plain ones, ...
_INERT = re.compile(
    r"torch\.(?:device|Tensor|(?:bits|b?complex|q?u?int|float)\w+|per_\w+|(?:cuda\.)?\w+(?:Storage|Tensor)"
    r"|storage\.TypedStorage|nn\.parameter\.Parameter|serialization\._get_layout|_utils\._rebuild_\w+)"
)
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class NotPlainError(UnpicklingError):
    """A file holds other things than tensors and plain values.

    Attributes:
        names: of these, as in "argparse.Namespace".
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"it holds code or objects: {', '.join(names)}")
        self.names = names


def expansion_limit(size: int) -> int:
    """Bytes to which a packed file of a size may unpack."""
    return max(_ALWAYS_UNPACKED, _MOST_EXPANSION * size)


@contextmanager
def read_torch(path: Path) -> Iterator[Any]:
    """Open a file; yields what was saved, with a `LazyTensor` for every tensor, which can be loaded until this ends.

    Raises:
        NotPlainError: it holds other things than tensors and plain values, that the user has not allowed either
            (`torch.serialization.add_safe_globals`). Such things are passed over if he has.
        UnpicklingError, BadZipFile: it is damaged, or beyond all bounds.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            yield read_legacy(file, path)
            return
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_Guarded(path))))
        folder = path  # not needed
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            folder = stack.enter_context(own_folder(Path(gettempdir())))
        yield _Archive(path, archive, folder).load()


def read_legacy(file: BinaryIO, place: Path | bytes) -> Any:
    """What was saved before there were archives: five pickles, then the storages."""
    if _pickle(file, place) != _MAGIC or _pickle(file, place) != _PROTOCOL:
        raise UnpicklingError("it is not what torch.save writes")
    about = _pickle(file, place)
    if type(about) is not dict or about.get("little_endian") is not True:
        raise UnpicklingError("it was written on a big-endian machine")
    storages: dict[str, tuple[StorageType, int, Storage]] = {}
    blocks: dict[str, Block] = {}

    def storage(kind: StorageType, key: str, numel: int) -> Storage:
        if key not in storages:
            storages[key] = (kind, numel, Storage(numel, lambda: (kind.dtype, blocks[key])))
        return storages[key][2]

    result = _pickle(file, place, storage)
    keys = _pickle(file, place)
    if type(keys) is not list or set(map(type, keys)) - {str} or set(keys) != set(storages):
        raise UnpicklingError("it has other storages than its tensors ask for")
    stream = Stream(file, place)
    for key in keys:
        kind, numel, _ = storages[key]
        if int.from_bytes(stream.take(8), "little") != numel:
            raise UnpicklingError("a storage has another size than its tensors ask for")
        blocks[key] = stream.skip(numel * SIZES[kind.dtype])
    return result


class _Guarded(FileIO):
    """A file of which not much can be read at once, for an archive's directory may claim any size."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > _CHUNK:
            raise zipfile.BadZipFile(f"its directory is said to have {size} bytes")
        return super().read(size)


class _Archive:
    """An archive of `torch.save`: a pickle, and an entry for each storage.

    Args:
        folder: to unpack into, if anything in it is packed.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
        self.path, self.archive, self.folder = path, archive, folder
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        _check_sizes(archive.infolist(), path.stat().st_size)
        self.storages: dict[str, tuple[str, Storage]] = {}
        self.blocks: dict[str, Block] = {}

    def load(self) -> Any:
        pickles = [name for name in self.entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UnpicklingError("it is an archive, but not of torch.save")
        self.root = pickles[0].removesuffix("data.pkl")
        if f"{self.root}constants.pkl" in self.entries:
            raise UnpicklingError("it is a TorchScript archive, of code")
        if self._small("byteorder", b"little") != b"little":
            raise UnpicklingError("it was written on a big-endian machine")
        content = self._small("data.pkl")
        return _pickle(BytesIO(content), content, self.storage)

    def storage(self, kind: StorageType, key: str, numel: int) -> Storage:
        entry = self.entries.get(f"{self.root}data/{key}")
        if entry is None or entry.file_size < numel * SIZES[kind.dtype]:
            raise UnpicklingError(f"the storage {key[:20]!r} is not there, or not whole")
        if key not in self.storages:
            self.storages[key] = (kind.dtype, Storage(numel, lambda: (kind.dtype, self._block(entry))))
        dtype, storage = self.storages[key]
        if dtype != kind.dtype:
            raise UnpicklingError(f"the storage {key[:20]!r} is of two dtypes")
        return storage

    def _small(self, name: str, default: bytes = b"") -> bytes:
        entry = self.entries.get(self.root + name)
        if entry is None:
            return default
        if entry.file_size > MOST_TEXT:
            raise UnpicklingError(f"more than {MOST_TEXT >> 20} MiB of it are no tensors")
        return b"".join(self._chunks(entry))

    def _block(self, entry: zipfile.ZipInfo) -> Block:
        """Where an entry's bytes are: as they lie in the archive, else unpacked; verified by their checksum."""
        if entry.filename not in self.blocks:
            if entry.compress_type == zipfile.ZIP_STORED:
                for _ in self._chunks(entry):
                    pass
                block = Block(self.path, self._offset(entry), entry.file_size)
            else:
                target = self.folder / str(len(self.blocks))
                with open(target, "wb") as file:
                    file.writelines(self._chunks(entry))
                block = Block(target, 0, entry.file_size)
            self.blocks[entry.filename] = block
        return self.blocks[entry.filename]

    def _chunks(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        if not entry.CRC:
            entry.CRC = None  # type: ignore[assignment]  # saved without checksums: torch.serialization.set_crc32_options
        with self.archive.open(entry) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def _offset(self, entry: zipfile.ZipInfo) -> int:
        """Of an entry's bytes in the file, past the header before them, which zipfile has checked."""
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset + 26)
            name, extra = file.read(2), file.read(2)
        return entry.header_offset + 30 + int.from_bytes(name, "little") + int.from_bytes(extra, "little")


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Before anything is unpacked: what the entries say of themselves is within what weights can need."""
    packed = False
    for entry in entries:
        packed |= entry.compress_type == zipfile.ZIP_DEFLATED
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
            raise UnpicklingError("it is packed in a way that is not read: save it again with torch.save")
    total = sum(entry.file_size for entry in entries)
    if total > (expansion_limit(size) if packed else size):  # those that are not packed may overlap
        raise UnpicklingError(f"it unpacks to {total} bytes, more than weights in {size} bytes can need")


_FindStorage = Callable[[StorageType, str, int], Storage]


def _pickle(file: BinaryIO, place: Path | bytes, storage: _FindStorage | None = None) -> Any:
    """One pickle, of tensors if their storages can be found."""
    names, instructions = _Names(), INSTRUCTIONS
    if storage is not None:
        instructions = {**INSTRUCTIONS, "BINPERSID": _persistent(storage)}
    result = Machine(Stream(file, place), names, instructions).run()
    if names.refused:
        raise NotPlainError(list(names.refused))
    return result


def _persistent(find: _FindStorage) -> Instruction:
    """The instruction by which a tensor refers to its storage."""

    def push(machine: Machine) -> None:
        (given,) = machine.pop(1)
        kind, *rest = given if type(given) is tuple else ()
        if kind != "storage" or len(rest) < 4 or any(view is not None for view in rest[4:]):
            raise UnpicklingError("it refers to something that is no storage")
        storage, key, _, numel = rest[:4]
        if isinstance(storage, Inert):
            machine.stack.append(storage)
            return
        if not isinstance(storage, StorageType) or type(key) is not str or type(numel) is not int or numel < 0:
            raise UnpicklingError("a storage has no type, name or size")
        machine.stack.append(find(storage, key, numel))

    return push


class _Names:
    """Stand-ins; something inert for all else, which is noted unless torch, or the user, admits it."""

    def __init__(self) -> None:
        self.refused: dict[str, None] = {}
        self.allowed = _allowed_by_the_user()

    def __call__(self, module: str, name: str) -> Name | Inert:
        text = f"{_PYTHON_2.get(module, module)}.{name}"
        if text in NAMES:
            return NAMES[text]
        if not _INERT.fullmatch(text) and text not in self.allowed and len(self.refused) < 5:
            self.refused[text] = None
        return Inert(text)


def _allowed_by_the_user() -> set[str]:
    """What he has named to `torch.serialization.add_safe_globals`."""
    import torch

    known: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
    return {g[1] if isinstance(g, tuple) else f"{g.__module__}.{g.__qualname__}" for g in known}

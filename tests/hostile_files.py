"""Files that nobody wrote in good faith, made by hypothesis, for the tests and for benchmarks/fuzz.py."""

import copy
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save

from timm_ghn_init.checkpoints.formats import CheckpointError, open_ghn
from timm_ghn_init.checkpoints.joblib_files import read_joblib
from timm_ghn_init.checkpoints.stand_ins import NAMES, LazyTensor
from timm_ghn_init.checkpoints.torch_files import read_torch

RAN: list[Any] = []


def ran(*how: Any) -> list[Any]:
    """What every payload tries to call."""
    RAN.append(how)
    return []


# Pickles: instructions in any order, with arguments that mean something to them


def _text(word: str) -> bytes:
    data = word.encode("utf-8", "surrogatepass")[:255]
    return b"\x8c" + bytes([len(data)]) + data


def _name(name: str) -> bytes:
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


WORDS = (
    "dtype",
    "shape",
    "order",
    "C",
    "f4",
    "<",
    "storage",
    "cpu",
    "0",
    "1",
    "latin1",
    "config",
    "state_dict",
    "é\udcff",
)
HOSTILE = ("posix.system", "builtins.eval", "builtins.getattr", f"{__name__}.ran", "torch.load", "os.path.join")
ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
NAME = st.sampled_from((*NAMES, *HOSTILE, ARRAY, "torch.storage._load_from_bytes", "numpy.ndarray"))
BARE = st.sampled_from(b"}])(t\x85\x86\x87RRbb\x81suaeN\x88\x89\x94\x9302.QP1oi\x92\x8f\x90\x91\x97\x98").map(
    lambda c: bytes([c])
)
INTEGER = st.one_of(
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.binary(max_size=255).map(lambda data: b"\x8a" + bytes([len(data)]) + data),
    st.floats().map(lambda x: b"G" + struct.pack(">d", x)),
)
BYTES = st.one_of(
    st.binary(max_size=255).map(lambda data: b"C" + bytes([len(data)]) + data),
    st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=9)).map(lambda t: b"B" + struct.pack("<I", t[0]) + t[1]),
    st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=9)).map(lambda t: b"\x8e" + struct.pack("<Q", t[0]) + t[1]),
)
MEMO = st.tuples(st.sampled_from(b"qhrj"), st.integers(0, 9)).map(
    lambda t: bytes([t[0], t[1]]) + b"\0\0\0" * (t[0] in b"rj")
)
STORAGE = st.tuples(st.sampled_from(("FloatStorage", "HalfStorage", "ByteStorage")), st.integers(0, 9)).map(
    lambda t: (
        b"(" + _text("storage") + _name(f"torch.{t[0]}") + _text("0") + _text("cpu") + b"K" + bytes([t[1]]) + b"tQ"
    )
)
SHAPE = st.lists(st.integers(0, 2**33), max_size=4).map(
    lambda sizes: b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in sizes) + b"t"
)
TENSOR = st.tuples(STORAGE, st.integers(0, 9), SHAPE, SHAPE).map(
    lambda t: _name("torch._utils._rebuild_tensor_v2") + b"(" + t[0] + b"K" + bytes([t[1]]) + t[2] + t[3] + b"\x89NtR"
)
NUMPY = st.tuples(SHAPE, st.sampled_from(("f4", "f8", "U9", "O", "V99"))).map(
    lambda t: (
        _name(ARRAY) + b")\x81}(" + _text("shape") + t[0] + _text("dtype") + _name("numpy.dtype") + _text(t[1])
        + b"\x85R" + _text("order") + _text("C") + b"ub"
    )
)  # fmt: skip
CALL = NAME.map(lambda name: _name(name) + _text("x") + b"\x85R")
ITEM = st.one_of(TENSOR, NUMPY, CALL, INTEGER, BYTES).map(lambda value: b"}" + _text("w") + value + b"s")
PIECE = st.one_of(
    BARE, INTEGER, BYTES, MEMO, TENSOR, NUMPY, CALL, ITEM, NAME.map(_name), st.sampled_from(WORDS).map(_text),
    st.binary(max_size=8),
)  # fmt: skip
PROGRAM = st.lists(PIECE, max_size=25).map(lambda pieces: b"\x80\x02" + b"".join(pieces) + b".")


def _archive(program: bytes, packing: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", bytes(36))
    return file.getvalue()


def _legacy(program: bytes) -> bytes:
    start = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}" + _text("little_endian") + b"\x88s."
    return start + program + b"\x80\x02](" + _text("0") + b"e." + struct.pack("<q", 9) + bytes(36)


PICKLES: SearchStrategy[bytes] = st.one_of(
    PROGRAM,
    PROGRAM.map(lambda p: p.replace(b"\x80\x02", b"\x80\x04", 1)),
    PROGRAM.map(zlib.compress),
    PROGRAM.map(_archive),
    PROGRAM.map(lambda p: _archive(p, zipfile.ZIP_DEFLATED)),
    PROGRAM.map(_legacy),
)


# Sound files, and what is left of them when some bytes are others


@lru_cache(maxsize=1)
def sound_files() -> dict[str, bytes]:
    """A small GHN in every format."""
    from timm_ghn_init.ghn import GHN

    config = {"max_shape": (4, 4, 11, 11), "num_classes": 2, "hid": 4, "weight_norm": True, "ve": True}
    torch.manual_seed(0)
    ghn = GHN(**config)  # type: ignore[arg-type]
    state = {name: tensor.clone() for name, tensor in ghn.state_dict().items()}
    files: dict[str, bytes] = {"safetensors": save(state, {"config": json.dumps(ghn.config)})}
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"config": ghn.config, "state_dict": state}, file, _use_new_zipfile_serialization=zipped)
        files["zip" if zipped else "legacy"] = file.getvalue()
    try:
        import joblib
    except ImportError:
        return files
    for packing in (0, 3):
        file = io.BytesIO()
        joblib.dump({**state, "x": np.arange(3.0)}, file, compress=packing)
        files[f"joblib {packing}"] = file.getvalue()
    return files


@st.composite
def damaged(draw: Callable[..., Any]) -> bytes:
    """A sound file with some bytes changed, cut out, put in or elsewhere; most near its ends, where structure is."""
    data = bytearray(draw(st.sampled_from(sorted(sound_files().items())))[1])
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.integers(0, 2000))
        at = min(draw(st.sampled_from((near, len(data) - near, len(data) // 2 + near))), len(data))
        at = max(at, 0)
        kind, size = draw(st.integers(0, 3)), draw(st.integers(1, 40))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), PIECE)) if kind != 1 else b""
        if kind == 0:
            data[at : at + len(piece)] = piece
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = piece
        else:
            data[at:at] = data[at // 2 : at // 2 + size]
    return bytes(data)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def headers(draw: Callable[..., Any]) -> bytes:
    """A safetensors file whose header says something else in a few places."""
    data = sound_files()["safetensors"]
    size = int.from_bytes(data[:8], "little")
    header = copy.deepcopy(json.loads(data[8 : 8 + size]))
    config = json.loads(header["__metadata__"]["config"])
    for _ in range(draw(st.integers(1, 3))):
        names = sorted(name for name in header if isinstance(header[name], dict) and name != "__metadata__")
        place = draw(st.sampled_from(("config", "entry", "tensor", "metadata")))
        if place == "config":
            config[draw(st.sampled_from((*config, "x")))] = draw(JSON)
        elif place == "metadata":
            header["__metadata__"] = draw(JSON)
        elif names:
            name = draw(st.sampled_from(names))
            if place == "entry":
                header[name][draw(st.sampled_from(("dtype", "shape", "data_offsets")))] = draw(JSON)
            else:
                header[draw(st.text(max_size=5))] = header.pop(name)
    if isinstance(header.get("__metadata__"), dict) and "config" in header["__metadata__"]:
        header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


INPUTS: dict[str, SearchStrategy[bytes]] = {"pickles": PICKLES, "damaged files": damaged(), "headers": headers()}


# Trying them


def attempt(data: bytes) -> str:
    """Read a file as a GHN's: "read" or "refused". Any error but a CheckpointError comes out, or if code ran."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        try:
            with open_ghn(path) as ghn:
                for name in ghn.tensors:
                    ghn.load(name)
            result = "read"
        except CheckpointError as error:
            assert str(path) in str(error)
            result = "refused"
        _load_all(path, data)
    assert not RAN, RAN
    return result


def _load_all(path: Path, data: bytes) -> None:
    """Also what is in no state dict of a GHN: nothing takes more than its file has, packed files not much more."""
    readers: tuple[Callable[[Path], AbstractContextManager[Any]], ...] = (read_joblib, read_torch)
    for reader in readers:
        try:
            with reader(path) as value:
                tensors = [tensor.load() for tensor in _tensors(value, 5)]
        except Exception:  # what of all is nobody's promise; CheckpointError is, above
            continue
        room = len(data) if data[:2] != b"x\x9c" and b"PK" not in data[:2] else max(2**24, 8 * len(data))
        assert sum(t.numel() * t.element_size() for t in tensors) <= 32 * room


def _tensors(value: Any, depth: int) -> Iterator[LazyTensor]:
    if isinstance(value, LazyTensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, depth - 1)

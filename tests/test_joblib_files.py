"""Joblib pickles of tensors are read, and nothing in a hostile one is ever run."""

import collections
import copyreg
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timm_ghn_init.checkpoints.joblib_files import read_joblib


def state_dict() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    return collections.OrderedDict(
        large=torch.randn(600, 500, generator=g),  # left in the file until it is asked for
        small=torch.randn(3, 4, generator=g),
        scalar=torch.tensor(2.5),
        view=torch.randn(9, 8, generator=g)[2:5, ::2],
        transposed=torch.randn(5, 7, generator=g).T,
        half=torch.randn(6, generator=g).half(),
        bfloat=torch.randn(6, generator=g).bfloat16(),
        parameter=torch.nn.Parameter(torch.randn(4, generator=g)),
        array=np.arange(12, dtype=np.float32).reshape(3, 4),
        large_array=np.arange(400_000, dtype=np.float32).reshape(1000, 400),
        fortran=np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
    )


def as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.from_numpy(np.ascontiguousarray(value))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)], ids=str)
def test_reads_what_joblib_writes(tmp_path: Path, protocol: int, compress: Any) -> None:
    joblib = pytest.importorskip("joblib")
    written = state_dict()
    joblib.dump(written, tmp_path / "x.pt", compress=compress, protocol=protocol)
    read = read_joblib(tmp_path / "x.pt")
    assert list(read) == list(written)
    for name, value in written.items():
        assert read[name].dtype == as_tensor(value).dtype and torch.equal(read[name], as_tensor(value)), name


def test_reads_a_module_s_state_dict_and_plain_values(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    config = {"a": (1, [2, 300, 70000]), "b": True, "c": None, "d": 0.5, "e": "é", "f": b"x", "g": ()}
    joblib.dump({"state_dict": module.state_dict(), "config": config}, tmp_path / "x.pt")
    read = read_joblib(tmp_path / "x.pt")
    assert read["config"] == config
    assert all(torch.equal(read["state_dict"][name], t) for name, t in module.state_dict().items())


# Hostile pickles. Each way of making an unpickler call something gets one that calls `ran`.

RAN: list[str] = []


def ran(*how: Any) -> list[int]:
    RAN.append(str(how))
    return []


class Hostile:
    """An object whose state, when it is set, runs code."""

    def __init__(self, *_: Any, **__: Any) -> None:
        RAN.append("init")

    def __setstate__(self, state: Any) -> None:
        RAN.append("setstate")


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


HERE = __name__
NAME = text(HERE) + text("ran") + b"\x93"  # STACK_GLOBAL
CLASS = text(HERE) + text("Hostile") + b"\x93"
ARG = text("x") + b"\x85"  # ("x",)

CALLS = {
    "GLOBAL REDUCE": f"c{HERE}\nran\n".encode() + ARG + b"R.",
    "STACK_GLOBAL REDUCE": NAME + ARG + b"R.",
    "REDUCE by the memo": NAME + b"\x940" + b"h\x00" + ARG + b"R.",
    "INST": b"(" + text("x") + f"i{HERE}\nran\n.".encode(),
    "OBJ": b"(" + CLASS + text("x") + b"o.",
    "NEWOBJ": CLASS + b")\x81" + text("x") + b"b.",
    "NEWOBJ_EX": CLASS + b")}\x92" + text("x") + b"b.",
    "BUILD with __setstate__": CLASS + b")R}b.",
    "EXT1": b"\x82\x7b" + ARG + b"R.",
    "EXT2": b"\x83\x7b\0" + ARG + b"R.",
    "EXT4": b"\x84\x7b\0\0\0" + ARG + b"R.",
    "dotted name": text(HERE) + text("Hostile.__call__.__class__") + b"\x93" + b".",
    "after the tensors": b"}" + text("w") + NAME + ARG + b"Rs.",
    "as a key": b"}" + NAME + ARG + b"R" + text("w") + b"s.",
}


@pytest.fixture
def extension() -> Any:
    copyreg.add_extension(HERE, "ran", 0x7B)
    yield
    copyreg.remove_extension(HERE, "ran", 0x7B)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("how", CALLS)
def test_nothing_is_called(tmp_path: Path, how: str) -> None:
    data = b"\x80\x04" + CALLS[how]
    RAN.clear()
    try:  # the payload is one: pickle itself does what it says
        pickle.loads(data)
    except TypeError:
        assert how == "as a key"
    assert RAN or how == "dotted name"
    RAN.clear()
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):
        read_joblib(tmp_path / "x.pt")
    assert RAN == []


def call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + arguments + b"R."


def array_of(shape: bytes, code: str = "f4") -> bytes:
    """A joblib pickle of an array of a shape, without its values."""
    wrapper = ARRAY + b")\x81}(" + text("shape") + shape + text("dtype") + text("numpy") + text("dtype") + b"\x93"
    return b"\x80\x04" + wrapper + text(code) + b"\x85R" + text("order") + text("C") + b"ub."


ARRAY = text("joblib.numpy_pickle") + text("NumpyArrayWrapper") + b"\x93"
LONG = b"\x8a\x08" + b"\x7f" * 8

# Admitted names, used for something else; small files that would take much memory or time.
MISUSES = {
    "name in an admitted module": (b"\x80\x04ctorch.storage\nUntypedStorage\n.", "not admitted"),
    "attribute of an admitted name": (call("collections", "OrderedDict.fromkeys", b")"), "not admitted"),
    "dtype of objects": (call("numpy", "dtype", text("O") + b"\x85"), "plain numbers"),
    "another byte order": (
        call("numpy", "dtype", text("f8") + b"\x85")[:-1] + b"(K\x03" + text(">") + b"tb.",
        "another byte order",
    ),
    "dtype of records": (call("numpy", "dtype", text("f4,O") + b"\x85"), "plain numbers"),
    "attribute of a class": (b"\x80\x04" + ARRAY + b"}" + text("read") + b"Nsb.", "a state for type is not admitted"),
    "attribute of a function": (
        b"\x80\x04" + text("torch._utils") + text("_rebuild_parameter") + b"\x93}b.",
        "a state for function is not admitted",
    ),
    "state of a list": (b"\x80\x04]}b.", "a state for list is not admitted"),
    "many dimensions": (array_of(b"(" + LONG + b"q\0" + b"h\0" * 6000 + b"t"), "an array has no shape"),
    "a dimension beyond all": (array_of(b"(\x8a\x20" + b"\x7f" * 32 + b"t"), "an array has no shape"),
    "a product of dimensions": (array_of(b"(M\xff\xffM\xff\xfft"), "ends early"),
    "packed, beyond all use": (zlib.compress(bytes(2**25)), "more bytes than weights need"),
    "packed, cut": (zlib.compress(bytes(100))[:-3], "end early"),
}


@pytest.mark.parametrize("what", MISUSES)
def test_misuse_of_what_is_admitted(tmp_path: Path, what: str) -> None:
    data, message = MISUSES[what]
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_joblib(tmp_path / "x.pt")


class _CallsRan:
    def __reduce__(self) -> Any:
        return ran, ("storage",)


def test_a_storage_with_code_in_it(tmp_path: Path) -> None:
    """The bytes of a tensor's storage are a pickle of their own."""
    inner = io.BytesIO()
    torch.save({"x": _CallsRan()}, inner, _use_new_zipfile_serialization=False)
    storage = b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue() + b"\x85"
    (tmp_path / "x.pt").write_bytes(call("torch.storage", "_load_from_bytes", storage))
    RAN.clear()
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        read_joblib(tmp_path / "x.pt")
    assert RAN == []


def test_a_view_beyond_its_storage(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(torch.zeros(4).storage(), inner, _use_new_zipfile_serialization=False)
    storage = text("torch.storage") + text("_load_from_bytes") + b"\x93"
    storage += b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue() + b"\x85R"
    view = b"(" + storage + b"K\x00K\x05\x85K\x01\x85\x89)t"
    (tmp_path / "x.pt").write_bytes(call("torch._utils", "_rebuild_tensor_v2", view))
    with pytest.raises(RuntimeError, match="out of bounds"):
        read_joblib(tmp_path / "x.pt")

"""Joblib pickles of tensors are read, and nothing that a hostile one says is ever done."""

import collections
import copyreg
import io
import os
import pickle
import pickletools
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timm_ghn_init.checkpoints import torch_files, unpickle
from timm_ghn_init.checkpoints.joblib_files import read_joblib
from timm_ghn_init.checkpoints.stand_ins import LazyTensor


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
        big_endian=np.arange(5, dtype=">f8"),
    )


def as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)], ids=str)
def test_reads_what_joblib_writes(tmp_path: Path, protocol: int, compress: Any) -> None:
    joblib = pytest.importorskip("joblib")
    written = state_dict()
    joblib.dump(written, tmp_path / "x.pt", compress=compress, protocol=protocol)
    with read_joblib(tmp_path / "x.pt") as read:
        assert list(read) == list(written)
        for name, value in written.items():
            assert isinstance(read[name], LazyTensor)
            assert read[name].shape == tuple(value.shape)
            assert torch.equal(read[name].load(), as_tensor(value)), name


def test_reads_a_module_s_state_dict_and_plain_values(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    config = {"a": (1, [2, 300, 70000]), "b": True, "c": None, "d": 0.5, "e": "é", "f": b"x", "g": ()}
    joblib.dump({"state_dict": module.state_dict(), "config": config}, tmp_path / "x.pt")
    with read_joblib(tmp_path / "x.pt") as read:
        assert read["config"] == config
        assert torch.equal(read["state_dict"]["0.weight"].load(), module[0].weight)
        assert torch.equal(read["state_dict"]["1.num_batches_tracked"].load(), torch.tensor(0))


def test_large_tensors_stay_in_the_file(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(state_dict(), tmp_path / "x.pt")
    with read_joblib(tmp_path / "x.pt") as read:
        (tmp_path / "x.pt").unlink()
        with pytest.raises(FileNotFoundError):
            read["large"].load()
        with pytest.raises(FileNotFoundError):
            read["large_array"].load()
        read["small"].load()


@pytest.mark.parametrize("compress", ["bz2", "xz", "lzma"])
def test_other_packings_are_named(tmp_path: Path, compress: str) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(state_dict(), tmp_path / "x.pt", compress=compress)
    with pytest.raises(pickle.UnpicklingError, match=f"packed with {compress}"), read_joblib(tmp_path / "x.pt"):
        pass


def test_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({"x": torch.zeros(2**20)}, tmp_path / "x.pt", compress=3)
    monkeypatch.setattr(torch_files, "_ALWAYS_UNPACKED", 2**21)
    with pytest.raises(pickle.UnpicklingError, match="unpacks to more than"), read_joblib(tmp_path / "x.pt"):
        pass


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
    with pytest.raises(pickle.UnpicklingError, match="not admitted"), read_joblib(tmp_path / "x.pt"):
        pass
    assert RAN == []


@pytest.mark.parametrize("code", [b"P1\n", text("1") + b"Q"], ids=["PERSID", "BINPERSID"])
def test_no_persistent_ids(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x04" + code + b".")
    with pytest.raises(pickle.UnpicklingError, match="PERSID is not admitted"), read_joblib(tmp_path / "x.pt"):
        pass


def test_the_admitted_instructions_are_these(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Every other opcode of pickle is refused by name. Of those admitted, three could reach code in an unpickler."""
    assert {"REDUCE", "NEWOBJ", "BUILD"} == unpickle.INSTRUCTIONS.keys() & {
        *("REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"),
        *("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"),
    }
    refused = [op for op in pickletools.opcodes if op.name not in {*unpickle.INSTRUCTIONS, "STOP"}]
    record_property("tried", len(refused))
    assert len(refused) > 20
    for op in refused:
        data = b"\x80\x04" + op.code.encode("latin-1") + smallest_argument(op)
        (tmp_path / "x.pt").write_bytes(data + b".")
        with pytest.raises(pickle.UnpicklingError, match=f"{op.name} is not admitted"), read_joblib(tmp_path / "x.pt"):
            pass


def smallest_argument(op: pickletools.OpcodeInfo) -> bytes:
    if op.arg is None:
        return b""
    if op.arg.n >= 0:
        return b"\0" * op.arg.n
    if op.arg.n == pickletools.UP_TO_NEWLINE:
        return {"INST": b"a\nb\n", "STRING": b"''\n"}.get(op.name, b"0\n")
    return b"\0" * {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(op.arg.n, 4)


def call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + arguments + b"R."


REBUILD = ("torch._utils", "_rebuild_tensor_v2")
STORAGE = text("torch.storage") + text("_load_from_bytes") + b"\x93" + b"C\x01x" + b"\x85R"
ARRAY = text("joblib.numpy_pickle") + text("NumpyArrayWrapper") + b"\x93"

# admitted names, used for something else
MISUSES = {
    "unknown name": (b"\x80\x04cbuiltins\neval\n.", "builtins.eval is not admitted"),
    "name in an admitted module": (b"\x80\x04ctorch.storage\nUntypedStorage\n.", "not admitted"),
    "attribute of an admitted name": (call("collections", "OrderedDict.fromkeys", b")"), "not admitted"),
    "name that is no text": (b"\x80\x04" + b"K\x01K\x02\x93.", "something that is no name is not admitted"),
    "call of a value": (b"\x80\x04" + text("eval") + b")R.", "a call of str is not admitted"),
    "call of a class": (b"\x80\x04" + ARRAY + b")R.", "NumpyArrayWrapper is not admitted"),
    "arguments that are no tuple": (call("collections", "OrderedDict", b"}"), "not admitted"),
    "arguments for an ordered dict": (call("collections", "OrderedDict", text("x") + b"\x85"), "damaged"),
    "instance of a function": (
        b"\x80\x04" + text("numpy") + text("dtype") + b"\x93)\x81.",
        "an instance of numpy.dtype",
    ),
    "dtype of objects": (call("numpy", "dtype", text("O") + b"\x85"), "plain numbers"),
    "dtype of records": (call("numpy", "dtype", text("f4,O") + b"\x85"), "plain numbers"),
    "array without dtype": (b"\x80\x04" + ARRAY + b")\x81}b.", "no dtype"),
    "state of a name": (b"\x80\x04" + ARRAY + b"}b.", "a state for joblib's NumpyArrayWrapper is not admitted"),
    "state of a list": (b"\x80\x04]}b.", "a state for list is not admitted"),
    "item of a name": (b"\x80\x04" + ARRAY + text("reduce") + b"Ns.", "keys must be strings"),
    "item of no list": (b"\x80\x04}Na.", "no list"),
    "key that is no text": (b"\x80\x04})Ns.", "keys must be strings"),
    "tensor without storage": (call(*REBUILD, b"(NK\x00))\x89)t"), "must have a storage"),
    "tensor with a negative size": (
        call(*REBUILD, b"(" + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89)t"),
        "whole numbers",
    ),
    "tensor of a text": (call(*REBUILD, b"(" + STORAGE + b"K\x00" + text("x") + b"K\x01\x85\x89)t"), "whole numbers"),
    "storage of a text": (call("torch.storage", "_load_from_bytes", text("x") + b"\x85"), "must be bytes"),
    "parameter of a text": (call("torch._utils", "_rebuild_parameter", text("x") + b"\x88)\x87"), "must be a tensor"),
    "memo without an entry": (b"\x80\x04h\x07.", "damaged"),
    "empty stack": (b"\x80\x04\x85.", "the stack is empty"),
    "no mark": (b"\x80\x04t.", "damaged"),
    "no stop": (b"\x80\x04}", "damaged"),
    "bytes that are not there": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40), "ends early"),
    "no such instruction": (b"\x80\x04\xff.", "unknown"),
}


@pytest.mark.parametrize("what", MISUSES)
def test_misuse_of_what_is_admitted(tmp_path: Path, what: str) -> None:
    data, message = MISUSES[what]
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match=message), read_joblib(tmp_path / "x.pt"):
        pass


LONG = b"\x8a\x08" + b"\x7f" * 8
MANY = unpickle.MOST_INSTRUCTIONS

# Small files that would take much memory or time, and what is said of them.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "dictionaries": (lambda: b"\x80\x04" + b"}" * (MANY + 1), "more than 262144 instructions"),
    "dictionaries, packed": (lambda: zlib.compress(b"\x80\x04" + b"}" * 2**23), "more than 262144 instructions"),
    "packed, beyond all use": (lambda: zlib.compress(bytes(2**25)), "unpacks to more than 16777216 bytes"),
    "packed twice": (lambda: zlib.compress(zlib.compress(bytes(2**25))), "unknown|not admitted|damaged"),
    "tuples in each other": (lambda: b"\x80\x04)" + b"\x85" * 200 + b".", "nested more than 100 deep"),
    "lists in each other": (lambda: b"\x80\x04" + b"]" * 200 + b"a" * 199 + b".", "nested more than 100 deep"),
    "dictionaries in each other": (
        lambda: b"\x80\x04" + (b"}" + text("k")) * 200 + b"N" + b"s" * 200 + b".",
        "nested more than 100 deep",
    ),
    "a list in itself": (lambda: b"\x80\x04]" + b"q\0h\0a" * 200 + b".", "nested more than 100 deep"),
    "a long number": (lambda: b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".", "a number of 255 bytes"),
    "many dimensions": (
        lambda: array_of(b"(" + LONG + b"q\0" + b"h\0" * 6000 + b"t"),
        "at most 64 whole numbers",
    ),
    "a product of dimensions": (lambda: array_of(b"(" + LONG + b"q\0" + b"h\0" * 60 + b"t"), "ends early"),
    "a dimension beyond all": (lambda: array_of(b"(\x8a\x20" + b"\x7f" * 32 + b"t"), "a tuple of whole numbers"),
    "text": (lambda: b"\x80\x04" + (b"X" + struct.pack("<I", 2**20) + b"a" * 2**20) * 17, "more than 16 MiB"),
    "text that is not there": (lambda: b"\x80\x04X" + struct.pack("<I", 2**31) + b"a", "ends early"),
    "a name without end": (lambda: b"\x80\x04c" + b"a" * 2**20, "no end within 256 bytes"),
    "keys that take long to hash": (
        lambda: b"\x80\x04})" + b"q\0h\0\x86" * 60 + b"Ns.",
        "keys must be strings",
    ),
    "keys of one hash": (
        lambda: b"\x80\x04}(\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Nu.",
        "or small numbers",
    ),
}


def array_of(shape: bytes) -> bytes:
    """A joblib pickle of an array of a shape, without its values."""
    wrapper = ARRAY + b")\x81}(" + text("shape") + shape + text("dtype") + text("numpy") + text("dtype") + b"\x93"
    return b"\x80\x04" + wrapper + text("f4") + b"\x85R" + text("order") + text("C") + b"ub."


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("what", BOMBS)
def test_bounds_of_memory_and_time(tmp_path: Path, what: str) -> None:
    make, message = BOMBS[what]
    (tmp_path / "x.pt").write_bytes(make())
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    pid = os.fork()
    if pid == 0:
        try:
            with pytest.raises(pickle.UnpicklingError, match=message), read_joblib(tmp_path / "x.pt"):
                pass
            os._exit(0)
        finally:
            os._exit(1)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    assert usage.ru_maxrss * 1024 - before < 50 * 2**20
    assert usage.ru_utime + usage.ru_stime < 10


class _CallsRan:
    def __reduce__(self) -> Any:
        return ran, ("storage",)


def test_a_storage_with_code_in_it(tmp_path: Path) -> None:
    """The bytes of a tensor's storage are a pickle of their own."""
    inner = io.BytesIO()
    torch.save({"x": _CallsRan()}, inner, _use_new_zipfile_serialization=False)
    RAN.clear()
    torch.storage._load_from_bytes(inner.getvalue())
    assert RAN  # which torch's own function runs
    RAN.clear()
    for data in (inner.getvalue(), inner.getvalue() + b"\0" * 2**20):  # in memory, and left in the file
        storage = b"\x8e" + struct.pack("<Q", len(data)) + data + b"\x85"
        storage = text("torch.storage") + text("_load_from_bytes") + b"\x93" + storage + b"R"
        (tmp_path / "x.pt").write_bytes(call(*REBUILD, b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89)t"))
        with read_joblib(tmp_path / "x.pt") as tensor, pytest.raises(pickle.UnpicklingError):
            tensor.load()
    assert RAN == []


def test_a_storage_that_is_something_else(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save({"x": 1}, inner, _use_new_zipfile_serialization=False)
    storage = b"C" + bytes([len(inner.getvalue())]) + inner.getvalue() + b"\x85"
    storage = text("torch.storage") + text("_load_from_bytes") + b"\x93" + storage + b"R"
    (tmp_path / "x.pt").write_bytes(call(*REBUILD, b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89)t"))
    with read_joblib(tmp_path / "x.pt") as tensor, pytest.raises(pickle.UnpicklingError, match="a storage holds dict"):
        tensor.load()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_view_beyond_its_storage(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(torch.zeros(4).storage(), inner, _use_new_zipfile_serialization=False)
    storage = b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue() + b"\x85"
    storage = text("torch.storage") + text("_load_from_bytes") + b"\x93" + storage + b"R"
    for offset, size in ((0, 4), (1, 4), (0, 5)):
        data = call(*REBUILD, b"(" + storage + bytes([75, offset, 75, size]) + b"\x85K\x01\x85\x89)t")
        (tmp_path / "x.pt").write_bytes(data)
        with read_joblib(tmp_path / "x.pt") as tensor:
            if offset + size <= 4:
                assert torch.equal(tensor.load(), torch.zeros(4))
            else:
                with pytest.raises(RuntimeError, match="out of bounds"):
                    tensor.load()


def test_damaged_files_give_one_kind_of_error(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Every cut and 500 changed bytes: read as something, or refused, never another exception."""
    joblib = pytest.importorskip("joblib")
    joblib.dump(
        {"a": torch.arange(6.0), "b": np.arange(4.0), "config": {"n": 300, "s": "x", "t": (1, 2)}}, tmp_path / "x.pt"
    )
    whole = (tmp_path / "x.pt").read_bytes()
    draw = random.Random(0)
    damaged = [whole[:n] for n in range(1, len(whole))]
    for _ in range(500):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] = draw.randrange(256)
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        (tmp_path / "y.pt").write_bytes(data)
        try:
            with read_joblib(tmp_path / "y.pt"):
                pass
        except pickle.UnpicklingError:
            refused += 1
    record_property("tried", len(damaged))
    assert len(whole) - 1 <= refused < len(damaged)

"""What can happen to a file of weights."""

import json
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from timm_ghn_init.weights.files import METADATA_KEY


def first(header: dict[str, Any]) -> Any:
    """The entry of some tensor of at least two dimensions."""
    return next(v for k, v in header.items() if k != "__metadata__" and len(v["shape"]) > 1 and 0 not in v["shape"])


def with_header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage a file's header."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return damage


def metadata(text: str) -> Callable[[Path], None]:
    return with_header(lambda header: header.update(__metadata__={METADATA_KEY: text}))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Bomb:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated values": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "truncated header": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "empty": lambda p: p.write_bytes(b""),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0" * 8),
    "a bit flipped": flip_last_byte,
    "link": link,
    "folder": folder,
    "pickle": lambda p: p.write_bytes(pickle.dumps(Bomb())),
    "torch pickle": lambda p: torch.save({"a": Bomb()}, p),
    "renamed tensor": with_header(lambda h: h.update(zzz=h.pop(next(k for k in h if k != "__metadata__")))),
    "other dtype": with_header(lambda h: first(h).update(dtype="I32")),
    "unknown dtype": with_header(lambda h: first(h).update(dtype="I7")),
    "other shape": with_header(lambda h: first(h).update(shape=[math.prod(first(h)["shape"])])),
    "no metadata": with_header(lambda h: h.pop("__metadata__")),
    "metadata no JSON": metadata("{"),
    "metadata no object": metadata("[1]"),
    "metadata without end": metadata("[" * 10**6),
    "no digest": metadata("{}"),
    "digest no text": metadata('{"digest": 1}'),
}

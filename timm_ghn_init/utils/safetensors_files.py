"""Write safetensors files whose bytes follow from what is written, at once or one tensor at a time.

The library's own writer wants all tensors at once, and writes metadata in an order that changes. A file is the size of
the header (8 bytes), the header as JSON, the values.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def header(
    entries: "Mapping[str, tuple[tuple[int, ...], torch.dtype]]", metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and where in the file the values of each tensor begin.

    Args:
        entries: shape and dtype by name. Values follow each other in this order.
        metadata: "format" is added.

    Raises:
        InputError: a dtype that the format does not know.
    """
    described: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    end = 0
    for name, (shape, dtype) in entries.items():
        code = _code(dtype)
        if code is None:
            raise InputError(f"{name} is {dtype}, which safetensors files cannot hold.")
        start, end = end, end + dtype.itemsize * math.prod(shape)
        described[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # values begin aligned
    size = 8 + len(text)
    starts = {name: size + described[name]["data_offsets"][0] for name in entries}
    return len(text).to_bytes(8, "little") + text, starts


@cache
def _code(dtype: "torch.dtype") -> str | None:
    """The library's own name of a dtype in a header; None if it does not know it."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        entry = json.loads(save({"x": torch.empty(1, dtype=dtype, device="cpu")})[8 : -dtype.itemsize])["x"]
    except (KeyError, ValueError, SafetensorError):
        return None
    return entry["dtype"] if entry["shape"] == [1] else None  # two numbers of float4 share a byte


def layout(tensors: "Mapping[str, Tensor]") -> "dict[str, tuple[tuple[int, ...], torch.dtype]]":
    """Shape and dtype of tensors in the order of a file: large dtypes first, so that each is aligned to its own."""
    ordered = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    return {n: (tuple(tensors[n].shape), tensors[n].dtype) for n in ordered}


def as_bytes(tensor: "Tensor") -> Any:
    """The memory of a contiguous tensor on the CPU."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors of the CPU. The file is half-written if this raises, as `header` or an OSError."""
    entries = layout(tensors)
    text, _ = header(entries, metadata)
    with open(path, "wb") as file:
        file.write(text)
        for name in entries:
            file.write(as_bytes(tensors[name]))

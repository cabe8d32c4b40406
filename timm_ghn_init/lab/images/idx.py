"""The format of MNIST and its kin: a header of axes, then bytes (http://yann.lecun.com/exdb/mnist)."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from . import DatasetError


def idx_file(folder: Path, stem: str) -> Path | None:
    """The file of `stem` ("train-images", "t10k-labels" ...) in a folder, compressed or not; None if there is none."""
    kind = "idx3" if stem.endswith("images") else "idx1"
    return next((p for end in ("", ".gz") if (p := folder / f"{stem}-{kind}-ubyte{end}").is_file()), None)


def read_idx(folder: Path, stem: str) -> np.ndarray:
    """The bytes of a file in the shape that its header says.

    Raises:
        DatasetError: there is no such file, or it is damaged.
    """
    path = idx_file(folder, stem)
    if path is None:
        raise DatasetError(f"{folder} holds no {stem}.")
    try:
        data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Remove it.") from error
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data[4 : 4 + 4 * axes], dtype=">u4").astype(np.int64)
    if len(shape) != axes or not axes or len(data) != 4 + 4 * axes + shape.prod():
        raise DatasetError(f"{path} is damaged: it is not what its header says. Remove it.")
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape.tolist()).copy()

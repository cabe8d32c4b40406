"""A folder of images, one subfolder for each class: its files, and the picture that each of them shows.

A file is read as the picture that it shows, or an error names it. Hidden files and files of other kinds are left out.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.progress import over
from . import DatasetError

if TYPE_CHECKING:
    from PIL import Image

_HELD_OUT = ("test", "validation", "val")  # usual names of the part to test on, next to "train"
_UNREADABLE = (".heic", ".heif", ".jxl")  # images that Pillow does not read: an error names them


@dataclass(frozen=True)
class Files:
    """Pictures and their classes.

    Attributes:
        paths: class after class, in natural order (2.png before 10.png).
        labels: of each, an index into `classes`.
        classes: names of the subfolders, in natural order.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: Sequence[int]) -> "Files":
        return Files(tuple(self.paths[i] for i in chosen), tuple(self.labels[i] for i in chosen), self.classes)


def find_images(folder: str | Path) -> tuple[Files, Files]:
    """The images to train on and those to test on.

    Args:
        folder: with parts, train/CLASS/*.png and test/CLASS/*.png (or validation/, or val/), or CLASS/*.png, of which
            every fifth image is held out. Files may lie deeper; hidden ones and other than images do not count.

    Raises:
        DatasetError: there are no images, a class has none to train on, or the parts have different classes.
    """
    root = Path(folder)
    held_out = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        everything = _list(root)
        fifth = range(4, len(everything), 5)
        return everything.take(sorted({*range(len(everything))} - {*fifth})), everything.take(fifth)
    train, test = _list(root / "train"), _list(held_out)
    if train.classes != test.classes:
        differing = ", ".join(sorted({*train.classes} ^ {*test.classes}))
        raise DatasetError(f"{root}: train and {held_out.name} have different classes ({differing}).")
    return train, test


def _list(folder: Path) -> Files:
    try:
        classes = sorted((e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."), key=_natural)
        found = {name: _walk(folder / name) for name in classes}
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error}.") from error
    if len(classes) < 2 or not any(found.values()):
        raise DatasetError(f"{folder} holds no folders of images, two or more, one for each class: no images to read.")
    for name, paths in found.items():
        if not paths:
            raise DatasetError(f"{folder / name} holds no images. Put some there, or remove it.")
    labels = tuple(i for i, paths in enumerate(found.values()) for _ in paths)
    return Files(tuple(path for paths in found.values() for path in paths), labels, tuple(classes))


def _walk(folder: Path) -> list[Path]:
    """Images below a folder. Links are followed, each folder once, because they can form a circle."""
    suffixes, found, seen = _suffixes(), [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            found += [Path(place, name) for name in names if name[0] != "." and Path(name).suffix.lower() in suffixes]
        seen.add(real)
    return sorted(found, key=lambda path: _natural(str(path)))


def _raise(error: OSError) -> None:
    raise error


def _natural(text: str) -> tuple[Any, ...]:
    """Sorts 2.png before 10.png."""
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(re.split(r"(\d+)", text))], text


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset([*(suffix for suffix, kind in known.items() if kind in Image.OPEN), *_UNREADABLE])


# Reading


def read_image(path: str | Path) -> "Image.Image":
    """The picture that a file shows, RGB with 8 bits, upright.

    16-bit grey is reduced to 8 bits, transparent pixels get a white ground, and the camera's note about the orientation
    is followed. The suffix does not matter.

    Raises:
        DatasetError: it cannot be read (damaged, cut off, empty, too large) or is not one picture with known colours
            (animations, floating point, 32 bits). The message names it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise OSError("it is a broken link or no file" if os.path.lexists(path) else "it is not there")
        # Pillow maps a TIFF that it is given by name into memory, and 13.0 then mistakes height for width in some
        with open(path, "rb") as file, Image.open(file) as opened:
            if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":  # that is a photo with a second view
                raise ValueError("it is animated or has several pages, of which none is the picture")
            white = _sixteen_bits(opened)
            upright = ImageOps.exif_transpose(opened)
            return _rgb(upright if white is None else _grey(upright, white))
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path} cannot be read: it is no image, or damaged. Remove or replace it.") from error
    except Exception as error:  # each of Pillow's readers has its own
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path} cannot be read: {reason.rstrip('.')}. Remove or replace it.") from error


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(f"its values (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _sixteen_bits(image: "Image.Image") -> int | None:
    """The value of white in a 16-bit image: 65535, less in a TIFF with fewer bits, 0 if its tags say that."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        return None
    if image.has_transparency_data:
        raise ValueError("it has 16 bits and a transparent grey; save it with 8 bits")
    tags = getattr(image, "tag_v2", {})
    bits, white_is_zero = tags.get(258, (16,))[0], tags.get(262) == 0
    return 0 if white_is_zero else 2**bits - 1


def _grey(image: "Image.Image", white: int) -> "Image.Image":
    """16 bits as 8. Pillow's own conversion cuts off what is above 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.round(255 * (values / white if white else 1 - values / 65535)).astype(np.uint8))


@lru_cache(maxsize=8)
def check_images(paths: tuple[Path, ...]) -> None:
    """Read all images once, so that a damaged one is reported before the work begins.

    Raises:
        DatasetError: as `read_image`, of the first that cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in over(pool.map(_check, paths), "Checking images", len(paths), unit="image", stays=True):
            pass


def _check(path: Path) -> None:
    read_image(path)

"""Data sets in their files, and what picture a file shows: read as that, or refused by its name."""

import gzip
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timm_ghn_init.lab.images import DatasetError, datasets
from timm_ghn_init.lab.images.batches import Images, open_images
from timm_ghn_init.lab.images.datasets import load
from timm_ghn_init.lab.images.folder import check_images, find_images, read_image

DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (6, 8), dtype=np.uint8)
COLOURS = DRAW.integers(0, 256, (6, 8, 3), dtype=np.uint8)
AS_RGB = np.repeat(GREY[:, :, None], 3, 2)
HALF = np.where(GREY > 127, 255, 0).astype(np.uint8)  # opaque or transparent
WHITE_BELOW = AS_RGB <= 127

Pixels = np.ndarray[Any, Any]


def read(path: Path) -> Pixels:
    return np.asarray(read_image(path)).astype(int)


# -- pictures ----------------------------------------------------------------------------------------------------------


def grey16() -> Image.Image:
    return Image.fromarray(GREY.astype(np.uint16) * 257)


def palette(**info: Any) -> Image.Image:
    image = Image.fromarray(COLOURS).quantize(16)
    image.info.update(info)
    return image


def palette_on_white() -> Pixels:
    image = palette()
    return np.where(np.asarray(image)[:, :, None] == 0, 255, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "image", "options", "wanted", "tolerance"),
    [
        ("8 bits.png", lambda: Image.fromarray(GREY), {}, AS_RGB, 0),
        ("16 bits.png", grey16, {}, AS_RGB, 0),
        ("16 bits.tif", grey16, {}, AS_RGB, 0),
        ("16 bits.pgm", grey16, {}, AS_RGB, 0),
        ("16 bits, 0 is white.tif", grey16, {"tiffinfo": {262: 0}}, 255 - AS_RGB, 0),
        ("1 bit.png", lambda: Image.fromarray(GREY > 127), {}, np.where(AS_RGB > 127, 255, 0), 0),
        ("CMYK.tif", lambda: Image.fromarray(COLOURS).convert("CMYK"), {}, COLOURS, 1),
        ("CMYK.jpg", lambda: Image.new("CMYK", (8, 6), (55, 225, 195, 0)), {"quality": 95}, (200, 30, 60), 4),
        ("palette.gif", palette, {}, np.asarray(palette().convert("RGB")), 0),
        ("palette, one colour transparent.png", palette, {"transparency": 0}, palette_on_white(), 0),
        (
            "grey and alpha.png",
            lambda: Image.fromarray(np.dstack([GREY, HALF]), "LA"),
            {},
            np.where(WHITE_BELOW, 255, AS_RGB),
            0,
        ),
        (
            "colours and alpha.webp",
            lambda: Image.fromarray(np.dstack([COLOURS, HALF])),
            {"lossless": True},
            np.where(WHITE_BELOW, 255, COLOURS),
            0,
        ),
        (
            "one grey transparent.png",
            lambda: Image.fromarray(GREY),
            {"transparency": int(GREY[0, 0])},
            np.where(GREY[0, 0] == AS_RGB, 255, AS_RGB),
            0,
        ),
        (
            "a photo and a second view.mpo",
            lambda: Image.new("RGB", (8, 6), (9, 99, 199)),
            {"save_all": True, "append_images": [Image.new("RGB", (8, 6))]},
            (9, 99, 199),
            4,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_are_read_as_what_they_show(
    name: str, image: Callable[[], Image.Image], options: Any, wanted: Any, tolerance: int, tmp_path: Path
) -> None:
    image().save(tmp_path / name, **options)
    shown = read(tmp_path / name)
    assert shown.shape == (6, 8, 3)
    assert np.abs(shown - wanted).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("image", [lambda: Image.fromarray(GREY), grey16], ids=["8 bits", "16 bits"])
def test_pictures_are_upright(image: Callable[[], Image.Image], suffix: str, tmp_path: Path) -> None:
    """As a camera that was held sideways notes it."""
    for orientation, turn in ((1, None), (3, "ROTATE_180"), (6, "ROTATE_270"), (8, "ROTATE_90"), (5, "TRANSPOSE")):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        image().save(path, exif=exif)
        wanted = Image.fromarray(AS_RGB)
        assert np.array_equal(read(path), wanted.transpose(Image.Transpose[turn]) if turn else wanted), orientation


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read(tmp_path / "a.jpg"), AS_RGB)


def png(side: int) -> bytes:
    """A small file of side x side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(1000), 1)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def cut_off(path: Path) -> None:
    Image.fromarray(DRAW.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    os.truncate(path, path.stat().st_size * 9 // 10)


def moving(path: Path) -> None:
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        *((f"cut off.{suffix}", cut_off, "") for suffix in ("png", "jpg", "gif", "tif", "bmp", "webp", "ppm", "jp2")),
        *((f"moving.{suffix}", moving, "animated or has several pages") for suffix in ("gif", "png", "webp", "tif")),
        ("empty.png", lambda p: p.write_bytes(b""), "no image, or damaged"),
        ("text.jpg", lambda p: p.write_text("not a picture"), "no image, or damaged"),
        ("damaged.png", lambda p: p.write_bytes(png(8).replace(b"\x78\x01", b"no")), ""),
        ("bomb.png", lambda p: p.write_bytes(png(60_000)), "exceeds limit"),
        ("real numbers.tif", lambda p: Image.fromarray(GREY.astype(np.float32)).save(p), "mode F.*no known range"),
        ("32 bits.tif", lambda p: Image.fromarray(GREY.astype(np.int32)).save(p), "mode I.*no known range"),
        ("16 bits, a grey transparent.png", lambda p: grey16().save(p, transparency=257), "save it with 8 bits"),
        ("link.png", lambda p: p.symlink_to("nowhere"), "broken link"),
        ("pipe.png", os.mkfifo, "no file"),
        ("absent.png", lambda p: None, "not there"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " be " not in value else "",
)
def test_others_are_refused_by_name(name: str, write: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(DatasetError, match=f"{name} cannot be read: .*{reason}.*Remove or replace it"):
        read_image(tmp_path / name)


# -- folders -----------------------------------------------------------------------------------------------------------


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)
    return path


def test_which_files_are_images_of_which_class(tmp_path: Path) -> None:
    for name in ("2/1.png", "2/10.PNG", "2/2.png", "10/deeper/1.jpg", "10/x.gif"):
        picture(tmp_path / name)
    picture(tmp_path / "2" / ".hidden.png")
    picture(tmp_path / ".thumbnails" / "1.png")
    picture(tmp_path / "beside.png")
    (tmp_path / "2" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "2" / "notes.txt").write_text("no image")
    (tmp_path / "10" / "circle").symlink_to(tmp_path / "10")
    picture(tmp_path.parent / "elsewhere" / "y.png")
    (tmp_path / "2" / "z").symlink_to(tmp_path.parent / "elsewhere")
    train, test = find_images(tmp_path)
    names = ["2/1.png", "2/2.png", "2/10.PNG", "2/z/y.png", "10/deeper/1.jpg", "10/x.gif"]
    assert train.classes == test.classes == ("2", "10")
    assert [*train.paths[:4], *test.paths, *train.paths[4:]] == [tmp_path / name for name in names]
    assert (train.labels, test.labels) == ((0, 0, 0, 0, 1), (1,))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        picture(tmp_path / name)
    with pytest.raises(DatasetError, match=r"train and test have different classes \(b, c\)"):
        find_images(tmp_path)
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "b")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DatasetError, match="train/empty holds no images"):
        find_images(tmp_path)


def test_unreadable_kinds_of_image_are_refused_not_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "2.heic").write_bytes(b"\0\0\0\x18ftypheic")
    train, _ = find_images(tmp_path)
    with pytest.raises(DatasetError, match=r"2\.heic cannot be read"):
        check_images(train.paths)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_images_to_test_on_mix_the_classes(held_out: str, tmp_path: Path) -> None:
    """Class after class, every batch would be of one class and its statistics would tell nothing."""
    for part in ("train", held_out):
        for shade, name in ((0, "a"), (255, "b")):
            for i in range(20):
                picture(tmp_path / part / name / f"{i}.png", shade)
    data = load(str(tmp_path), 8)
    assert data.train.images.shape == (40, 3, 8, 8) and data.classes == ("a", "b")
    assert data.name == tmp_path.name  # and not where it lies
    images = Images(data)
    batches = [images.batch(seed, 0, 10, train=False) for seed in (0, 1)]
    x, y = batches[0]
    assert 2 < y.sum() < 8
    assert np.array_equal(y, batches[1][1])  # always the same ones
    assert np.array_equal(x[:, 0, 0, 0] > 0, y == 1)  # with their classes
    assert data.train.labels.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize("channels", [(255, 255, 0), (0, 255, 255), (0, 0, 0)])
def test_colours_that_are_the_same_everywhere(channels: tuple[int, ...], tmp_path: Path) -> None:
    """Their deviation is 0, by which no value can be divided."""
    for name in "ab":
        for i in range(5):
            path = picture(tmp_path / name / f"{i}.png")
            Image.fromarray(DRAW.integers(0, 2, (8, 8, 3), dtype=np.uint8) * np.uint8(channels)).save(path)
    x, _ = open_images(str(tmp_path)).batch(0, 0, 4)
    assert x.isfinite().all()
    assert [bool(x[:, c].any()) for c in range(3)] == [value > 0 for value in channels]


# -- Fashion-MNIST -----------------------------------------------------------------------------------------------------


def write_idx(path: Path, values: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fashion(folder: Path, end: str) -> None:
    for part, n in (("train", 5), ("t10k", 3)):
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", np.full((n, 28, 28), 7, np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", np.arange(n, dtype=np.uint8))


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where Debian's package would lie."""
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path / "debian")
    return tmp_path / "debian"


@pytest.mark.parametrize(
    ("place", "end"), [("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz"), ("../debian", ".gz")]
)
def test_fashion_mnist_where_others_lay_it(place: str, end: str, tmp_path: Path, no_debian: Path) -> None:
    fashion(tmp_path / "data" / place, end)
    data = load("fashion-mnist", 32, tmp_path / "data")
    assert (len(data.train), len(data.test), len(data.classes)) == (5, 3, 10)
    assert data.train.images.shape == (5, 3, 32, 32) and data.train.images.unique().tolist() == [7]
    assert data.test.labels.tolist() == [0, 1, 2]


def test_fashion_mnist_that_cannot_be_had(tmp_path: Path, no_debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fails)
    with pytest.raises(DatasetError, match=r"cannot be downloaded \(no network\).*dataset-fashion-mnist"):
        load("fashion-mnist", 32, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 9), "cannot be read"),
        (lambda path: path.write_bytes(gzip.compress(b"hello")), "cannot be read"),
        (lambda path: write_idx(path, np.zeros((4, 28, 28), np.uint8)), "do not belong together"),
        (lambda path: path.with_name("t10k-labels-idx1-ubyte.gz").unlink(), "holds no t10k-labels"),
    ],
)
def test_damaged_fashion_mnist(damage: Callable[[Path], Any], message: str, tmp_path: Path, no_debian: Path) -> None:
    fashion(tmp_path, ".gz")
    damage(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DatasetError, match=message):
        load("fashion-mnist", 32, tmp_path)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn.datasets"), ("cifar10", "torchvision.datasets")])
def test_a_missing_package_is_named_with_our_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DatasetError, match=r"pip install '.\[finetune\]'"):
        load(name, 8)

"""A data set of letters in the manner of notMNIST: A to J, white on black, in many fonts. Other fonts are tested on.

    apt-get install fonts-aenigma
    python benchmarks/letters.py /usr/share/fonts/truetype/aenigma -o data/letters

The package has 465 fonts by Brian Kent, most of them for display. A font that lacks a letter, or has the same sign for
two, is left out.
"""

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

LETTERS = "ABCDEFGHIJ"
SIDE, LONGER = 32, 26  # pixels: of an image, of a letter's longer side
DRAWN = 128  # pixels: of letters before they are scaled


def draw(font: Path) -> list[Image.Image] | None:
    """The letters of a font, None if it has not all of them."""
    try:
        face = ImageFont.truetype(str(font), DRAWN)
        images = [letter(face, text) for text in LETTERS]
    except OSError:  # no font, or one that is broken
        return None
    if None in images or len({image.tobytes() for image in images if image}) < len(LETTERS):
        return None
    return [image for image in images if image]


def letter(face: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    canvas = Image.new("L", (4 * DRAWN, 4 * DRAWN))
    ImageDraw.Draw(canvas).text((DRAWN, DRAWN), text, fill=255, font=face)
    box = canvas.getbbox()
    if box is None:
        return None
    drawn = canvas.crop(box)
    scale = LONGER / max(drawn.size)
    size = [max(1, round(scale * side)) for side in drawn.size]
    image = Image.new("L", (SIDE, SIDE))
    image.paste(drawn.resize((size[0], size[1]), Image.Resampling.LANCZOS), [(SIDE - side) // 2 for side in size])
    return image


def write_idx(folder: Path, stem: str, values: np.ndarray) -> None:
    """In MNIST's format: a header of axes, then bytes."""
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes()
    name = f"{stem}-idx{values.ndim}-ubyte.gz"
    (folder / name).write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fonts", type=Path, help="folder of .ttf and .otf files")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for files of MNIST's format")
    args = parser.parse_args(argv)
    files = sorted(p for p in args.fonts.rglob("*") if p.suffix in (".ttf", ".otf"))
    drawn = [images for font in tqdm(files, disable=None, unit=" fonts") if (images := draw(font))]
    pixels = np.array([[np.asarray(image) for image in images] for images in drawn], dtype=np.uint8)
    labels = np.broadcast_to(np.arange(len(LETTERS), dtype=np.uint8), pixels.shape[:2])
    held_out = np.arange(len(drawn)) % 3 == 2
    args.output.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("train", ~held_out), ("t10k", held_out)):
        order = np.random.default_rng(0).permutation(chosen.sum() * len(LETTERS))
        write_idx(args.output, f"{part}-images", pixels[chosen].reshape(-1, SIDE, SIDE)[order])
        write_idx(args.output, f"{part}-labels", labels[chosen].reshape(-1)[order])
    print(f"{len(drawn)} of {len(files)} fonts, {len(drawn) * len(LETTERS)} images in {args.output}")


if __name__ == "__main__":
    main()

"""Images made by formula: unlimited, labelled, free of rights, without a download.

Formula-driven supervised learning, "Pre-training without Natural Images" (Kataoka et al., 2020, arXiv 2101.08515), at
32 x 32: a class is the attractor of an iterated function system and two hues, an image one drawing of it with its own
pose, light and noise. Some drawings have other hues or no colour, so that the colour alone is not enough.
"""

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE = 32
POINTS = 3000  # of a fractal; a drawing takes some of them

_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1  # coordinates of pixels


@dataclass(frozen=True)
class FormulaImages:
    """Batches of labelled images; the same (seed, index) is the same batch, on every machine.

    Attributes:
        num_classes: how many classes there are. The first n of a larger set are those of a smaller one.
    """

    num_classes: int = 100
    name: ClassVar[str] = "formula"

    def batch(self, seed: int, index: int, size: int, train: bool = True) -> tuple[Tensor, Tensor]:
        """Draw images.

        Args:
            seed, index: which batch.
            size: images in the batch.
            train: held-out images (False) are never among those for training.

        Returns:
            Images (size, 3, 32, 32), float32, about -2 to 2; labels (size,), int64.
        """
        rng = np.random.default_rng((int(train), seed, index))
        labels = rng.integers(0, self.num_classes, size)
        formulas = [self._formulas[label] for label in labels]
        shapes = _draw(np.stack([f.points for f in formulas]), rng)
        images = _colour(shapes, np.stack([f.hues for f in formulas]), rng)
        return torch.from_numpy(images), torch.from_numpy(labels)

    @cached_property
    def _formulas(self) -> list["_Formula"]:
        return [_formula(i) for i in range(self.num_classes)]


class _Formula(NamedTuple):
    """One class: points of its attractor (POINTS, 2), in -1 to 1, and the hues of foreground and background."""

    points: np.ndarray
    hues: np.ndarray


def _formula(label: int) -> _Formula:
    rng = np.random.default_rng((2, label))
    return _Formula(_make_fractal(rng), rng.random(2))


def _make_fractal(rng: np.random.Generator) -> np.ndarray:
    """A cloud of points on an attractor that neither fills the square nor is a few dots."""
    while True:
        maps = rng.uniform(-1, 1, (rng.integers(2, 5), 2, 3))
        norms = np.linalg.svd(maps[:, :, :2], compute_uv=False)[:, 0]
        maps[:, :, :2] *= (rng.uniform(0.4, 0.85, len(maps)) / norms)[:, None, None]  # contractions
        points = _attractor(maps, rng)
        low, high = np.percentile(points, (1, 99), axis=0)
        points = (2 * (points - low) / np.maximum(high - low, 1e-6) - 1).astype(np.float32)
        filled = (_raster(points[None]) > 0).mean()
        if 0.12 < filled < 0.5:
            return points


def _attractor(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The chaos game, many points at a time: (POINTS, 2)."""
    area = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
    points = np.zeros((POINTS, 2))
    for choice in rng.choice(len(maps), (20, POINTS), p=area / area.sum()):
        points = np.einsum("nij,nj->ni", maps[choice, :, :2], points) + maps[choice, :, 2]
    return points


def _raster(points: np.ndarray) -> np.ndarray:
    """Points in [-1, 1]^2, (n, P, 2), counted by pixel: (n, SIZE, SIZE), float32. Others are dropped."""
    n = len(points)
    pixel = np.floor((points + 1) * (SIZE / 2)).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < SIZE)).all(2)
    flat = (np.arange(n)[:, None] * SIZE + pixel[:, :, 1]) * SIZE + pixel[:, :, 0]
    return np.bincount(flat[inside], minlength=n * SIZE * SIZE).reshape(n, SIZE, SIZE).astype(np.float32)


def _draw(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some of the points of each image, turned, scaled and shifted: (n, SIZE, SIZE) in 0 to 1."""
    start, count = int(rng.integers(0, POINTS // 2)), int(rng.integers(700, POINTS // 2))
    points = points[:, start : start + count]
    pose = rng.uniform((-0.3, 0.65, -0.2, -0.2), (0.3, 1.05, 0.2, 0.2), (len(points), 4)).astype(np.float32)
    angle, scale, dx, dy = pose.T[:, :, None]
    x, y = points[:, :, 0] * scale, points[:, :, 1] * scale
    turned = np.stack((x * np.cos(angle) - y * np.sin(angle) + dx, x * np.sin(angle) + y * np.cos(angle) + dy), 2)
    return np.minimum(_raster(turned), 2) / 2


def _colour(shapes: np.ndarray, hues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shapes (n, H, W) in 0 to 1, in colours of the given hues (n, 2): (n, 3, H, W)."""
    n = len(shapes)
    others = rng.random(n) < 0.25
    hues = np.where(others[:, None], rng.random((n, 2)), hues + rng.normal(0, 0.03, (n, 2))) % 1
    front, back = _rgb(hues[:, 0], (0.6, 1.0), rng), _rgb(hues[:, 1], (0.1, 0.5), rng)
    grey, inverted = rng.random((2, n)) < 0.2
    for colour in (front, back):
        colour[grey] = colour[grey].mean(1, keepdims=True)
    front[inverted], back[inverted] = back[inverted], front[inverted]
    shape = shapes[:, None]
    images = back[:, :, None, None] * (1 - shape) + front[:, :, None, None] * shape
    slope = rng.normal(0, 0.12, (2, n, 1, 1, 1))
    light = 1 + slope[0] * _AXIS + slope[1] * _AXIS[:, None]
    noise = rng.standard_normal(images.shape, dtype=np.float32) * rng.uniform(0, 0.08, (n, 1, 1, 1))
    return ((images * light + noise - 0.4) / 0.27).astype(np.float32)


def _rgb(hue: np.ndarray, values: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Colours (n, 3) of the given hues, with random saturations and values."""
    hsv = np.stack((hue, rng.uniform(0.4, 1, len(hue)), rng.uniform(*values, len(hue))), 1)
    return np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv], dtype=np.float32)

"""Random networks to train a GHN on, in the spirit of DeepNets-1M (arXiv 2110.13100, Section 3).

A network is a `Record`, a small JSON object; `sample` draws it, deterministically by (split, seed, index), and `build`
makes the module. The held-out splits are drawn like the training networks ("test") or from outside of what is drawn
there ("deep", "wide", "nonorm").
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph, trace
from .blocks import BLOCKS, Style, Transformer, activation, conv

IMAGE = 32
KINDS = (*BLOCKS, "mixed", "vit")
SPLITS = ("train", "test", "deep", "wide", "nonorm")
WIDTHS = (16, 24, 32, 40, 48, 64, 80, 96, 128)
MAX_MACS = 2e6  # multiplications per image of a training network: a CPU core shall do


@dataclass(frozen=True)
class Record:
    """One network.

    Attributes:
        kind: a name in `KINDS`.
        blocks: of each stage, a name in `BLOCKS`, or "transformer" for the last.
        widths, depths: channels and blocks of each stage.
        stem: (kernel, stride) of the first convolution.
        stem_pool: a max pooling of stride 2 after it, as in ResNet.
        down: how a stage halves the resolution: "stride" in its first block, or "max" or "avg" pooling before it.
        style: see `Style`.
    """

    kind: str
    blocks: tuple[str, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem: tuple[int, int] = (3, 1)
    stem_pool: bool = False
    down: str = "stride"
    style: Style = field(default_factory=Style)

    def to_json(self) -> dict[str, Any]:
        """Only lists, strings, numbers; `from_json` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Record":
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Record(**values | {"style": Style(**data["style"])})


class Network(nn.Module):
    """(B, 3, 32, 32) -> logits (B, num_classes)."""

    def __init__(self, record: Record, num_classes: int) -> None:
        super().__init__()
        self.record = record
        style, (kernel, stride) = record.style, record.stem
        channels, side = record.widths[0], IMAGE // stride
        layers: list[nn.Module] = [*conv(style, 3, channels, kernel, stride), activation(style)]
        if kernel == stride:
            layers[0] = nn.Conv2d(3, channels, kernel, stride)  # patches do not overlap
        if record.stem_pool:
            layers.append(nn.MaxPool2d(3, 2, 1))
            side //= 2
        stages: list[nn.Module] = []
        sides = [side]
        for i, (block, width, depth) in enumerate(zip(record.blocks, record.widths, record.depths, strict=True)):
            if block == "transformer":
                reduce = conv(style, channels, width, 1) if channels != width else nn.Identity()
                stages.append(nn.Sequential(reduce, Transformer(style, width, side, depth)))
            else:
                halve = i > 0 and side >= 4
                stages.append(_stage(record, block, channels, width, depth, halve))
                side //= 1 + halve
            channels = width
            sides.append(side)
        self.sides = tuple(sides)  # of the feature map after the stem and after each stage
        self.stem, self.stages = nn.Sequential(*layers), nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(self.stem(x))))


_POOLS: dict[str, Callable[[], nn.Module]] = {"max": lambda: nn.MaxPool2d(2), "avg": lambda: nn.AvgPool2d(2)}


def _stage(record: Record, block: str, c_in: int, c_out: int, depth: int, halve: bool) -> nn.Module:
    make, pooled = BLOCKS[block], halve and record.down != "stride"
    strides = [2 if halve and not pooled else 1] + [1] * (depth - 1)
    blocks = [make(record.style, c_in if i == 0 else c_out, c_out, stride) for i, stride in enumerate(strides)]
    return nn.Sequential(*([_POOLS[record.down]()] if pooled else []), *blocks)


def build(record: Record, num_classes: int) -> Network:
    """The network of a record on the meta device: it has no memory, its parameters are to be predicted."""
    with torch.device("meta"):
        return Network(record, num_classes)


def cost(network: Network) -> float:
    """About how many multiplications a forward pass takes for one image: each parameter is used at every pixel."""
    parts = zip((network.stem, *network.stages), network.sides, strict=True)
    return sum(side * side * sum(p.numel() for p in part.parameters()) for part, side in parts)


@lru_cache(maxsize=8192)
def network(split: str, seed: int, index: int, num_classes: int, max_macs: float = MAX_MACS) -> tuple[Network, Graph]:
    """A sampled network and its graph; those that were asked for lately are kept."""
    built = _sampled(split, seed, index, num_classes, max_macs)
    return built, trace(built, IMAGE)


def sample(split: str, seed: int, index: int, max_macs: float = MAX_MACS) -> Record:
    """Draw a network; the kinds take turns.

    Args:
        split: a name in `SPLITS`.
        seed, index: which network of the split.
        max_macs: of the networks for training; those held out as unusual ("deep", "wide") may have eight times that.
    """
    return _sampled(split, seed, index, 1, max_macs).record


def _sampled(split: str, seed: int, index: int, num_classes: int, max_macs: float) -> Network:
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; there are {', '.join(SPLITS)}.")
    rng = random.Random(f"{split} {seed} {index}")  # seeded by the string's SHA-512, the same everywhere
    limit = max_macs * (8 if split in ("deep", "wide") else 1)
    while True:
        built = build(_draw(rng, KINDS[index % len(KINDS)], split), num_classes)
        if cost(built) <= limit:
            return built


def _draw(rng: random.Random, kind: str, split: str) -> Record:
    stages = 1 if kind == "vit" else rng.randint(1, 4)
    names = [kind] * stages
    if kind == "mixed":
        names = [rng.choice(list(BLOCKS)) for _ in range(stages)]
    if kind == "vit" or (kind == "mixed" and rng.random() < 0.25):
        names[-1] = "transformer"
    wide = split == "wide"
    width = rng.choice((128, 160, 192) if wide else WIDTHS[:7])
    widths = [min(width if wide else 128, round(width * rng.choice((1, 1.5, 2)) ** i / 8) * 8) for i in range(stages)]
    deep = (5, 10) if split == "deep" else (1, 6 if stages == 1 else 3)
    norm = "none" if split == "nonorm" else _norm(rng, kind)
    if norm == "none" and split == "train":  # without a norm only shallow networks
        deep = (1, 1)
    patches = kind == "vit" or (kind == "convnext" and rng.random() < 0.7)
    stem = rng.choice(((4, 4), (8, 8), (2, 2)) if kind == "vit" else ((4, 4), (2, 2)) if patches else _STEMS)
    return Record(
        kind=kind,
        blocks=tuple(names),
        widths=tuple(widths),
        depths=tuple(rng.randint(*deep) for _ in range(stages)),
        stem=stem,
        stem_pool=not patches and rng.random() < 0.3,
        down=rng.choice(("stride", "stride", "max", "avg")),
        style=_style(rng, kind, norm),
    )


_STEMS = ((3, 1), (3, 2), (5, 2), (7, 2), (3, 2))


def _norm(rng: random.Random, kind: str) -> str:
    if kind in ("convnext", "vit"):
        return rng.choice(("ln", "ln", "ln", "bn"))
    return rng.choice(
        ("bn", "bn", "bn", "bn", "bn", "ln", "none") if kind == "plain" else ("bn", "bn", "bn", "bn", "ln")
    )


def _style(rng: random.Random, kind: str, norm: str) -> Style:
    large = kind == "convnext"
    return Style(
        kernel=rng.choice((7, 7, 5, 3)) if large else rng.choice((3, 3, 3, 3, 5, 7)),
        groups=rng.choice((1, 1, 1, 2, 4, 8, 0)),
        dilation=rng.choice((1, 1, 1, 1, 2)),
        norm=norm,
        act="gelu" if large or kind == "vit" or rng.random() < 0.2 else "relu",
        se=rng.random() < 0.25,
        expand=rng.choice((2, 3, 4)),
    )

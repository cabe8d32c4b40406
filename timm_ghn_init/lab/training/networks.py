"""Random networks to train a GHN on, in the spirit of DeepNets-1M (arXiv 2110.13100, Section 3).

A network is a `Record`, a small JSON object; `sample` draws it, deterministically by (split, seed, index), and `build`
makes the module. The held-out splits are drawn like the training networks ("test") or from outside of what is drawn
there ("deep", "wide", "nonorm").
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...graph import Graph, trace
from ...utils.checks import InputError, number
from .blocks import BLOCKS, Style, Transformer, activation, conv

IMAGE = 32
KINDS = (*BLOCKS, "mixed", "vit")
SPLITS = ("train", "test", "deep", "wide", "nonorm")
WIDTHS = (16, 24, 32, 40, 48, 64, 80, 96, 128)
MAX_MACS = 2e6  # multiplications per image of a training network: a CPU core shall do
MACS = number("at least 3e5, as hardly a network takes less", lambda value: value >= 3e5)  # or none would ever be drawn


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
        stages = list(_stages(record))
        self.stem = _stem(record)
        self.stages = nn.Sequential(*(_stage(record, stage) for stage in stages))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(stages[-1].c_out, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(self.stem(x))))


_POOLS: dict[str, Callable[[], nn.Module]] = {"max": lambda: nn.MaxPool2d(2), "avg": lambda: nn.AvgPool2d(2)}


class _Stage(NamedTuple):
    """Blocks of one kind; `side` is that of their output, which is half of their input's where they `halve`."""

    block: str
    c_in: int
    c_out: int
    depth: int
    halve: bool
    side: int


def _stages(record: Record) -> Iterator[_Stage]:
    channels, side = record.widths[0], _stem_side(record)
    for i, (block, width, depth) in enumerate(zip(record.blocks, record.widths, record.depths, strict=True)):
        halve = block != "transformer" and i > 0 and side >= 4
        side //= 1 + halve
        yield _Stage(block, channels, width, depth, halve, side)
        channels = width


def _stem_side(record: Record) -> int:
    return IMAGE // record.stem[1] // (1 + record.stem_pool)


def _stem(record: Record) -> nn.Sequential:
    style, channels, (kernel, stride) = record.style, record.widths[0], record.stem
    layers: list[nn.Module] = [*conv(style, 3, channels, kernel, stride), activation(style)]
    if kernel == stride:
        layers[0] = nn.Conv2d(3, channels, kernel, stride)  # patches do not overlap
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if record.stem_pool else []))


def _stage(record: Record, stage: _Stage) -> nn.Module:
    block, c_in, c_out, depth, halve, side = stage
    if block == "transformer":
        reduce = conv(record.style, c_in, c_out, 1) if c_in != c_out else nn.Identity()
        return nn.Sequential(reduce, Transformer(record.style, c_out, side, depth))
    make, pooled = BLOCKS[block], halve and record.down != "stride"
    strides = [2 if halve and not pooled else 1] + [1] * (depth - 1)
    blocks = [make(record.style, c_in if i == 0 else c_out, c_out, stride) for i, stride in enumerate(strides)]
    return nn.Sequential(*([_POOLS[record.down]()] if pooled else []), *blocks)


def build(record: Record, num_classes: int) -> Network:
    """The network of a record on the meta device: it has no memory, its parameters are to be predicted."""
    with torch.device("meta"):
        return Network(record, num_classes)


def within(record: Record, limit: float) -> bool:
    """Whether a forward pass takes at most about so many multiplications for one image.

    Each parameter is used at every pixel of what its stage puts out. No more is built than it takes to tell.
    """
    with torch.device("meta"):
        total = _stem_side(record) ** 2 * _count(_stem(record))
        for stage in _stages(record):
            if total > limit:
                break
            total += stage.side**2 * _parameters(record, stage)
    return total <= limit


def _parameters(record: Record, stage: _Stage) -> int:
    """How many a stage has. All blocks but the first are alike, so one of them is enough."""
    if stage.depth == 1 or stage.block == "transformer":
        return _count(_stage(record, stage))
    first, other = stage._replace(depth=1), stage._replace(c_in=stage.c_out, depth=1, halve=False)
    return _count(_stage(record, first)) + (stage.depth - 1) * _count(_stage(record, other))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@lru_cache(maxsize=8192)
def network(split: str, seed: int, index: int, num_classes: int, max_macs: float = MAX_MACS) -> tuple[Network, Graph]:
    """A sampled network and its graph; those that were asked for lately are kept."""
    built = build(sample(split, seed, index, max_macs), num_classes)
    return built, trace(built, IMAGE)


def sample(split: str, seed: int, index: int, max_macs: float = MAX_MACS) -> Record:
    """Draw a network; the kinds take turns.

    Args:
        split: a name in `SPLITS`.
        seed, index: which network of the split.
        max_macs: of the networks for training; those held out as unusual ("deep", "wide") may have eight times that.

    Raises:
        ValueError: there is no such split, or no network is so small.
    """
    MACS.check("max_macs", max_macs)
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r}; there are {', '.join(SPLITS)}.")
    rng = random.Random(f"{split} {seed} {index}")  # seeded by the string's SHA-512, the same everywhere
    limit = max_macs * (8 if split in ("deep", "wide") else 1)
    kind = KINDS[index % len(KINDS)]
    if split == "train" and kind == "vit" and index // len(KINDS) % 2:
        kind = "convnext"  # which are harder to learn than the others
    while True:
        record = _draw(rng, kind, split)
        if within(record, limit):
            return record


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
    record = Record(
        kind=kind,
        blocks=tuple(names),
        widths=tuple(widths),
        depths=tuple(rng.randint(*deep) for _ in range(stages)),
        stem=stem,
        stem_pool=not patches and rng.random() < 0.3,
        down=rng.choice(("stride", "stride", "max", "avg")),
        style=_style(rng, kind, norm),
    )
    return _like_timms(rng, record) if split == "train" and norm != "none" else record


def _like_timms(rng: random.Random, record: Record) -> Record:
    """Some of the networks for training, brought nearer to what people use: deep in their third stage, with ResNet's
    stem, with a layer scale that hides the blocks. Drawn last, so that held-out networks stay what they are."""
    stages, style = len(record.depths), record.style
    if stages >= 3 and rng.random() < 0.4:
        depths = (*record.depths[:2], rng.randint(3, 6), *record.depths[3:])
        record = replace(record, depths=depths)
    if record.kind in ("basic", "bottleneck", "inverted", "dense") and rng.random() < 0.25:
        record = replace(record, stem=(7, 2), stem_pool=True)
    if record.kind == "convnext" and rng.random() < 0.5:
        record = replace(record, style=replace(style, scale=1e-6))
    return record


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

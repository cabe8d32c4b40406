"""Batches of images and classes: small images from memory, or pictures of a folder through timm's loader.

Batches are normalised images (N, 3, H, W) and classes (N,), shuffled and augmented for training. In training their
sizes differ by at most one image, because batch norm needs more than a few. Random numbers come from the global
generators.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..images.batches import shifted
from ..images.folder import Files, read_image

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InMemory:
    """Small images as one tensor. In training they are shifted over a black border, and mirrored if `flip` is set."""

    images: Tensor  # (N, 3, H, W), uint8
    classes: Tensor  # (N,), int64
    size: int  # height and width to train with; images of other sizes are resized after augmentation
    mean: Tensor  # (3, 1, 1), of values from 0 to 1
    std: Tensor
    padding: int  # largest shift, pixels
    flip: bool

    def __len__(self) -> int:
        return len(self.classes)

    def batches(self, batch_size: int, training: bool) -> Batches:
        order = torch.randperm(len(self)) if training else torch.arange(len(self))
        for chosen in order.tensor_split(max(1, math.ceil(len(self) / batch_size))):
            chosen = chosen.to(self.images.device)
            x = self.images[chosen]
            x = self._augment(x) if training else x
            x = (x.float() / 255 - self.mean) / self.std
            if x.shape[-1] != self.size:
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            yield x, self.classes[chosen]

    def _augment(self, x: Tensor) -> Tensor:
        x = shifted(x, torch.randint(2 * self.padding + 1, (2, len(x))).T, self.padding)
        if self.flip:
            mirrored = torch.rand(len(x)).to(x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


@dataclass
class Folder(Dataset[Any]):
    """Pictures of a folder, read again for each batch."""

    files: Files
    size: int  # height and width, pixels
    device: torch.device  # of the batches
    workers: int  # processes that read
    mean: Sequence[float]  # per channel, of values from 0 to 1
    std: Sequence[float]
    transform: Callable[[Any], Any] | None = None  # set by timm's loader

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.files.paths[index])
        return self.transform(image) if self.transform else image, self.files.labels[index]

    def batches(self, batch_size: int, training: bool) -> Batches:
        from timm.data import create_loader

        if training:  # timm's loader drops an incomplete last batch: choose the size that drops the fewest images
            batch_size = len(self) // math.ceil(len(self) / batch_size)
        loader = create_loader(
            self,  # type: ignore[arg-type]  # it needs no more of a dataset than a transform
            (3, self.size, self.size),
            batch_size,
            is_training=training,
            color_jitter=0.0,
            mean=tuple(self.mean),
            std=tuple(self.std),
            num_workers=self.workers,
            use_prefetcher=False,
            persistent_workers=False,  # they would not be seeded in each epoch
            pin_memory=self.device.type == "cuda",
        )
        for x, y in loader:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


Split = InMemory | Folder

"""Small images as one tensor."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class InMemory:
    """Training images are shifted (over a black border) and, if so wished, mirrored.

    Attributes:
        images: (N, 3, H, W), uint8.
        classes: (N,), int64.
        size: height and width to train with; smaller or larger images are resized after augmentation.
        mean, std: of the values, scaled to 0 to 1, per channel.
        padding: largest shift, pixels.
        flip: mirror every other image.
    """

    images: Tensor
    classes: Tensor
    size: int
    mean: Tensor
    std: Tensor
    padding: int
    flip: bool

    def __len__(self) -> int:
        return len(self.classes)

    def batches(self, batch_size: int, training: bool) -> Iterator[tuple[Tensor, Tensor]]:
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
        """Crop each image at a place of its own from a padded one, as many as there are, in one operation."""
        n, _, height, width = x.shape
        shift = torch.randint(2 * self.padding + 1, (2, n)).to(x.device)
        windows = F.pad(x, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(n, device=x.device), :, shift[0], shift[1]]
        if self.flip:
            mirrored = torch.rand(n).to(x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x

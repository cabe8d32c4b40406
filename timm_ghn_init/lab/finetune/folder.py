"""Images of a folder, read anew each time, through timm's transforms and loaders."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..images.folder import Files, read_image


class _Images(Dataset[Any]):
    """Pictures and their classes. Timm's loader sets the transform."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.files.paths[index])
        return self.transform(image) if self.transform else image, self.files.labels[index]


class Folder:
    """Some images of a folder.

    Args:
        files: the images to use.
        size: height and width in pixels.
        device: where batches go.
        workers: processes that read.
        mean, std: of the values, scaled to 0 to 1, per channel.
    """

    def __init__(
        self,
        files: Files,
        size: int,
        device: torch.device,
        workers: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._dataset, self._size, self._device, self._workers = _Images(files), size, device, workers
        self._mean, self._std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, batch_size: int, training: bool) -> Iterator[tuple[Tensor, Tensor]]:
        from timm.data import create_loader

        if training:  # timm's loader leaves out what does not fill a batch: make that the fewest images
            batch_size = len(self) // math.ceil(len(self) / batch_size)
        loader = create_loader(
            self._dataset,  # type: ignore[arg-type]  # that it has a transform is enough
            (3, self._size, self._size),
            batch_size,
            is_training=training,
            color_jitter=0.0,
            mean=self._mean,
            std=self._std,
            num_workers=self._workers,
            use_prefetcher=False,
            persistent_workers=False,  # they would not be seeded anew in each epoch, which a resumed run depends on
            pin_memory=self._device.type == "cuda",
        )
        for x, y in loader:
            yield x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)

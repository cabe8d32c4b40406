"""Any folder of images, a folder for each class, through timm's data sets, transforms and loaders."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..images.datasets import DatasetError, held_out_part
from .data import Batches, Data, few, others, split_off
from .protocol import Trial

_TEST_SHARE = 5  # a folder without a test part gives up every fifth image
_VALIDATION_SHARE = 10


class Folder:
    """Some images of a folder, read anew each time.

    Args:
        dataset: of timm, with the images to use.
        size: height and width in pixels.
        device: where batches go.
        workers: processes that read.
        mean, std: of the values, scaled to 0 to 1, per channel.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        device: torch.device,
        workers: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._dataset, self._size, self._device, self._workers = dataset, size, device, workers
        self._mean, self._std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, batch_size: int, training: bool) -> Batches:
        from timm.data import create_loader

        if training:  # timm's loader leaves out what does not fill a batch: make that the fewest images
            batch_size = len(self) // math.ceil(len(self) / batch_size)
        loader = create_loader(
            self._dataset,
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


def load_folder(trial: Trial, device: torch.device, workers: int, mean: Sequence[float], std: Sequence[float]) -> Data:
    """A folder with parts "train" and "test" (or "validation", as timm's scripts name it), or with classes alone.

    Training and validation images come from the training part. A folder without parts gives up a fifth for testing.

    Raises:
        DatasetError: there is no such folder, or it holds no images.
        ValueError: it holds fewer images than are asked for.
    """
    root = Path(trial.data)
    if not root.is_dir():
        raise DatasetError(f"{trial.data!r} is neither digits nor cifar10 nor a folder of images.")
    test_part = held_out_part(root)
    pool = _read(root if test_part is None else root / "train")
    samples, names = pool.reader.samples, list(pool.reader.class_to_idx)
    classes = torch.tensor([c for _, c in samples])
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(trial.data_seed))
    if test_part is not None:
        test = _read(test_part)
        if list(test.reader.class_to_idx) != names:
            raise DatasetError(f"{trial.data}: train and {test_part.name} have different classes.")
    else:
        held = few(classes[order], len(order) // _TEST_SHARE)
        test = _part(pool, order[held])
        order = order[others(len(order), held)]
    validation = len(order) // _VALIDATION_SHARE if trial.validation is None else trial.validation
    chosen = split_off(classes, order, trial.labels, validation, False, trial.data)
    sets = (_part(pool, chosen.train), _part(pool, chosen.validation), test)
    return Data(len(names), *(Folder(s, trial.image_size, device, workers, mean, std) for s in sets))


def _read(folder: Path) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset("", str(folder), search_split=False)
    except (RuntimeError, OSError) as error:
        raise DatasetError(f"{folder} holds no folders of images, one for each class ({error}).") from error


def _part(dataset: Any, chosen: Tensor) -> Any:
    """A timm data set with some of the images of another."""
    part = copy.copy(dataset)
    part.reader = copy.copy(dataset.reader)
    part.reader.samples = [dataset.reader.samples[i] for i in chosen.tolist()]
    return part

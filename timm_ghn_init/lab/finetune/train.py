"""One trial from its initialisation to its test accuracy."""

import hashlib
import math
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...utils.checks import check_architecture
from ...utils.progress import Progress
from .build import build
from .data import Data, load
from .loaders import Split
from .protocol import OPTIMIZERS, Trial, check_unchanged, settled

_EVAL_BATCH = 256
Curves = dict[str, list[float | None]]


def run(
    trial: Trial,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    workers: int = 2,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Initialise, fine-tune and test a network.

    All layers are trained. Random numbers depend only on the trial: equal trials give equal bits on one machine (on
    CUDA, as far as its kernels are deterministic). The global random state is left as it was.

    Args:
        trial: what to train, and how.
        data_dir: folder of named data sets (CIFAR-10, Fashion-MNIST, letters); downloads go there. Default: `data`.
        device: where to train. Default: CUDA if available, else CPU.
        workers: processes that read images of a folder.
        progress: True: tqdm; False: nothing. Default: after two seconds tqdm in a terminal, elsewhere a log line each
            minute.

    Returns:
        For JSON: "key", "trial", "stem", "images" (number by part), "classes", "curves" by epoch (train_loss,
        train_accuracy, validation_loss, validation_accuracy, lr, seconds), "validation_accuracy" and "test_accuracy"
        after the last epoch, 0 to 1, "diverged" (the loss was not finite, which ends the training), "seconds" by stage,
        "report" of the initialisation, "versions", "machine", "command", "finished" ...

    Raises:
        ValueError: a value of the trial that does not exist or does not fit the model, fewer images than asked for, or
            files that differ from those that `trial.ghn` and `trial.folder` name.
        DatasetError: the data are not available, or an image cannot be read.
        CheckpointError: the GHN is not available.
        TraceError: the model cannot be traced.

    Example:
        >>> from timm_ghn_init.lab.finetune import Trial, run
        >>> result = run(Trial("resnet18", "orth", labels=100, epochs=30))  # doctest: +SKIP
        >>> result["test_accuracy"]  # doctest: +SKIP
        0.857
    """
    trial = settled(trial, data_dir)
    check_unchanged(trial, data_dir)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    start = time.perf_counter()
    with _own_randomness(place):
        _seed(trial, "model")
        data = load(trial, data_dir, place, workers, *_statistics(trial.arch))
        model, facts = build(trial, data.classes, place)
        model = model.to(place).to(memory_format=torch.channels_last)  # faster by a quarter, on the CPU too
        session = _Session(trial, model, data)
        ready = time.perf_counter()
        session.train(progress)
        trained = time.perf_counter()
        scores = session.scores()
    seconds = {"init": ready - start, "train": sum(s or 0 for s in session.curves["seconds"])}
    seconds["test"] = time.perf_counter() - trained
    return {
        "kind": "run",
        "key": trial.key,
        "trial": asdict(trial),
        **facts,
        "images": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
        "classes": data.classes,
        "curves": dict(session.curves),
        **scores,
        "seconds": seconds,
        **_provenance(place),
    }


class _Session:
    """A model in training: what changes from epoch to epoch."""

    def __init__(self, trial: Trial, model: nn.Module, data: Data) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        self.trial, self.model, self.data = trial, model, data
        self.device = next(model.parameters()).device
        self.updates = max(1, math.ceil(len(data.train) / trial.batch_size))  # per epoch
        self.optimizer = create_optimizer_v2(
            model,
            opt=OPTIMIZERS[trial.opt],
            lr=trial.lr,
            weight_decay=trial.weight_decay,
            momentum=trial.momentum,
            filter_bias_and_bn=False,
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            "cosine",
            num_epochs=trial.epochs,
            min_lr=0.0,
            step_on_epochs=not trial.sched_on_updates,
            updates_per_epoch=self.updates,
        )
        self.ema = ModelEmaV3(model, decay=trial.ema_decay) if trial.ema_decay else None
        self.curves: Curves = defaultdict(list)

    @property
    def diverged(self) -> bool:
        return bool(self.curves["train_loss"]) and self.curves["train_loss"][-1] is None

    def train(self, progress: bool | None) -> None:
        name = f"{self.trial.arch}, {self.trial.init}, seed {self.trial.seed}"
        with Progress(name, self.trial.epochs * self.updates, show=progress, unit="update") as shown:
            for epoch in range(self.trial.epochs):
                self._epoch(epoch, shown)
                if self.diverged:
                    break

    def scores(self) -> dict[str, Any]:
        """After the last epoch."""
        test_loss, test_accuracy = self._evaluate(self.data.test)
        last = {n: c[-1] for n, c in self.curves.items() if n.startswith("validation")}
        return {**last, "test_loss": test_loss, "test_accuracy": test_accuracy, "diverged": self.diverged}

    def _epoch(self, epoch: int, shown: Progress) -> None:
        start, t = time.perf_counter(), self.trial
        _seed(t, epoch)
        self.scheduler.step(epoch)
        loss_sum, correct, seen = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0

        def figures() -> dict[str, float | str]:
            means = {"loss": float(loss_sum) / seen, "accuracy": float(correct) / seen}
            return {"epoch": f"{epoch + 1}/{t.epochs}", **means}

        self.model.train()
        for update, (x, y) in enumerate(self.data.train.batches(t.batch_size, training=True), epoch * self.updates):
            self.scheduler.step_update(update)
            logits, loss = self._update(x, y)
            loss_sum += loss.detach() * len(y)
            correct += (logits.detach().argmax(1) == y).sum()
            seen += len(y)
            shown.step(1, figures)
            if self.ema is not None:
                self.ema.update(self.model, step=update)
        n = len(self.data.train)
        found = {"lr": self.optimizer.param_groups[0]["lr"]}
        found |= {"train_loss": _finite(float(loss_sum) / n), "train_accuracy": float(correct) / n}
        if len(self.data.validation):
            found["validation_loss"], found["validation_accuracy"] = self._evaluate(self.data.validation)
        for name, value in {**found, "seconds": time.perf_counter() - start}.items():
            self.curves[name].append(value)

    def _update(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            logits = self.model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y, label_smoothing=self.trial.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if self.trial.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trial.clip_grad)
        self.optimizer.step()
        return logits, loss

    @torch.inference_mode()
    def _evaluate(self, split: Split) -> tuple[float | None, float]:
        """Loss, None if it is not finite, and accuracy."""
        model = (self.model if self.ema is None else self.ema.module).eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, y in split.batches(_EVAL_BATCH, training=False):
            with self._precision():
                logits = model(x.contiguous(memory_format=torch.channels_last)).float()
            total += torch.stack((F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()))
        loss, correct = total.tolist()  # a GPU is waited for once
        return _finite(loss / len(split)), correct / len(split)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.trial.amp)


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


def _statistics(arch: str) -> tuple[Any, Any]:
    """Mean and standard deviation that an architecture of timm expects its input to have."""
    import timm
    from timm.models import PretrainedCfg

    check_architecture(arch)
    config = timm.get_pretrained_cfg(arch) or PretrainedCfg()
    return config.mean, config.std


def _seed(trial: Trial, what: str | int) -> None:
    from timm.utils import random_seed

    digest = hashlib.sha256(f"{trial.seed} {what}".encode()).digest()
    random_seed(int.from_bytes(digest[:4], "big"))


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leaves the global generators as they were."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _provenance(device: torch.device) -> dict[str, Any]:
    """All else that a repetition of a run needs."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("timm-ghn-init", "timm", "torch", "torchvision", "scikit-learn"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    program = Path(sys.argv[0])
    ours = program.parts[-2:] == ("timm_ghn_init", "__main__.py")  # python -m timm_ghn_init
    cuda = device.type == "cuda"
    return {
        "command": ["timm-ghn-init" if ours else program.name, *sys.argv[1:]],
        "versions": versions,
        "machine": {
            "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "rank": int(os.environ.get("RANK", "0")),
        },
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }

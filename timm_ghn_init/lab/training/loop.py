"""Train a GHN: predict the parameters of sampled networks, run them on images, follow the gradient back.

Section 3 of "Parameter Prediction for Unseen Deep Architectures" (arXiv 2110.13100), on networks of `networks.py`.

Everything random is a function of (seed, step, network), so a resumed run ends where an uninterrupted one does.
"""

import csv
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...checkpoints.load import load_ghn, save_ghn
from ...ghn import GHN
from ...utils.checks import CLASSES, NOT_NEGATIVE, PART, POSITIVE, SEED, WIDTH, Kind, check_all, whole
from ...utils.files import replace_by_torch, replacing
from ...utils.progress import Progress
from ...utils.text import Told
from ...version import __version__
from ..images.batches import Images, open_images
from ..images.formula import FormulaImages
from .networks import MACS, MAX_MACS, Network, network

CHECKPOINT, LOG, RESULT = "checkpoint.pt", "log.csv", "ghn.safetensors"
COLUMNS = ("step", "seconds", "lr", "loss", "accuracy", "grad_norm", "skipped_steps")
_LOGGED = 50  # steps between two lines of the log


class TrainingError(Told, RuntimeError):
    """A training run cannot start or continue; the message names the cause and the fix."""


@dataclass(frozen=True)
class TrainConfig:
    """All that a training run depends on.

    Attributes:
        data: "formula", "fashion-mnist", "digits", "cifar10", "letters" or a folder, see `open_images`.
        num_classes: of the formulas.
        steps: of the optimiser; the learning rate follows a cosine to their end.
        networks: sampled networks in a step, in each process.
        batch_size: images for each network.
        pool: how many different networks there are, shared out among the processes. Each takes half a megabyte. A GHN
            overfits to few: with 1000 seen 70 times each it was better on these than on others by 0.14.
        max_macs: most multiplications per image of a network, see `networks.sample`.
        lr, weight_decay: of AdamW; the learning rate rises over the first `warmup` steps.
        clip: largest norm of the gradient. So small that unlucky networks do not outweigh the others.
        label_smoothing: of the cross-entropy.
        seed: of networks, images and the GHN's first weights.
        start: a GHN to begin from instead, as `load_ghn` takes it, with these classes and this `ghn`.
        ghn: keyword arguments of `GHN`, without `num_classes`.

    Raises:
        ValueError: a value that no run can have.
    """

    data: str = "fashion-mnist"
    num_classes: int = 100
    steps: int = 10_000
    networks: int = 8
    batch_size: int = 32
    pool: int = 4000
    max_macs: float = MAX_MACS
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    clip: float = 0.3
    label_smoothing: float = 0.1
    seed: int = 0
    start: str | None = None
    ghn: dict[str, Any] = field(
        default_factory=lambda: {
            "max_shape": (64, 64, 11, 11),
            "weight_norm": True,
            "ve": True,
            "layernorm": True,
            "hid": 32,
        }
    )

    def __post_init__(self) -> None:
        check_all(_KINDS, vars(self))
        WIDTH.check("hid", self.ghn.get("hid", 32))


_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("steps", "networks", "pool", "warmup"), whole(1)),
    "num_classes": CLASSES,
    "batch_size": whole(2),
    **dict.fromkeys(("lr", "clip"), POSITIVE),
    "max_macs": MACS,
    "weight_decay": NOT_NEGATIVE,
    "label_smoothing": PART,
    "seed": SEED,
}


@dataclass
class State:
    """The progress of a run: counts that are not in the optimiser."""

    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0


class Trainer:
    """A training run in a folder, which holds `checkpoint.pt`, `log.csv` and the GHN from the first checkpoint on.

    Args:
        config: see `TrainConfig`.
        folder: created if it is missing.
        resume: continue from the checkpoint in the folder, if there is one.
        device: default: CUDA if there is one, else the CPU.
        data_dir: of CIFAR-10 and Fashion-MNIST.
        workers: processes that prepare images.

    Raises:
        TrainingError: the folder holds a run and `resume` is not set, or one with another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        *,
        resume: bool = False,
        device: str | torch.device | None = None,
        data_dir: str | Path | None = None,
        workers: int = 0,
    ) -> None:
        self.config, self.folder, self.workers = config, Path(folder), workers
        self.rank, self.world = _ranks()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.images = open_images(config.data, data_dir, config.num_classes)
        with torch.random.fork_rng(devices=()):  # the program's own random numbers are as without a trainer
            torch.default_generator.manual_seed(config.seed)
            self.ghn = GHN(num_classes=self.images.num_classes, **config.ghn).to(self.device).train()
        fused = self.device.type in ("cpu", "cuda")  # one kernel for all parameters
        self.optimizer = torch.optim.AdamW(
            self.ghn.parameters(), config.lr, weight_decay=config.weight_decay, fused=fused
        )
        self.state = State()
        self.log: list[dict[str, float]] = []  # a row for every 50 steps
        if (self.folder / CHECKPOINT).exists():
            if not resume:
                raise TrainingError(
                    f"{self.folder} holds a run already: continue it with --resume, or name another folder."
                )
            self._load()
        elif config.start is not None:
            self._begin_from(config.start)
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, time_budget: float | None = None, save_every: float = 300.0, progress: bool | None = None) -> None:
        """Train to the last step, or for a time.

        Args:
            time_budget: seconds, those of the run so far included. The learning rate then falls to the end of the
                budget, where that comes before the last step.
            save_every: seconds between checkpoints. There is one at the end as well.
            progress: True: tqdm; False: nothing. Default: tqdm in a terminal, elsewhere a log line each minute.

        Raises:
            TrainingError: the loss was not finite in 50 consecutive steps.
        """
        begun, before, saved, bad = time.monotonic(), self.state.seconds, time.monotonic(), 0
        steps, show = self.config.steps, False if self.rank else progress
        recent: list[dict[str, float]] = []  # figures of the steps since the last line of the log
        with Progress("Training", steps, show=show, done=self.state.step, delay=0, stays=True) as shown:
            for batch in self._batches():
                lr = self._lr(time_budget)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                figures = self._step(batch)
                bad = bad + 1 if figures is None else 0
                if bad == 50:
                    raise TrainingError("The loss was not finite in 50 consecutive steps. Try a lower --lr.")
                recent += [{**figures, "lr": lr}] if figures else []
                self.state.step += 1
                self.state.seconds = self._agreed(before + time.monotonic() - begun)
                shown.step(1, partial(_means, recent))
                if self.state.step % _LOGGED == 0:
                    self.log.append({**asdict(self.state), **_means(recent), "lr": lr})
                    recent.clear()
                over = time_budget is not None and self.state.seconds >= time_budget
                if over or self.state.step == steps or self._agreed(time.monotonic() - saved) > save_every:
                    self.save()
                    saved = time.monotonic()
                if over:
                    break

    def save(self) -> None:
        """Write the checkpoint, the log, and the GHN as a file that `load_ghn` reads; each completely or not at all."""
        if self.rank:
            return
        replace_by_torch(
            self.folder / CHECKPOINT,
            {
                "config": json.dumps(asdict(self.config)),
                "state": asdict(self.state),
                "ghn": self.ghn.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "world": self.world,
                "log": self.log,
            },
        )
        with replacing(self.folder / LOG) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.log)
        save_ghn(self.ghn, self.folder / RESULT, self.metadata())

    def metadata(self) -> dict[str, str]:
        """How this GHN was trained, for its file. People share it, so it has only the names of folders."""
        config = asdict(self.config) | {"data": self.images.name}
        if self.config.start is not None:
            config["start"] = Path(self.config.start).name
        return {
            "training": json.dumps(config | asdict(self.state) | {"processes": self.world}),
            "data": self.images.name,
            "timm_ghn_init": __version__,
        }

    def _begin_from(self, start: str) -> None:
        other = load_ghn(start)
        if other.config != self.ghn.config:
            raise TrainingError(f"{start} cannot be the start: it is a GHN with {other.config}, not {self.ghn.config}.")
        self.ghn.load_state_dict(other.state_dict())

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            self._check_same(path, json.loads(saved["config"]), saved["world"])
            self.ghn.load_state_dict(saved["ghn"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state, self.log = State(**saved["state"]), saved["log"]
        except (TrainingError, OSError):
            raise
        except Exception as error:  # whatever torch makes of bytes that are not its own
            cause = str(error).partition("\n")[0]
            raise TrainingError(
                f"{path} is damaged, or no checkpoint of train-ghn ({cause}). Move it away to begin anew."
            ) from error

    def _check_same(self, path: Path, theirs: dict[str, Any], world: int) -> None:
        """Raise unless the run of a checkpoint was asked for just as this one is."""
        for name, value in json.loads(json.dumps(asdict(self.config))).items():
            if theirs.get(name) != value:
                raise TrainingError(f"{path} was trained with {name} = {theirs.get(name)}, not {value}: use that.")
        if world != self.world:
            raise TrainingError(f"{path} was trained by {world} processes, not {self.world}.")

    def _batches(self) -> Iterator[Any]:
        """For each remaining step, the networks' indices and the images for each."""
        remaining = range(self.state.step, self.config.steps)
        steps = _Steps(self.config, self.images, self.rank, self.world)
        return iter(DataLoader(steps, batch_size=None, sampler=remaining, num_workers=self.workers))  # type: ignore[arg-type]

    def _lr(self, time_budget: float | None) -> float:
        step, config = self.state.step, self.config
        done = max(step / config.steps, self.state.seconds / time_budget if time_budget else 0.0)
        return config.lr * min(1.0, (step + 1) / config.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))

    def _step(self, batch: list[tuple[int, Tensor, Tensor]]) -> dict[str, float] | None:
        """One step of the optimiser: mean loss, accuracy and norm of the gradient; None where it was skipped."""
        networks = [self._network(index) for index, _, _ in batch]
        losses, right = [], torch.zeros((), device=self.device)
        predictions = self.ghn.predict_many([net.graph for net in networks])
        for net, parameters, (_, images, labels) in zip(networks, predictions, batch, strict=True):
            # channels last: convolutions and norms are faster, on a CPU as well
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = net(parameters, images).float()
            losses.append(F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing))
            right = right + (logits.detach().argmax(1) == labels).float().mean() / len(batch)
        loss = torch.stack(losses)
        self.optimizer.zero_grad(set_to_none=False)
        loss.mean().backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.ghn.parameters(), self.config.clip)
        values = torch.stack((loss.detach().mean(), right, norm)).tolist()  # a GPU is waited for once
        if not math.isfinite(values[2]):  # one network's gradient would spoil the GHN
            self.state.skipped_steps += 1
            return None
        self.optimizer.step()
        return dict(zip(("loss", "accuracy", "grad_norm"), values, strict=True))

    def _network(self, index: int) -> Network:
        config = self.config
        return network("train", config.seed, index, self.images.num_classes, config.max_macs)

    def _average_gradients(self) -> None:
        """Over the processes, which see different networks. Parameters that no network uses have a gradient of 0."""
        for p in self.ghn.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if self.world > 1:
                dist.all_reduce(p.grad)
                p.grad /= self.world

    def _agreed(self, seconds: float) -> float:
        """The first process' clock, so that all stop and save at the same step."""
        if self.world == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        dist.broadcast(clock, 0)
        return clock.item()


class _Steps(Dataset[Any]):
    """step -> [(index of the network, images, labels), ...] for one process."""

    def __init__(self, config: TrainConfig, images: Images | FormulaImages, rank: int, world: int) -> None:
        self.config, self.images, self.rank, self.world = config, images, rank, world

    def __getitem__(self, step: int) -> list[tuple[int, Tensor, Tensor]]:
        config = self.config
        drawn = torch.Generator().manual_seed((config.seed * 1_000_003 + step) % 2**63)
        count = self.world * config.networks
        share = -(-config.pool // count)  # of each place in a step, so that a process has fewer networks to read
        places = torch.arange(count) * share
        indices = ((places + torch.randint(share, (count,), generator=drawn)) % config.pool).tolist()
        first = self.rank * config.networks
        batches = []
        for i in range(first, first + config.networks):
            images, labels = self.images.batch(config.seed, step * len(indices) + i, config.batch_size)
            batches.append((indices[i], images, labels))
        return batches


def _means(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]} if figures else {}


def _ranks() -> tuple[int, int]:
    """Rank and number of processes; under `torchrun` the group is made here."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

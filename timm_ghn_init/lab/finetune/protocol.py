"""One training run: everything that decides its result."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ...checkpoints.load import fetch, resolve_default, sha256
from ...sources import Source, is_source, parse_source
from ...utils.checks import (
    FLAG,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SEED,
    InputError,
    Kind,
    check_all,
    instance,
    one_of,
    or_none,
    whole,
)
from ..images.datasets import NAMED, digest_of_other_files, open_folder

PRETRAINED = "pretrained"
TIMM = "timm"
OPTIMIZERS = {"sgd": "momentum", "adamw": "adamw"}  # timm's names; its "sgd" has Nesterov momentum, the paper's has not


@dataclass(frozen=True)
class Trial:
    """One training run of the protocol of arXiv 2207.10049, Section 4, with its values as defaults.

    Attributes:
        arch: a timm architecture, with a tag to say which weights `init="pretrained"` means.
        init: a source ("rand", "orth?layer=37", "ghn2-orth"), "pretrained" for timm's weights or "timm" for timm's own
            initialisation. A source that names no seed gets that of the trial.
        seed: of the model's own initialisation, the source, the order of the images and their augmentation.
        data: "digits", "cifar10", "fashion-mnist", "letters" or a folder of images.
        labels: number of training images, balanced over the classes; 0 for all.
        validation: number of images held out from the training images to choose hyper-parameters by. None: 200 of
            digits, 500 of letters, 5000 of CIFAR-10 and Fashion-MNIST, a tenth of a folder.
        data_seed: seed of the choice of images; the same for all runs to be compared.
        image_size: height and width in pixels. Stems are adapted up to 32, see `stem`.
        keep_stem: leave the stem as it is.
        opt: "sgd" (momentum, no Nesterov) or "adamw".
        epochs: passes over the training images.
        lr: initial learning rate, above 0; follows a cosine to 0.
        weight_decay: of all parameters, as in the authors' code.
        batch_size: images per update at most; the batches of an epoch have equal sizes.
        momentum: of "sgd", 0 to 1.
        sched_on_updates: step the cosine after each update instead of each epoch, for runs of few epochs.
        clip_grad: largest gradient norm, 5 in the authors' code; 0 for no limit.
        smoothing: label smoothing, 0 to 1.
        drop_path: rate of stochastic depth, 0 to 1.
        ema_decay: decay of the moving average of the weights that is evaluated, 0 to 1; 0 for none.
        amp: train in bfloat16 autocast.
        ghn: sha256 of the GHN's file, filled in by `settled`.
        folder: sha256 of the images of a folder, names and contents, or of a named data set whose files are not the
            usual ones, filled in by `settled`.
        stage: the purpose of the run, "final" or "search"; not part of its key.

    Raises:
        ValueError: a value of the wrong type or out of range; the message names the field.

    Example:
        >>> Trial("resnet18", "orth", labels=100, epochs=30, lr=0.03)  # doctest: +ELLIPSIS
        Trial(arch='resnet18', init='orth', ...
    """

    arch: str
    init: str = "ghn-orth"
    seed: int = 0
    data: str = "digits"
    labels: int = 1000
    validation: int | None = None
    data_seed: int = 0
    image_size: int = 32
    keep_stem: bool = False
    opt: Literal["sgd", "adamw"] = "sgd"
    epochs: int = 50
    lr: float = 0.01
    weight_decay: float = 1e-4
    batch_size: int = 96
    momentum: float = 0.9
    sched_on_updates: bool = False
    clip_grad: float = 5.0
    smoothing: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    amp: bool = False
    ghn: str = ""
    folder: str = ""
    stage: Literal["final", "search"] = "final"

    def __post_init__(self) -> None:
        check_all(_KINDS, vars(self))
        for field in fields(self):
            if field.type in (int, float):  # one spelling, one key
                object.__setattr__(self, field.name, field.type(getattr(self, field.name)))

    @property
    def key(self) -> str:
        """Identifies the run: equal keys, equal results. Fields with default values do not count."""
        identity = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        identity.pop("stage", None)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image_size", "epochs", "batch_size"), whole(1)),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("weight_decay", "clip_grad"), NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "smoothing", "drop_path", "ema_decay"), PART),
    **dict.fromkeys(("keep_stem", "sched_on_updates", "amp"), FLAG),
    **dict.fromkeys(("arch", "init", "data", "ghn", "folder"), instance("text", str)),
    "labels": whole(0),
    "validation": or_none(whole(0)),
    "lr": POSITIVE,
    "opt": one_of(*OPTIMIZERS),
    "stage": one_of("final", "search"),
}


def settled(trial: Trial, data_dir: str | Path | None = None) -> Trial:
    """The trial with everything filled in that its key depends on.

    "ghn" is resolved, the source has its shortest spelling, `ghn` and `folder` are digests of the files as they are
    now, unless they are given.

    Args:
        trial: what to run.
        data_dir: folder of named data sets. Default: `data`.

    Raises:
        ValueError: `init` is neither a source nor "pretrained" nor "timm".
        CheckpointError: the GHN is not available.
        DatasetError: `data` is neither a data set nor a folder of images, or a file of it is damaged.
    """
    return replace(
        trial,
        init=str(_source(trial.init)),
        ghn=trial.ghn or _ghn_digest(trial.init),
        folder=trial.folder or _data_digest(trial.data, data_dir),
    )


def check_unchanged(trial: Trial, data_dir: str | Path | None = None) -> None:
    """Raise an InputError if the files of a settled trial are not those that its digests name."""
    for name, now, what in (
        ("ghn", _ghn_digest(trial.init), trial.init),
        ("folder", _data_digest(trial.data, data_dir), trial.data),
    ):
        if getattr(trial, name) != now:
            raise InputError(
                f"{what} has changed: the trial's {name} is {getattr(trial, name)[:12]}, its sha256 is now {now[:12]}. "
                f"Leave {name} out to run the trial with what is there now."
            )


def read_init(init: str) -> Source | str:
    """The source that an initialisation is, or "pretrained" or "timm". Raises a ValueError if it is neither."""
    if init in (PRETRAINED, TIMM):
        return init
    if not is_source(init):
        raise InputError(f"Unknown initialisation {init!r}: give a source (see list), {PRETRAINED} or {TIMM}.")
    return parse_source(init)


def _source(init: str) -> Source | str:
    """As `read_init`, with the default GHN resolved."""
    source = read_init(init)
    return source if isinstance(source, str) else resolve_default(source)


def _ghn_digest(init: str) -> str:
    source = _source(init)
    if isinstance(source, str):
        return ""
    rows = [(part, part.initialisation) for part in source.parts]
    return "+".join(row.digest if row else _file_digest(fetch(part)) for part, row in rows)


def _data_digest(data: str, data_dir: str | Path | None) -> str:
    if data in NAMED:
        return digest_of_other_files(data, data_dir)
    digest = hashlib.sha256()
    for path in (path for part in open_folder(data) for path in part.paths):
        line = f"{path.relative_to(data).as_posix()} {_file_digest(path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    """The sha256 of a file, in hex; computed again only if the file has changed."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    return sha256(path)

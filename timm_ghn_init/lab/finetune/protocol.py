"""One training run: everything that decides its result."""

import hashlib
import json
import os
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from ...checkpoints.load import fetch, resolve_default, sha256
from ...sources import is_source, parse_source
from ...utils.checks import (
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SEED,
    InputError,
    Kind,
    check_all,
    one_of,
    or_none,
    shown,
    whole,
)

PRETRAINED = "pretrained"
TIMM = "timm"
OPTIMIZERS = {"sgd": "momentum", "adamw": "adamw"}  # timm's names; its "sgd" has Nesterov momentum, the paper's has not


@dataclass(frozen=True)
class Trial:
    """One training run of the paper's protocol. The defaults are the protocol's where it has one value only.

    Attributes:
        arch: a timm architecture, with a tag to say which weights `init="pretrained"` means.
        init: a source ("rand", "orth?layer=37", "ghn2-orth"), "pretrained" for timm's weights or "timm" for timm's own
            initialisation. A source that names no seed gets that of the trial.
        seed: of the model's own initialisation, the source, the order of the images and their augmentation.
        data: "digits", "cifar10", "fashion-mnist", "letters" or a folder of images.
        labels: training images, as many of each class; 0 for all there are.
        validation: images held out from the training images, for choosing hyper-parameters. None: 200 of digits, 500
            of letters, 5000 of CIFAR-10 and Fashion-MNIST, a tenth of a folder.
        data_seed: of the choice of images; the same for all runs to be compared.
        image_size: height and width in pixels. Stems are adapted up to 32, see `stem`.
        keep_stem: leave the stem as it is.
        opt: "sgd" (momentum, no Nesterov) or "adamw".
        epochs: passes over the training images.
        lr: initial learning rate; a cosine takes it to 0.
        weight_decay: of all parameters, as in the authors' code.
        batch_size: at the most; an epoch has batches of equal size.
        momentum: of "sgd".
        sched_on_updates: step the cosine with each update instead of each epoch, which matters where epochs are few.
        clip_grad: largest norm of the gradient, 5 in the authors' code; 0 for any.
        smoothing: of the labels.
        drop_path: stochastic depth.
        ema_decay: evaluate a moving average of the weights with this decay; 0 for none.
        amp: bfloat16 autocast.
        ghn: sha256 of the GHN's file, filled in by `settled`.
        stage: what the run is for, "final" or "search"; no part of its identity.
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
    stage: Literal["final", "search"] = "final"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))  # one spelling, one key
            elif field.type in _TYPES and type(value) is not field.type:
                raise InputError(f"{field.name} must be {_TYPES[field.type]}, not {shown(value)}.")
        check_all(_KINDS, vars(self))

    @property
    def key(self) -> str:
        """Identifies the run: two trials with one key have one result. What is not mentioned has its default value."""
        identity = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        identity.pop("stage", None)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image_size", "epochs", "batch_size"), whole(1)),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("weight_decay", "clip_grad"), NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "smoothing", "drop_path", "ema_decay"), PART),
    "labels": whole(0),
    "validation": or_none(whole(0)),
    "lr": POSITIVE,
    "opt": one_of(*OPTIMIZERS),
    "stage": one_of("final", "search"),
}


def settled(trial: Trial) -> Trial:
    """The trial with its initialisation spelled out: "ghn" resolved, the shortest spelling, the GHN's digest.

    Raises:
        ValueError: `init` is neither a source nor "pretrained" nor "timm".
        CheckpointError: the GHN cannot be had.
    """
    if trial.ghn:
        return trial
    init, digest = _resolve(trial.init, os.environ.get("TIMM_GHN_DEFAULT", ""))
    return replace(trial, init=init, ghn=digest)


@lru_cache(maxsize=64)
def _resolve(init: str, default: str) -> tuple[str, str]:
    if init in (PRETRAINED, TIMM):
        return init, ""
    if not is_source(init):
        raise InputError(f"Unknown initialisation {init!r}: give a source (see list), {PRETRAINED} or {TIMM}.")
    source = resolve_default(parse_source(init))
    return str(source), "" if source.baseline else sha256(fetch(source))

"""A network with any of the initialisations that are to be compared."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..finetune.protocol import PRETRAINED, TIMM
from ..initialize import init_model
from ..sources import is_source, parse_source

Create = Callable[[bool], nn.Module]


class Initialised(NamedTuple):
    """A network with one of the initialisations.

    Attributes:
        init: what was really used ("ghn" resolved).
        model: the network.
        layer: the first layer that was post-processed, from 1; None where none was.
    """

    init: str
    model: nn.Module
    layer: int | None = None


def check_inits(inits: list[str]) -> None:
    """Whether all of them exist, before any is computed.

    Raises:
        ValueError: one is neither a source nor "pretrained" nor "timm".
    """
    for init in inits:
        if is_source(init):
            parse_source(init)
        elif init not in (PRETRAINED, TIMM):
            raise ValueError(f"Unknown initialisation {init!r}: give a source (see list), {PRETRAINED} or {TIMM}.")


def initialised(
    create: Create, init: str, *, seed: int = 0, input_size: int | None = None, progress: bool | None = None
) -> Initialised:
    """A new network with one initialisation.

    Args:
        create: makes the network, with timm's weights if its argument is true.
        init: a source ("rand", "orth", "ghn2-orth?layer=37" ...), "pretrained" for timm's weights, or "timm" for its
            own initialisation.
        seed: of the network's own initialisation, and of the source unless it names one.
        input_size: as in `trace`.
        progress: as in `init_model`.

    Returns:
        The network. The global random state is kept.

    Raises:
        ValueError: unknown initialisation, or weights that cannot be had; the message says what to do instead.
        CheckpointError: the GHN cannot be had.
    """
    check_inits([init])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _with_weights(create) if init == PRETRAINED else create(False)
    if not is_source(init):
        return Initialised(init, model)
    own = parse_source(init).seed
    report = init_model(model, init, input_size=input_size, seed=seed if own is None else own, progress=progress)
    return Initialised(report.source, model, report.layer)


def _with_weights(create: Create) -> nn.Module:
    try:
        return create(True)
    except (OSError, RuntimeError, ValueError) as error:  # no network, no such weights
        raise ValueError(
            f"{PRETRAINED}: timm's weights cannot be had ({' '.join(str(error).split())}) Leave {PRETRAINED} out, name "
            "an architecture and tag that timm.list_pretrained() lists, or bring the weights: run once with a network "
            "and copy the Hugging Face cache (HF_HOME) to this machine."
        ) from error

"""A network with any of the initialisations that are to be compared."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from ...checkpoints.formats import CheckpointError
from ...checkpoints.load import load_ghn, resolve_default
from ...initialize import init_model
from ...utils.own_draws import own_draws
from ..finetune.build import WeightsUnavailable, with_timms_weights
from ..finetune.protocol import PRETRAINED, read_init

Create = Callable[[bool], nn.Module]


class Initialised(NamedTuple):
    """A network with one of the initialisations.

    Attributes:
        init: what was really used ("ghn" resolved).
        model: the network.
        layer: the first layer that was post-processed, from 1; None where none was.
        predicted: names of the parameters that the source has set; None where that was no source.
    """

    init: str
    model: nn.Module
    layer: int | None = None
    predicted: frozenset[str] | None = None


def obtainable(create: Create, inits: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Find out which initialisations are available on this machine, before any is computed.

    Args:
        create: as in `initialised`.
        inits: likewise.

    Returns:
        The available initialisations, and for each of the others the reason.

    Raises:
        ValueError: unknown initialisation, or an architecture without timm's weights.
    """
    missing = {}
    for init, source in {init: read_init(init) for init in inits}.items():
        try:
            if init == PRETRAINED:
                with_timms_weights(create)
            elif not isinstance(source, str) and not source.initialisation:
                load_ghn(resolve_default(source))
        except (CheckpointError, WeightsUnavailable) as error:
            missing[init] = str(error)
    return [init for init in dict.fromkeys(inits) if init not in missing], missing


def initialised(
    create: Create, init: str, *, seed: int = 0, input_size: int | None = None, progress: bool | None = None
) -> Initialised:
    """A new network with one initialisation.

    Args:
        create: builds the network; with timm's weights if its argument is true.
        init: a source ("rand", "orth", "ghn2-orth?layer=37" ...), "pretrained" for timm's weights, or "timm" for its
            own initialisation.
        seed: of the network's own initialisation, and of the source unless it names one.
        input_size: as in `trace`.
        progress: as in `init_model`.

    Returns:
        The network, and how it was initialised. The global random state is left as it was.

    Raises:
        ValueError: unknown initialisation, or weights that are not available; the message says what to do instead.
        CheckpointError: the GHN is not available.

    Example:
        >>> made = initialised(lambda pretrained: timm.create_model("resnet18", pretrained), "orth")  # doctest: +SKIP
        >>> made.init, made.layer, len(made.predicted)  # doctest: +SKIP
    """
    source = read_init(init)
    with own_draws(seed):
        model = with_timms_weights(create) if init == PRETRAINED else create(False)
    if isinstance(source, str):
        return Initialised(init, model)
    own = source.seed
    report = init_model(model, source, input_size=input_size, seed=seed if own is None else own, progress=progress)
    return Initialised(report.source, model, report.layer, frozenset(report.predicted))

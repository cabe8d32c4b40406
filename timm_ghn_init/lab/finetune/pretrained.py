"""Networks with the weights that timm has for them."""

from collections.abc import Callable

from torch import nn

from ...checkpoints.download import hub_unreachable
from ...utils.checks import InputError
from .protocol import PRETRAINED


class WeightsUnavailable(InputError):
    """timm's weights are not available here and now."""


def with_timms_weights(create: Callable[[bool], nn.Module]) -> nn.Module:
    """Makes a network, asked for one with timm's weights.

    Raises:
        WeightsUnavailable: the weights are not available on this machine now.
        InputError: there are none.
    """
    try:
        return create(True)
    except (OSError, RuntimeError, ValueError) as error:
        is_hubs = type(error).__module__.startswith("huggingface_hub")  # its text does not name the network
        cause = (is_hubs and hub_unreachable()) or " ".join(str(error).split())
        kind = WeightsUnavailable if isinstance(error, OSError) else InputError  # no network, or no such weights
        raise kind(
            f"{PRETRAINED}: timm's weights are not available ({cause}). Leave {PRETRAINED} out, name "
            "an architecture and tag that timm.list_pretrained() lists, or bring the weights: run once with a network "
            "and copy the Hugging Face cache (HF_HOME) to this machine."
        ) from error

"""The network of a trial, ready to be trained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...checkpoints.download import hub_unreachable
from ...initialize import init_model
from ...sources import is_source, parse_source
from ...utils.checks import InputError
from .protocol import PRETRAINED, Trial

LARGEST = 32  # pixels; up to this size a stem is adapted


class WeightsUnavailable(InputError):
    """timm's weights are not available here and now."""


def build(trial: Trial, classes: int, device: torch.device | str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Create and initialise the network. It stays on the CPU.

    The order is: timm's weights, if they are wanted; then the stem, so that trained filters keep their centre; then the
    source, so that a GHN predicts for the network and the image size that will be trained. The last layer has the
    data's number of classes and is timm's own, unless the GHN predicts as many.

    Args:
        trial: what is wanted. The global generators are taken as they are.
        classes: of the data.
        device: where to predict, as in `init_model`.

    Returns:
        The model and facts about it: "stem" (see `adapt_stem`), "parameters", and "report" of a source.

    Raises:
        RuntimeError: unknown architecture.
        WeightsUnavailable, InputError: timm's weights are not available.
        ValueError, CheckpointError, TraceError, RuntimeError: as `init_model`.
    """
    import timm

    options: dict[str, Any] = {"drop_path_rate": trial.drop_path} if trial.drop_path else {}
    config = timm.get_pretrained_cfg(trial.arch)
    if config is not None and config.fixed_input_size:
        options["img_size"] = trial.image_size

    def create(pretrained: bool) -> nn.Module:
        return timm.create_model(trial.arch, pretrained=pretrained, num_classes=classes, **options)

    model = with_timms_weights(create) if trial.init == PRETRAINED else create(False)
    adapt = trial.image_size <= LARGEST and not trial.keep_stem
    facts: dict[str, Any] = {"stem": adapt_stem(model) if adapt else {}}
    if is_source(trial.init):
        own = parse_source(trial.init).seed
        seed = trial.seed if own is None else own
        report = init_model(model, trial.init, input_size=trial.image_size, seed=seed, device=device, progress=False)
        wanted = ("source", "coverage", "layer", "seed", "nodes", "seconds")
        facts["report"] = {name: value for name, value in report.to_dict().items() if name in wanted}
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    return model, facts


def with_timms_weights(create: Callable[[bool], nn.Module]) -> nn.Module:
    """`create(True)`, the network with timm's weights.

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


def adapt_stem(model: nn.Module) -> dict[str, str]:
    """Make a model's first layers keep the resolution of small images, in place.

    A stem made for 224 x 224 pixels leaves an eighth of 32 x 32 in each direction, or less. As in the authors' code
    (`adjust_net` of facebookresearch/ppuda), the convolutions of the stem get stride 1. Those of a ResNet also become
    3 x 3, with the centre of larger filters, and its max pooling is removed.

    Args:
        model: a timm ResNet or ConvNeXt; any other model is left as it is.

    Returns:
        Name of each module that was changed -> how, "7x7/2 -> 3x3/1"; empty for other models.
    """
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet

    if isinstance(model, ResNet):
        changes = _keep_resolution(model, "conv1", 3)
        if not isinstance(model.maxpool, nn.Identity):
            model.set_submodule("maxpool", nn.Identity())
            changes["maxpool"] = "removed"
        return changes
    return _keep_resolution(model, "stem", None) if isinstance(model, ConvNeXt) else {}


def _keep_resolution(model: nn.Module, part: str, largest: int | None) -> dict[str, str]:
    """Stride 1, and filters of at most `largest` pixels, for all convolutions of a part."""
    changes = {}
    for name, conv in model.get_submodule(part).named_modules(prefix=part):
        if not isinstance(conv, nn.Conv2d):
            continue
        before = _describe(conv)
        conv.stride = (1, 1)
        if largest is not None and conv.kernel_size[0] > largest:
            cut = (conv.kernel_size[0] - largest) // 2
            centre = conv.weight.detach()[:, :, cut : cut + largest, cut : cut + largest]
            conv.weight = nn.Parameter(centre.clone(), conv.weight.requires_grad)
            conv.kernel_size, conv.padding = (largest, largest), (largest // 2, largest // 2)
        if _describe(conv) != before:
            changes[name] = f"{before} -> {_describe(conv)}"
    return changes


def _describe(conv: nn.Conv2d) -> str:
    """Filter and stride, "7x7/2"."""
    return f"{conv.kernel_size[0]}x{conv.kernel_size[1]}/{conv.stride[0]}"

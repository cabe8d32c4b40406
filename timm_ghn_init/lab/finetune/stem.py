"""First layers for small images.

A stem made for 224 x 224 pixels leaves an eighth of 32 x 32 in each direction, or less. The authors' code has it keep
the resolution (`adjust_net` of facebookresearch/ppuda, for torchvision's models): of a ResNet the first convolution
becomes 3 x 3 with stride 1, with the centre of the larger filters it may have, and the max pooling goes; of a ConvNeXt
the first convolution gets stride 1 and keeps its 4 x 4 filters. The same is done here to timm's ResNet and ConvNeXt;
their deeper stems, which those of torchvision do not have, lose their strides.
"""

from collections.abc import Callable

from torch import nn

LARGEST = 32  # pixels; up to this size a stem is adapted


def adapt_stem(model: nn.Module) -> dict[str, str]:
    """Make a model's first layers keep the resolution of its input, in place.

    Weights that are there stay: of a filter that gets smaller, its centre. So trained weights are to be loaded before,
    and parameters to be predicted after: a GHN then sees the network that will be trained.

    Args:
        model: a timm ResNet or ConvNeXt; any other model is left as it is.

    Returns:
        Name of each module that was changed -> how, "7x7/2 -> 3x3/1"; empty for a model that there is no rule for.
    """
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet

    rules: dict[type, Callable[[nn.Module], dict[str, str]]] = {ResNet: _resnet, ConvNeXt: _convnext}
    return next((rule(model) for kind, rule in rules.items() if isinstance(model, kind)), {})


def _resnet(model: nn.Module) -> dict[str, str]:
    changes: dict[str, str] = {}
    for name, conv in _convolutions(model, "conv1"):
        changes |= _keep_resolution(name, conv, 3)
    if not isinstance(model.maxpool, nn.Identity):
        model.maxpool = nn.Identity()
        changes["maxpool"] = "removed"
    return changes


def _convnext(model: nn.Module) -> dict[str, str]:
    changes: dict[str, str] = {}
    for name, conv in _convolutions(model, "stem"):
        changes |= _keep_resolution(name, conv, None)
    return changes


def _convolutions(model: nn.Module, part: str) -> list[tuple[str, nn.Conv2d]]:
    modules = model.get_submodule(part).named_modules(prefix=part)
    return [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]


def _keep_resolution(name: str, conv: nn.Conv2d, largest: int | None) -> dict[str, str]:
    """Stride 1, and filters of at most `largest` pixels."""
    before = _describe(conv)
    conv.stride = (1, 1)
    if largest is not None and conv.kernel_size[0] > largest:
        cut = (conv.kernel_size[0] - largest) // 2
        centre = conv.weight.detach()[:, :, cut : cut + largest, cut : cut + largest]
        conv.weight = nn.Parameter(centre.clone(), conv.weight.requires_grad)
        conv.kernel_size, conv.padding = (largest, largest), (largest // 2, largest // 2)
    after = _describe(conv)
    return {name: f"{before} -> {after}"} if after != before else {}


def _describe(conv: nn.Conv2d) -> str:
    """Filter and stride, "7x7/2"."""
    return f"{conv.kernel_size[0]}x{conv.kernel_size[1]}/{conv.stride[0]}"

"""Random networks to train a GHN on: timm's own classes at small random sizes.

DeepNets-1M (arXiv 2110.13100, Section 3) is made of blocks of its own. A GHN that is trained on such networks fails on
real ones whose details differ, so here each network is an instance of a class of timm. `FAMILIES` lists the classes
and, for each argument, the values to draw from. Every network is a function of (split, seed, index).

The architectures that `evaluate` scores are larger than any of these networks, so no GHN sees them in training.
"""

import random
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, round_channels
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ...graph import Graph, trace
from ...utils.checks import number

IMAGE = 32
MAX_MACS = 2.5e7  # multiplications per image of a network: a CPU core can train with them
MACS = number("at least 5e6, because some families have no smaller network", lambda value: value >= 5e6)

Draw = Callable[[random.Random], Any]


class Family(NamedTuple):
    """One row of `FAMILIES`.

    Attributes:
        make: called with `num_classes` and a value for each of `ranges`.
        share: how many networks of each round belong to the family.
        ranges: keyword -> a tuple of values to choose from, or a function of the generator that draws the value.
    """

    make: Callable[..., nn.Module]
    share: int
    ranges: dict[str, tuple[Any, ...] | Draw]


def _family(make: Callable[..., nn.Module], share: int = 1, /, **ranges: tuple[Any, ...] | Draw) -> Family:
    return Family(make, share, ranges)


# Draws of an argument


def widths(*first: int, stages: int = 4, growth: tuple[float, ...] = (1.5, 2, 2)) -> Draw:
    """Channels of each stage: multiples of 8 that grow by one factor."""

    def draw(rng: random.Random) -> tuple[int, ...]:
        width, factor = rng.choice(first), rng.choice(growth)
        return tuple(round(width * factor**stage / 8) * 8 for stage in range(stages))

    return draw


def depths(most: int = 2, third: int = 6, stages: int = 4) -> Draw:
    """Blocks of each stage. Every other network is deep in its third stage, as most architectures are."""

    def draw(rng: random.Random) -> tuple[int, ...]:
        drawn = [rng.randint(1, most) for _ in range(stages)]
        if rng.random() < 0.5:
            drawn[2] = rng.randint(most, third)
        return tuple(drawn)

    return draw


def between(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


# Constructors that need more than keyword arguments


def _vit(*, size: tuple[int, int, int], class_token: bool, **arguments: Any) -> nn.Module:
    patch, heads, width = size
    return VisionTransformer(
        img_size=IMAGE,
        patch_size=patch,
        embed_dim=heads * width,
        num_heads=heads,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        **arguments,
    )


def _resnet(*, groups: tuple[int, int], attention: str | None, **arguments: Any) -> nn.Module:
    cardinality, base_width = groups
    return ResNet(cardinality=cardinality, base_width=base_width, block_args={"attn_layer": attention}, **arguments)


def _regnet(*, num_classes: int, w0: int, wm: float, depth: int, **arguments: Any) -> nn.Module:
    slope = w0 * (wm**3 - 1) / (depth - 1)  # with which the widths fall into four stages, as RegNet requires
    return RegNet(RegNetCfg(w0=w0, wa=slope, wm=wm, depth=depth, **arguments), num_classes=num_classes)


def _mobile(make: Callable[..., nn.Module], *, stages: list[list[str]], act: str, **arguments: Any) -> nn.Module:
    rounded = partial(round_channels, divisor=8)
    act_layer = resolve_act_layer({"act_layer": act}, act)
    return make(decode_arch_def(stages), round_chs_fn=rounded, act_layer=act_layer, **arguments)


def _mobile_stages(rng: random.Random) -> list[list[str]]:
    """Timm's own notation: a depthwise separable block, then inverted residuals, one string for each stage."""
    width, se = rng.choice((8, 16)), rng.choice(("", "", "_se0.25"))
    stages = [[f"ds_r1_k3_s{rng.choice((1, 1, 2))}_c{width}"]]
    for _ in range(rng.randint(2, 5)):
        width = min(96, round(width * rng.choice((1, 1.5, 1.5, 2)) / 8) * 8)
        repeats, kernel, stride = rng.randint(1, 3), rng.choice((3, 3, 5)), rng.choice((1, 2, 2))
        stages.append([f"ir_r{repeats}_k{kernel}_s{stride}_e{rng.choice((3, 4, 6))}_c{width}{se}"])
    return stages


def _byob(
    *,
    num_classes: int,
    type: str,
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    group: int,
    ratio: float,
    **arguments: Any,
) -> nn.Module:
    stages = tuple(
        ByoBlockCfg(type=type, d=d, c=c, s=2, gs=group, br=ratio) for d, c in zip(blocks, channels, strict=True)
    )
    return ByobNet(ByoModelCfg(blocks=stages, **arguments), num_classes=num_classes)


# The families

_CONVNEXT: dict[str, Any] = {
    "depths": depths(),
    "kernel_sizes": (7, 7, 7, 5, 3),
    "conv_mlp": (False, True),
    "ls_init_value": (None,),  # 1e-6 would hide the blocks from the loss
}
# (patch size, heads, width of a head): the more patches there are, the narrower is the network
_VIT_SIZES = (
    *((4, heads, width) for heads, width in ((2, 16), (3, 16), (2, 32), (4, 16), (3, 32))),
    *((8, heads, width) for heads, width in ((2, 32), (3, 32), (4, 32), (3, 48), (3, 64))),
    *((16, heads, width) for heads, width in ((3, 32), (3, 48), (3, 64), (6, 32))),
)
_VIT: dict[str, Any] = {
    "size": _VIT_SIZES,
    "depth": between(3, 12),
    "mlp_ratio": (2.0, 3.0, 4.0, 4.0),
}
_RESNET: dict[str, Any] = {
    "layers": depths(),
    "stem_width": (16, 32, 64),
    "stem_type": ("", "", "deep"),
    "avg_down": (False, False, True),
    "attention": (None, None, None, "se"),
}
_MOBILE: dict[str, Any] = {
    "stages": _mobile_stages,
    "act": ("relu6", "relu", "silu", "hard_swish"),
    "stem_size": (8, 16, 32),
    "num_features": (64, 128, 192),
}
_BYOB: dict[str, Any] = {"blocks": depths(), "act_layer": ("relu", "relu", "silu")}

FAMILIES: dict[str, Family] = {
    "convnext": _family(
        ConvNeXt,
        4,
        **_CONVNEXT,
        dims=widths(8, 16, 24, 32, 40),
        stem_type=("patch", "patch", "overlap", "overlap_tiered", "overlap_act"),
    ),
    "convnextv2": _family(ConvNeXt, 2, **_CONVNEXT, dims=widths(8, 16, 24, 32, 40), use_grn=(True,)),
    "convnext, small patches": _family(ConvNeXt, **_CONVNEXT, dims=widths(8, 16, 24), patch_size=(2,)),
    "vit, class token": _family(_vit, 4, **_VIT, class_token=(True,)),
    "vit, average pooling": _family(_vit, 2, **_VIT, class_token=(False,)),
    "mixer": _family(
        MlpMixer,
        img_size=(IMAGE,),
        patch_size=(4, 8, 16),
        num_blocks=between(2, 8),
        embed_dim=(32, 64, 96, 128, 192),
    ),
    "resnet, basic": _family(
        _resnet, 2, **_RESNET, block=(BasicBlock,), channels=widths(16, 24, 32, 48, 64), groups=((1, 64),)
    ),
    "resnet, bottleneck": _family(
        _resnet,
        2,
        **_RESNET,
        block=(Bottleneck,),
        channels=widths(8, 16, 24, 32),
        groups=((1, 64), (1, 64), (1, 128), (4, 16), (8, 16)),
    ),
    "regnet": _family(
        _regnet,
        w0=(16, 24, 32),
        wm=(1.7, 2.0, 2.4),
        depth=between(6, 12),
        group_size=(4, 8, 16),
        stem_width=(16, 32),
        se_ratio=(0.0, 0.0, 0.25),
    ),
    "efficientnet": _family(partial(_mobile, EfficientNet), 3, **_MOBILE),
    "mobilenetv3": _family(partial(_mobile, MobileNetV3), **_MOBILE),
    "densenet": _family(DenseNet, growth_rate=(8, 12, 16, 24), block_config=depths(most=4, third=8)),
    "repvgg": _family(
        _byob,
        **_BYOB,
        type=("rep",),
        channels=widths(16, 24, 32, 48),
        group=(0,),
        ratio=(1.0,),
        stem_type=("rep",),
        stem_chs=(16, 32),
    ),
    "byobnet, bottleneck": _family(
        _byob,
        **_BYOB,
        type=("bottle",),
        channels=widths(32, 48, 64, 96),
        group=(0, 0, 8),
        ratio=(0.25, 0.5),
        stem_type=("tiered", "3x3", "deep"),
        stem_pool=("maxpool", ""),
        stem_chs=(16, 32),
    ),
}
_ROUND = tuple(name for name, family in FAMILIES.items() for _ in range(family.share))


# Networks


class Network(NamedTuple):
    """A network without values: its parameters are to be predicted.

    Attributes:
        kind: a key of `FAMILIES`, or the name of an architecture.
        module: on the meta device.
        graph: of `module`, in the dialect of GHN-2.
        fixed: values of the parameters that no GHN predicts, by name.
    """

    kind: str
    module: nn.Module
    graph: Graph
    fixed: dict[str, Tensor]

    def __call__(self, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> logits (B, num_classes), with predicted parameters."""
        fixed = {name: value.to(images.device) for name, value in self.fixed.items()}
        logits: Tensor = functional_call(self.module, parameters | fixed, (images,))
        return logits


def as_network(kind: str, module: nn.Module) -> Network:
    """Prepare a model on the meta device to be run with predicted parameters.

    Norms take the statistics of the batch, since a predicted network has no running ones. The rest gets
    the value that has no effect: layer scales are 1, and class tokens are 0, like timm's to within 1e-6.
    """
    for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    graph = trace(module.train(), IMAGE)
    left = {name: p.shape for name, p in module.named_parameters() if name not in graph.targets}
    return Network(kind, module, graph, {name: torch.full(s, float(len(s) == 1)) for name, s in left.items()})


@lru_cache(maxsize=8192)
def network(split: str, seed: int, index: int, num_classes: int, max_macs: float = MAX_MACS) -> Network:
    """A sampled network and its graph; the latest are kept."""
    return as_network(*sample(split, seed, index, num_classes, max_macs))


def sample(
    split: str, seed: int, index: int, num_classes: int = 10, max_macs: float = MAX_MACS
) -> tuple[str, nn.Module]:
    """Draw a network; the families take turns.

    Args:
        split: "train" or "test".
        seed, index: which network of the split.
        num_classes: of its classifier.
        max_macs: the most multiplications per image that it may take.

    Returns:
        The name of its family, and the module on the meta device.

    Raises:
        ValueError: no network is so small.
    """
    MACS.check("max_macs", max_macs)
    rng = random.Random(f"{split} {seed} {index}")  # seeded by the string's SHA-512, the same everywhere
    kind = _ROUND[index % len(_ROUND)]
    make, _, ranges = FAMILIES[kind]
    while True:
        drawn = {name: values(rng) if callable(values) else rng.choice(values) for name, values in ranges.items()}
        with torch.device("meta"):
            module = make(num_classes=num_classes, **drawn)
        if macs(module) <= max_macs:
            return kind, module


@torch.no_grad()
def macs(module: nn.Module) -> float:
    """About how many multiplications a forward pass takes for one image: those of weights, not of attention."""
    counts: list[float] = []

    def count(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        positions = output.numel() / (output.shape[0] * layer.weight.shape[0])
        counts.append(layer.weight.numel() * positions)

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        module.eval()(torch.empty(2, 3, IMAGE, IMAGE, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)

"""The blocks that sampled networks are made of, each a module that maps (B, c_in, H, W) to (B, c_out, H', W').

No module here has a buffer, and norms use the statistics of the batch: a network is its parameters, so that one that
lies on the meta device can be run with predicted ones by `torch.func.functional_call`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import LayerNorm2d, SqueezeExcite
from timm.models.vision_transformer import Block as TransformerBlock
from torch import Tensor, nn


@dataclass(frozen=True)
class Style:
    """What the blocks of one network have in common.

    Attributes:
        kernel: side of the spatial convolutions.
        groups: of these; 0 makes them depthwise.
        dilation: of these.
        norm: "bn", "ln" or "none".
        act: "relu" or "gelu".
        se: squeeze-and-excitation in every block that can have it.
        expand: how much wider (or, in a bottleneck, narrower) a block is inside.
        scale: what ConvNeXt-like blocks multiply their branch by, a constant. Timm's begin with a layer scale of 1e-6,
            which no GHN predicts: all that such a network computes at first, its stem and its downsampling compute.
    """

    kernel: int = 3
    groups: int = 1
    dilation: int = 1
    norm: str = "bn"
    act: str = "relu"
    se: bool = False
    expand: int = 2
    scale: float = 1.0


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "ln": LayerNorm2d,
    "none": lambda c: nn.Identity(),
}
_ACTS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def conv(style: Style, c_in: int, c_out: int, kernel: int, stride: int = 1, spatial: bool = False) -> nn.Sequential:
    """Convolution and norm; with `spatial`, dilated and grouped as the style says, as far as the channels allow."""
    dilation, groups = (style.dilation, style.groups or c_in) if spatial else (1, 1)
    groups = groups if c_in % groups == 0 and c_out % groups == 0 else 1
    padding = dilation * (kernel // 2)
    bias = style.norm == "none"
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=bias)
    return nn.Sequential(layer, _NORMS[style.norm](c_out))


def activation(style: Style) -> nn.Module:
    return _ACTS[style.act]()


class Residual(nn.Module):
    """x + branch(x), x through a 1 x 1 convolution where the shape changes, then an activation or none."""

    def __init__(self, style: Style, branch: nn.Module, c_in: int, c_out: int, stride: int, act: bool) -> None:
        super().__init__()
        self.branch = branch
        changes = c_in != c_out or stride > 1
        self.shortcut = conv(style, c_in, c_out, 1, stride) if changes else nn.Identity()
        self.act = activation(style) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.branch(x))


def _se(style: Style, channels: int) -> list[nn.Module]:
    return [SqueezeExcite(channels, rd_ratio=0.25, rd_divisor=4)] if style.se else []


def plain(style: Style, c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Sequential(*conv(style, c_in, c_out, style.kernel, stride, spatial=True), activation(style))


def basic(style: Style, c_in: int, c_out: int, stride: int) -> nn.Module:
    branch = nn.Sequential(
        *conv(style, c_in, c_out, style.kernel, stride, spatial=True),
        activation(style),
        *conv(style, c_out, c_out, style.kernel, spatial=True),
        *_se(style, c_out),
    )
    return Residual(style, branch, c_in, c_out, stride, act=True)


def bottleneck(style: Style, c_in: int, c_out: int, stride: int) -> nn.Module:
    inner = max(8, c_out // style.expand)
    branch = nn.Sequential(
        *conv(style, c_in, inner, 1),
        activation(style),
        *conv(style, inner, inner, style.kernel, stride, spatial=True),
        activation(style),
        *conv(style, inner, c_out, 1),
        *_se(style, c_out),
    )
    return Residual(style, branch, c_in, c_out, stride, act=True)


def inverted(style: Style, c_in: int, c_out: int, stride: int) -> nn.Module:
    inner = c_in * style.expand
    branch = nn.Sequential(
        *conv(style, c_in, inner, 1),
        activation(style),
        *conv(Style(**{**vars(style), "groups": 0}), inner, inner, style.kernel, stride, spatial=True),
        activation(style),
        *_se(style, inner),
        *conv(style, inner, c_out, 1),
    )
    if c_in != c_out or stride > 1:
        return branch
    return Residual(style, branch, c_in, c_out, stride, act=False)


class Dense(nn.Module):
    """What a layer computes is appended to its input; a 1 x 1 convolution brings the whole to c_out channels."""

    def __init__(self, style: Style, c_in: int, c_out: int, stride: int, layers: int = 2) -> None:
        super().__init__()
        growth = max(8, c_out // 4)
        self.layers = nn.ModuleList(
            nn.Sequential(
                _NORMS[style.norm](c_in + i * growth),
                activation(style),
                nn.Conv2d(c_in + i * growth, growth, style.kernel, padding=style.kernel // 2, bias=False),
            )
            for i in range(layers)
        )
        self.transition = conv(style, c_in + layers * growth, c_out, 1)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return self.pool(self.transition(x))


class ConvNeXtLike(nn.Module):
    """Depthwise convolution, norm, two linear layers, residual; a 2 x 2 convolution before where the shape changes."""

    def __init__(self, style: Style, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        changes = c_in != c_out or stride > 1
        self.down = (
            nn.Sequential(_NORMS[style.norm](c_in), nn.Conv2d(c_in, c_out, stride, stride))
            if changes
            else nn.Identity()
        )
        self.dw = nn.Conv2d(c_out, c_out, style.kernel, padding=style.kernel // 2, groups=c_out)
        self.norm = _NORMS[style.norm](c_out)
        self.fc1 = nn.Linear(c_out, style.expand * c_out)
        self.act = activation(style)
        self.fc2 = nn.Linear(style.expand * c_out, c_out)
        self.scale = style.scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.norm(self.dw(x)).permute(0, 2, 3, 1)
        y = self.fc2(self.act(self.fc1(y))).permute(0, 3, 1, 2)
        return x + (y if self.scale == 1 else self.scale * y)


class Transformer(nn.Module):
    """A position embedding and blocks of self-attention, over the pixels of a feature map."""

    def __init__(self, style: Style, channels: int, side: int, depth: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, channels))
        heads = next(h for h in (4, 3, 2, 1) if channels % h == 0)
        self.blocks = nn.Sequential(
            *(TransformerBlock(channels, heads, mlp_ratio=style.expand, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.blocks(x.flatten(2).transpose(1, 2) + self.pos_embed))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


BLOCKS: dict[str, Callable[[Style, int, int, int], nn.Module]] = {
    "plain": plain,
    "basic": basic,
    "bottleneck": bottleneck,
    "inverted": inverted,
    "dense": Dense,
    "convnext": ConvNeXtLike,
}

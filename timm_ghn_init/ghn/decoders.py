"""One node embedding -> one block of parameters, at most `max_shape` large.

Every entry of a block is independent of the others, so only the part that a parameter needs is computed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gated_gnn import MLP

Shape = tuple[int, int, int, int]


def crop(size: int, kernel: int, centre: bool) -> slice:
    """The position of a kernel in the decoder's spatial extent: its top left corner (GHN-2) or its centre (GHN-3)."""
    if not centre:
        return slice(0, min(kernel, size))
    return slice(max(0, size // 2 - kernel // 2), size // 2 + math.ceil(kernel / 2))


class ConvDecoder(nn.Module):
    """A linear layer to a feature map over kernel positions, then two 1 x 1 convolutions.

    Args:
        hid: width of node embeddings.
        max_shape: (M0, M1, M2, M3) of the blocks.
        num_classes: classes of the data set that the GHN was trained on.
        centre: take kernels from the centre of the feature map (GHN-3) instead of its corner.
        linear: keep the 1 x 1 convolutions as linear layers, with 2-D weights, as GHN-3's files do.
    """

    def __init__(self, hid: int, max_shape: tuple[int, ...], num_classes: int, centre: bool, linear: bool) -> None:
        super().__init__()
        self.max_shape, self.centre = max_shape, centre
        m0, m1, m2, m3 = max_shape

        def pointwise(i: int, o: int) -> nn.Module:
            return nn.Linear(i, o) if linear else nn.Conv2d(i, o, 1)

        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * m2 * m3), nn.ReLU())
        self.conv = nn.Sequential(pointwise(4 * hid, 8 * hid), nn.ReLU(), pointwise(8 * hid, m0 * m1))
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), pointwise(m0, num_classes))

    def forward(self, z: Tensor, shape: Shape) -> Tensor:
        """(n, hid) -> (n, K, C, kh, kw), each extent at most that of `max_shape`."""
        return next(self.many([z], [shape]))

    def many(self, zs: Sequence[Tensor], shapes: Sequence[Shape]) -> Iterator[Tensor]:
        """`forward` for several groups of embeddings, each with its shape."""
        m0, m1, m2, m3 = self.max_shape
        # a kernel of the full size or more is all there is, wherever it would be centred
        kernels = [
            (slice(None), crop(m2, min(h, m2), self.centre), crop(m2, min(w, m3), self.centre)) for _, _, h, w in shapes
        ]
        channels = [(slice(min(k, m0)), slice(min(c, m1))) for k, c, _, _ in shapes]
        fc, first, last = (_weights(layer) for layer in (self.fc[0], self.conv[0], self.conv[2]))
        parts = zip(
            *(_parts(p.unflatten(0, (-1, m2, m3)), kernels) for p in fc),
            *(_parts(p.unflatten(0, (m0, m1)), channels) for p in last),
            strict=True,
        )
        for z, (weight, bias, last_weight, last_bias) in zip(zs, parts, strict=True):
            kernel, block = bias.shape[1:], last_bias.shape
            a = F.relu(F.linear(z, weight.flatten(0, 2), bias.flatten())).unflatten(1, (-1, kernel.numel()))
            b = F.relu(F.linear(a.transpose(1, 2), *first))  # (n, positions, 8 hid)
            values = F.linear(b, last_weight.flatten(0, 1), last_bias.flatten())
            yield values.transpose(1, 2).unflatten(2, kernel).unflatten(1, block)

    def classifier(self, z: Tensor, in_features: int) -> Tensor:
        """(n, hid) -> (n, num_classes, C): weights of the layer that yields the logits."""
        rows = self(z, (self.max_shape[0], in_features, 1, 1))[..., 0, 0]
        return F.linear(F.relu(rows).transpose(1, 2), *_weights(self.class_layer_predictor[1])).transpose(1, 2)


class MLPDecoder(nn.Module):
    """The decoder of the baseline: two linear layers for the whole block."""

    def __init__(self, hid: int, max_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.max_shape, self.num_classes = max_shape, num_classes
        self.mlp = MLP(hid, 2 * hid, math.prod(max_shape), last_activation=False)
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(2 * hid, num_classes * max_shape[0]))

    def forward(self, z: Tensor, shape: Shape) -> Tensor:
        block = self.mlp(z).unflatten(1, self.max_shape)
        k, c, kh, kw = shape
        return block[:, :k, :c, :kh, :kw]

    def many(self, zs: Sequence[Tensor], shapes: Sequence[Shape]) -> Iterator[Tensor]:
        return map(self, zs, shapes)

    def classifier(self, z: Tensor, in_features: int) -> Tensor:
        hidden = F.relu(self.mlp.fc[0](z))
        return self.class_layer_predictor[1](hidden).unflatten(1, (self.num_classes, -1))[..., :in_features]


def resize(block: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Interpolate (K, C, kh, kw) bilinearly to a kernel that is larger than the decoder's."""
    if tuple(block.shape[-2:]) == kernel:
        return block
    return F.interpolate(block, kernel, mode="bilinear")


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight, as a matrix, and bias of a linear layer or 1 x 1 convolution."""
    return layer.weight.flatten(1), layer.bias


def _parts(whole: Tensor, indices: Sequence[tuple[slice, ...]]) -> Iterator[Tensor]:
    """whole[i] for every i."""
    if torch.is_grad_enabled() and whole.requires_grad:
        return iter(_Parts.apply(whole, indices))
    return (whole[index] for index in indices)


class _Parts(torch.autograd.Function):
    """Several parts of a tensor. Indexing would make a gradient of the whole tensor for each of them."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, indices: Sequence[tuple[slice, ...]]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.indices = whole.shape, indices
        return tuple(whole[index] for index in indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total = grads[0].new_zeros(ctx.shape)
        for index, grad in zip(ctx.indices, grads, strict=True):
            total[index] += grad
        return total, None

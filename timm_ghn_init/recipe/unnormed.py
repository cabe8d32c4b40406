"""Layers with no norm behind them, in networks that are no classifiers.

GHNs were trained on networks with norms, and the channels that they predict resemble each other. So some inputs are
amplified much more than by random weights, and where no norm corrects it, that multiplies from layer to layer: the
first loss of EDSR (super-resolution, 19 convolutions, no norm) was 17,000 times the one from its own initialisation.
These weights keep their predicted direction and are scaled; biases keep their values.

PyTorch draws a (K, n) weight from U(-b, b), b = 1 / sqrt(n). It amplifies an input by sqrt(K / 3n) on average. The
scaled weights amplify no input more than that.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from ..ghn import Tile

BIAS = "the bias of a layer with no norm behind it, in a network that is no classifier"


def scaled_down(tiles: Mapping[str, Tile], names: Collection[str]) -> dict[str, Tile]:
    """Predictions, those of the weights of these names scaled."""
    found = dict(tiles)
    for name in names:
        tile = tiles[name]
        shape = tile.target.kernel or tile.target.shape
        matrix = tile.block.flatten(1).cpu()  # not every device has singular values
        repeats = math.prod(shape) / matrix.numel()  # of the block in the weight
        largest = torch.linalg.matrix_norm(matrix, 2).item() * math.sqrt(repeats)
        found[name] = replace(tile, block=tile.block * (scale_of_orthogonal(shape) / max(largest, 1e-12)))
    return found


def scale_of_orthogonal(shape: Sequence[int]) -> float:
    """The factor for weights whose largest singular value is 1: the average amplification of a drawn weight."""
    return math.sqrt(shape[0] / (3 * math.prod(shape[1:])))

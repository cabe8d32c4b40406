"""Node features: the shape of a node's parameter as four embedded indices (reference/GHN-2, node embedding)."""

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import Node


class ShapeEncoder(nn.Module):
    """Embeds (c_out, c_in, kh, kw), a quarter of the width each.

    The vocabularies are those of the released checkpoints. A size outside of them takes the nearest entry, a node
    without a shape the last row of each table.
    """

    def __init__(self, hid: int, num_classes: int, max_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels = {1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
        self.channels, self.spatial = (
            np.array(sorted(sizes)) for sizes in (channels, {*range(1, max(12, max_shape[3]), 2), 14, 16})
        )
        self.embed_spatial = nn.Embedding(len(self.spatial) + 1, hid // 4)
        self.embed_channel = nn.Embedding(len(self.channels) + 1, hid // 4)

    def forward(self, nodes: tuple[Node, ...]) -> Tensor:
        """Shape embeddings of N nodes, (N, hid)."""
        index = torch.from_numpy(self.indices(nodes)).to(self.embed_channel.weight.device)
        c_out, c_in, kh, kw = index.unbind(1)
        return torch.cat(
            (self.embed_channel(c_out), self.embed_channel(c_in), self.embed_spatial(kh), self.embed_spatial(kw)), 1
        )

    def indices(self, nodes: tuple[Node, ...]) -> np.ndarray:
        """Rows of the four tables for each node, (N, 4) int64."""
        shapes = np.array([_as_4d(n.shape) if n.shape else (0, 0, 0, 0) for n in nodes], dtype=np.int64)
        # Not the nearest but the rule: 4 to 7 channels count as 8, a 2 x 2 kernel as 3 x 3.
        channels = np.where((shapes[:, :2] >= 4) & (shapes[:, :2] < 8), 8, shapes[:, :2])
        spatial = np.where(shapes[:, 2:] == 2, 3, shapes[:, 2:])
        index = np.concatenate((_nearest(self.channels, channels), _nearest(self.spatial, spatial)), axis=1)
        index[[n.shape is None for n in nodes]] = [len(self.channels)] * 2 + [len(self.spatial)] * 2
        return index


def _as_4d(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3:
        a, length, c = shape
        if a == 1 and min(length, c) > 1:  # a position embedding, (1, L, C): a square of C channels
            side = int(length**0.5)
            return (1, c, side, side)
        return (*shape, 1)
    return (*shape[:2], *shape[-2:]) if len(shape) > 4 else (*shape, 1, 1, 1)[:4]


def _nearest(vocabulary: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Index of the nearest entry, the lower one on a tie; the last one for anything larger."""
    above = np.searchsorted(vocabulary, sizes).clip(1, len(vocabulary) - 1)
    nearer_below = sizes - vocabulary[above - 1] <= vocabulary[above] - sizes
    return above - nearer_below

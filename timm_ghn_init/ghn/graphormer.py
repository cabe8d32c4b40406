"""GHN-3: a Graphormer (arXiv 2303.04143). Attention between all nodes, biased by their distances in both directions."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import Graph

MAX_DEGREE = 100
MAX_INPUT_DISTANCE = 1000
MAX_DISTANCE = 50


class EdgeEmbedding(nn.Module):
    """Embeddings of distances; the tables of the released files have 257 rows, distance d is row d + 2."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, hid)


class Attention(nn.Module):
    def __init__(self, hid: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hid, 3 * hid, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hid, hid))
        if edges:
            self.edge_embed = EdgeEmbedding(hid)
            self.proj_e = nn.Sequential(nn.Linear(2 * hid, hid), nn.ReLU(), nn.Linear(hid, heads))

    def edge_bias(self, distances: Tensor) -> Tensor:
        """(N, N) distances -> (heads, N, N), added to the logits of every layer.

        It depends on the distances there and back only, so a table over all pairs of distances is all that has to be
        computed, whatever the size of the graph.
        """
        n = MAX_DISTANCE + 1
        rows = self.edge_embed.embed.weight[2 : n + 2]
        pairs = torch.cat((rows[:, None].expand(n, n, -1), rows[None].expand(n, n, -1)), dim=-1)
        table = self.proj_e(pairs).flatten(0, 1).T.contiguous()  # (heads, n * n)
        return table[:, distances * n + distances.T]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])[0]
        return self.to_out(out.transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, hid: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(hid, 4 * hid), nn.GELU(), nn.Identity(), nn.Linear(4 * hid, hid))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Layer(nn.Module):
    """A pre-norm transformer layer; the first one also holds what turns the graph into features."""

    def __init__(self, hid: int, heads: int, first: bool) -> None:
        super().__init__()
        if first:
            self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, hid)
            self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, hid)
            self.input_dist_embed = nn.Embedding(MAX_INPUT_DISTANCE + 1, hid)
        self.ln1 = nn.LayerNorm(hid)
        self.attn = Attention(hid, heads, edges=first)
        self.ln2 = nn.LayerNorm(hid)
        self.ff = FeedForward(hid)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x), bias)
        return x + self.ff(self.ln2(x))


class Graphormer(nn.ModuleList):
    """The layers, numbered from 0 as in the released files; called with node features (N, hid) and the graph."""

    def __init__(self, hid: int, heads: int, layers: int) -> None:
        super().__init__(Layer(hid, heads, first=i == 0) for i in range(layers))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        first: Layer = self[0]  # type: ignore[assignment]
        array = graph.distances(MAX_DISTANCE)
        incoming, outgoing = ((array == 1).sum(axis).clip(max=MAX_DEGREE) for axis in (0, 1))
        distances = torch.from_numpy(array.astype(np.int64)).to(x.device)
        x = x + first.centrality_embed_in(torch.from_numpy(incoming).to(x.device))
        x = x + first.centrality_embed_out(torch.from_numpy(outgoing).to(x.device))
        x = x + first.input_dist_embed(distances[0].clamp(max=MAX_INPUT_DISTANCE))
        bias = first.attn.edge_bias(distances)
        for layer in self:
            x = layer(x, bias)
        return x

"""GHN-1 and GHN-2: a gated graph neural network that follows the forward and the backward pass of the network."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import Graph

CUTOFF = 50  # edges: length of the longest virtual edge


class MLP(nn.Module):
    """Linear layers with ReLU between them, and after the last one unless told otherwise."""

    def __init__(self, *widths: int, last_activation: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.fc = nn.Sequential(*(layers if last_activation else layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class NodeMLP(MLP):
    """No message passing at all: the `hypernet="mlp"` baseline."""

    def forward(self, x: Tensor, graph: Graph) -> Tensor:  # type: ignore[override]
        return self.fc(x)


class GatedGNN(nn.Module):
    """Two sweeps over the nodes, each in place (Eq. 3 and 4 of arXiv 2110.13100).

    At node v, with d the length of the shortest path from u:

        m_v = sum over d(u, v) = 1 of MLP(h_u) + sum over 1 <= d(u, v) <= 50 of MLP_ve(h_u) / d(u, v)
        h_v = GRUCell(m_v, h_v)

    first in topological order, then in reverse order along the reversed edges.
    """

    def __init__(self, hid: int, ve: bool) -> None:
        super().__init__()
        self.ve = ve
        width = hid // 2 if ve else hid
        self.mlp = MLP(hid, width, hid)
        if ve:
            self.mlp_ve = MLP(hid, width, hid)
        self.gru = nn.GRUCell(hid, hid)

    @property
    def senders(self) -> list[MLP]:
        """Makes the messages along edges and, if there are any, along virtual edges."""
        return [self.mlp, self.mlp_ve] if self.ve else [self.mlp]

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Node embeddings (N, hid) -> (N, hid); differentiable where gradients are on, in NumPy where they are not."""
        if torch.is_grad_enabled() and (x.requires_grad or self.gru.weight_ih.requires_grad):
            return self.many([x], [graph])[0]
        return self._sweeps_numpy(x, self._distances(graph))

    def many(self, xs: Sequence[Tensor], graphs: Sequence[Graph]) -> list[Tensor]:
        """Several graphs at once, node by node: what `forward` gives for each, differentiable."""
        sizes = [len(x) for x in xs]
        weights = np.zeros((len(xs), max(sizes), max(sizes), len(self.senders)), dtype=np.float32)
        for i, (graph, size) in enumerate(zip(graphs, sizes, strict=True)):
            weights[i, :size, :size] = self._weights(self._distances(graph))
        x = nn.utils.rnn.pad_sequence(list(xs), batch_first=True)  # what pads hears nobody, and nobody hears it
        x = self._sweeps(x, torch.from_numpy(weights).to(x))
        return [row[:size] for row, size in zip(x, sizes, strict=True)]

    def _distances(self, graph: Graph) -> np.ndarray:
        return graph.distances(CUTOFF if self.ve else 1)

    def _weights(self, distances: np.ndarray) -> np.ndarray:
        """Weights of the messages over such distances, (...) -> (..., 1 or 2): along edges, along virtual edges."""
        table = np.zeros((CUTOFF + 1, len(self.senders)), dtype=np.float32)
        table[1, 0] = 1
        if self.ve:
            table[1:, 1] = 1 / np.arange(1, CUTOFF + 1, dtype=np.float32)
        return np.take(table, distances, axis=0)

    def _sweeps(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (B, N, hid), weights (B, N, N, 1 or 2) of the messages from u to v."""
        gru = (self.gru.weight_ih, self.gru.bias_ih, self.gru.weight_hh, self.gru.bias_hh)
        mlp = _joined(self.senders)
        x = _Sweep.apply(x, weights.transpose(1, 2).contiguous(), *gru, *mlp)
        return _Sweep.apply(x.flip(1), weights.flip(1, 2), *gru, *mlp).flip(1)

    @torch.no_grad()
    def _sweeps_numpy(self, x: Tensor, distances: np.ndarray) -> Tensor:
        """The same for one graph, without PyTorch's overhead per operation: a node is a few matrix-vector products."""
        step = _Step(self)
        h = x.detach().float().cpu().numpy().copy()
        h = step.sweep(h, range(len(h)), self._heard(distances.T))
        h = step.sweep(h, range(len(h) - 1, -1, -1), self._heard(distances))
        return torch.from_numpy(h).to(x)

    def _heard(self, distances: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        """For each node v the range of nodes that are near enough to it, and the weights of what it hears from them.

        Args:
            distances: [v, u] is that from u to v, 0 for none.
        """
        nearby = np.ascontiguousarray(distances != 0)
        first, last = nearby.argmax(1), len(nearby) - nearby[:, ::-1].argmax(1)
        count = np.where(nearby.any(1), last - first, 0)
        end = count.cumsum()
        v = np.repeat(np.arange(len(count)), count)
        u = np.arange(len(v)) + (first - end + count)[v]
        kinds = len(self.senders)
        weights = np.split(self._weights(distances[v, u]).reshape(-1), kinds * end[:-1])
        return list(zip((kinds * first).tolist(), (kinds * (first + count)).tolist(), weights, strict=True))


def _joined(mlps: Sequence[MLP]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of the two layers that give the output of several such MLPs at once, one after the other."""
    first: list[Any] = [m.fc[0] for m in mlps]
    last: list[Any] = [m.fc[2] for m in mlps]
    w0, b0 = torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first])
    w2, b2 = torch.block_diag(*(m.weight for m in last)), torch.cat([m.bias for m in last])
    return w0, b0, w2, b2


class _Sweep(torch.autograd.Function):
    """One sweep from the first node to the last, and its gradient.

    Autograd would record a dozen small operations for each node. Here the factors of the backward pass are computed
    for all nodes at once, and so are the gradients of the parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        """x (B, N, hid); weights (B, N, N, kinds) of what v hears from u < v; those of the GRU cell and the MLPs."""
        w_ih, b_ih, w_hh, b_hh, w0, b0, w2, b2 = parameters
        (batch, count, hid), kinds = x.shape, weights.shape[3]
        recurrent = F.linear(x, w_hh, b_hh)
        message, state, new = (torch.empty_like(x) for _ in range(3))
        gates, hidden = x.new_empty(batch, count, 2 * hid), x.new_empty(batch, count, len(b0))
        sent = x.new_empty(batch, count, kinds * hid)
        received, by_kind = weights.flatten(2), sent.view(batch, count * kinds, hid)
        for v in range(count):
            past = v * kinds
            torch.bmm(received[:, v, None, :past], by_kind[:, :past], out=message[:, v, None])
            i, r = torch.addmm(b_ih, message[:, v], w_ih.t()), recurrent[:, v]
            gate = gates[:, v] = torch.sigmoid_(i[:, : 2 * hid].add_(r[:, : 2 * hid]))
            n = new[:, v] = torch.tanh_(i[:, 2 * hid :].addcmul_(gate[:, :hid], r[:, 2 * hid :]))
            h = state[:, v] = torch.lerp(n, x[:, v], gate[:, hid:])
            a = hidden[:, v] = torch.addmm(b0, h, w0.t()).relu_()
            sent[:, v] = torch.addmm(b2, a, w2.t()).relu_()
        ctx.save_for_backward(x, weights, recurrent, message, state, new, gates, hidden, sent, *parameters)
        return state

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weights, recurrent, message, state, new, gates, hidden, sent, *parameters = ctx.saved_tensors
        w_ih, _, w_hh, _, w0, _, w2, _ = parameters
        _, count, hid = x.shape
        reset, update = gates.split(hid, 2)
        # d (input of the GRU's three non-linearities) / d (new state)
        to_new = (1 - update) * (1 - new * new)
        to_reset = to_new * recurrent[..., 2 * hid :] * reset * (1 - reset)
        factor = torch.stack((to_reset, (x - new) * update * (1 - update), to_new), 2)  # (B, N, 3, hid)
        heard, alive, active = weights.permute(0, 2, 3, 1).contiguous(), (sent > 0).to(x), (hidden > 0).to(x)
        d_state, d_message = torch.empty_like(x), torch.empty_like(x)
        d_input, d_hidden, d_sent = torch.empty_like(factor), torch.empty_like(hidden), torch.empty_like(sent)
        for v in reversed(range(count)):
            ds = torch.bmm(heard[:, v, :, v + 1 :], d_message[:, v + 1 :]).flatten(1).mul_(alive[:, v])
            da = torch.mm(ds, w2).mul_(active[:, v])
            dh = torch.addmm(grad[:, v], da, w0)
            di = dh[:, None] * factor[:, v]
            d_message[:, v] = torch.mm(di.flatten(1), w_ih)
            d_sent[:, v], d_hidden[:, v], d_state[:, v], d_input[:, v] = ds, da, dh, di
        d_recurrent = torch.cat((d_input[:, :, :2], (d_input[:, :, 2] * reset)[:, :, None]), 2).flatten(2)
        d_x = d_state * update + d_recurrent @ w_hh
        pairs = ((d_input.flatten(2), message), (d_recurrent, x), (d_hidden, state), (d_sent, hidden))
        d_parameters = (d for out, into in pairs for d in (out.flatten(0, 1).t() @ into.flatten(0, 1), out.sum((0, 1))))
        return d_x, None, *d_parameters


class _Step:
    """The weights of a `GatedGNN` as arrays, the two MLPs of a node joined into one.

    The input of the gates is halved: sigmoid(x) is (1 + tanh(x / 2)) / 2, which cannot overflow.
    """

    def __init__(self, gnn: GatedGNN) -> None:
        def array(t: Any) -> np.ndarray:
            return t.detach().float().cpu().numpy()

        self.w0, self.b0, self.w2, self.b2 = (array(t) for t in _joined(gnn.senders))
        self.hid = gnn.gru.hidden_size
        half = np.repeat(np.array([0.5, 0.5, 1], dtype=np.float32), self.hid)
        self.w_ih, self.w_hh = (array(w) * half[:, None] for w in (gnn.gru.weight_ih, gnn.gru.weight_hh))
        self.b_ih, self.b_hh = (array(b) * half for b in (gnn.gru.bias_ih, gnn.gru.bias_hh))

    def sweep(self, h: np.ndarray, order: range, heard: list[tuple[int, int, np.ndarray]]) -> np.ndarray:
        """One sweep over the nodes, with what each of them hears (`GatedGNN._heard`). Overwrites and returns `h`."""
        hid, w0, b0, w2, b2, w_ih, b_ih = self.hid, self.w0, self.b0, self.w2, self.b2, self.w_ih, self.b_ih
        recurrent = h @ self.w_hh.T + self.b_hh  # depends on the state before the sweep only
        to_gates, to_new = recurrent[:, : 2 * hid].copy(), recurrent[:, 2 * hid :].copy()
        rows = np.zeros((len(h), len(b2)), dtype=np.float32)  # what each node sends
        sent = rows.reshape(-1, hid)
        message, new, hidden, i = (np.empty(n, dtype=np.float32) for n in (hid, hid, len(b0), 3 * hid))
        gates, reset, update, candidate = i[: 2 * hid], i[:hid], i[hid : 2 * hid], i[2 * hid :]
        zero, half = np.zeros_like(b2), np.full_like(gates, 0.5)  # arrays: NumPy takes longer to convert a scalar
        zero_hidden = np.zeros_like(hidden)
        for v in order:
            state, out = h[v], rows[v]
            start, stop, weights = heard[v]
            np.dot(w_ih, np.dot(weights, sent[start:stop], message), i)
            i += b_ih
            gates += to_gates[v]
            np.tanh(gates, gates)
            gates *= half
            gates += half
            np.multiply(to_new[v], reset, new)
            new += candidate
            np.tanh(new, new)
            state -= new
            state *= update
            state += new
            np.dot(w0, state, hidden)
            hidden += b0
            np.maximum(hidden, zero_hidden, out=hidden)
            np.dot(w2, hidden, out)
            out += b2
            np.maximum(out, zero, out=out)
        return h

"""Mimetic initialisation of attention (Trockman and Kolter, ICML 2023, arXiv 2305.09828).

In trained transformers the product of query and key weights resembles the identity, and that of projection and value
weights its negative. Here both do so from the start. All other layers stay as they are.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..graph import Graph, Target
from ..graph.graph import reached
from .noise import seeded_generator

_QK, _VO = (0.7, 0.7), (0.4, -0.4)  # alpha Z + beta I; Section 4 of the paper
_LETTER = re.compile(r"(?:^|[._])(?:w|to_?|in_?)?(q|k|v)(?:_|\.|$|uery|ey|alue|proj|lin)")
_FUSED = re.compile(r"qkv|in_proj_weight|query_key_value|c_attn", re.IGNORECASE)


class Attention(NamedTuple):
    """Names of the weights of one attention; `q`, `k` and `v` are one and the same where they are fused."""

    q: str
    k: str
    v: str
    out: str
    heads: int


def mimetic(model: nn.Module, seed: int, *, pos: bool = False, graph: Graph) -> Iterator[tuple[str, Tensor | str]]:
    """Attention that resembles a trained one.

    For each head, query and key weights are the SVD of 0.7 Z + 0.7 I, truncated to the width of a head, so that
    W_q^T W_k is close to the identity. Value and projection weights are the SVD of 0.4 Z - 0.4 I, so that W_proj W_v
    is close to the negative identity. The entries of Z have the variance 1 / d.

    Args:
        model: any that the trace finds attention in.
        seed: of Z.
        pos: whether position embeddings of tokens are sines and cosines (in two dimensions, where there are rows).
        graph: of the model.

    Yields:
        Names of weights and their values; names of attention weights that do not have the shape for it, and why.

    Raises:
        ValueError: there is no attention.
    """
    found = list(attentions(model, graph))
    if not found:
        raise ValueError("mimetic needs attention, and the trace finds none in this model")
    for attention in found:
        names = (attention.q, attention.k, attention.v, attention.out)
        problem = _problem(model, attention)
        if problem:
            yield from dict.fromkeys(names, problem).items()
        else:
            yield from _values(model, seed, attention)
    for target in graph.targets.values() if pos else ():
        if target.role == "pos_enc" and target.layout == "tokens":
            yield target.param, sines(target)


def attentions(model: nn.Module, graph: Graph) -> Iterator[Attention]:
    """The attentions of a model: what feeds an `msa` node, what follows it, and the heads that a module knows."""
    before, after = graph.neighbours()
    seen: set[str] = set()
    for i, node in enumerate(graph.nodes):
        if node.primitive != "msa":
            continue
        inputs, outputs = _layers(graph, before, i), _layers(graph, after, i)
        found = _named(inputs)
        if found is None or len(outputs) != 1 or outputs[0] in seen:
            continue
        heads = _heads(model, found[0])
        if heads:
            seen.add(outputs[0])
            yield Attention(*found, outputs[0], heads)


def sines(target: Target) -> Tensor:
    """Sines and cosines of rows and columns, for the positions that a position embedding has; 0 for other tokens."""
    rows, columns = target.grid or (1, 1)
    value = torch.zeros(target.shape)
    part = target.part(value)
    d = part.shape[-1]
    y, x = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    axes = [y.reshape(-1), x.reshape(-1)] if rows > 1 else [x.reshape(-1)]
    n = d // (2 * len(axes))
    omega = 10000.0 ** (-torch.arange(n) / max(1, n))
    waves = [wave for axis in axes for wave in ((axis[:, None] * omega).sin(), (axis[:, None] * omega).cos())]
    part.copy_(nn.functional.pad(torch.cat(waves, 1), (0, d - 2 * n * len(axes))).expand(part.shape))
    return value


def _layers(graph: Graph, neighbours: dict[int, list[int]], node: int) -> list[str]:
    """Weights of the next layers in one direction; norms and biases between are passed."""
    _, found = reached(neighbours[node], neighbours, lambda i: graph.nodes[i].primitive not in ("ln", "bn", "bias"))
    return sorted({graph.nodes[i].param for i in found} - {""})


def _named(inputs: list[str]) -> tuple[str, str, str] | None:
    """Query, key and value among the weights that feed an attention; None where that is not plain."""
    if len(inputs) == 1:
        return (inputs[0],) * 3 if _FUSED.search(inputs[0]) else None
    letters = {match[1]: name for name in inputs if (match := _LETTER.search(_last(name)))}
    return (letters["q"], letters["k"], letters["v"]) if len(inputs) == len(letters) == 3 else None


def _last(name: str) -> str:
    """The name of a weight's layer in its module."""
    return name.removesuffix(".weight").rpartition(".")[2].removesuffix("_weight")


def _heads(model: nn.Module, path: str) -> int:
    """How many heads a module around a weight has; 0 if none names them."""
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        for attribute in ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead"):
            value = getattr(module, attribute, None)
            if type(value) is int and value > 0:
                return value
    return 0


def _problem(model: nn.Module, attention: Attention) -> str | None:
    """Why the weights of an attention do not have the shape for this; None if they do."""
    q, k, v, out = (model.get_parameter(n) for n in attention[:4])
    d, fused = out.shape[0], 3 if attention.q == attention.k else 1
    if any(w.numel() != w.shape[0] * w.shape[1] for w in (q, k, v, out)):
        return "attention by convolutions larger than one pixel"
    rows = out.shape[1]
    if any(w.shape[:2] != (fused * rows, d) for w in (q, k, v)) or rows > d or rows % attention.heads:
        return "attention whose queries, keys and values differ in width"
    return None


def _values(model: nn.Module, seed: int, attention: Attention) -> Iterator[tuple[str, Tensor]]:
    """Weights of one attention, drawn by the name of its projection."""
    out = model.get_parameter(attention.out)
    d, rows = out.shape[:2]
    width = rows // attention.heads
    pairs = [_factors(d, width, _QK, seed, f"{attention.out} {head}") for head in range(attention.heads)]
    q, k = torch.cat([left.T for left, _ in pairs]), torch.cat([right for _, right in pairs])
    projection, v = _factors(d, rows, _VO, seed, attention.out)
    values = {attention.out: projection}
    if attention.q == attention.k:
        values[attention.q] = torch.cat((q, k, v))
    else:
        values |= {attention.q: q, attention.k: k, attention.v: v}
    for name, value in values.items():
        yield name, value.reshape(model.get_parameter(name).shape)


def _factors(d: int, rank: int, scales: tuple[float, float], seed: int, stream: str) -> tuple[Tensor, Tensor]:
    """Two matrices, (d, rank) and (rank, d), whose product is close to alpha Z + beta I."""
    alpha, beta = scales
    z = torch.randn(d, d, generator=seeded_generator(seed, stream)) / math.sqrt(d)
    u, s, vh = torch.linalg.svd(alpha * z + beta * torch.eye(d))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]

"""Small networks whose forward is a function, and graphs written down as text.

A graph is written down as chains, "input > conv c.weight > bias c.bias; input > sum": a node is its primitive with its
parameter or kernel, and a second node of the same name ends in #2.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from timm_ghn_init.graph import Graph

SIZE = (8, 4, 4)  # of the input, unless said otherwise: 16 tokens of 8 channels
Make = Callable[[], nn.Module]


class Net(nn.Module):
    """A model whose forward is a function of the model and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def conv(i: int = 8, o: int = 8, kernel: int = 1, bias: bool = False, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, bias=bias, padding="same", **kwargs)


def linear(i: int = 8, o: int = 8, bias: bool = False) -> nn.Linear:
    return nn.Linear(i, o, bias)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def labels(graph: Graph) -> list[str]:
    count: Counter[str] = Counter()
    result = []
    for node in graph.nodes:
        label = node.primitive
        if node.param:
            label += f" {node.param}"
        elif node.shape:
            label += f" {node.shape[2]}x{node.shape[3]}"
        count[label] += 1
        result.append(label if count[label] == 1 else f"{label}#{count[label]}")
    return result


def assert_graph(graph: Graph, chains: str) -> None:
    expected = set()
    for chain in chains.split(";"):
        nodes = [node.strip() for node in chain.split(">")]
        expected |= set(pairwise(nodes))
    names = labels(graph)
    assert {(names[u], names[v]) for u, v in graph.edges} == expected
    assert set(names) == {node for edge in expected for node in edge}
    assert all(u < v for u, v in graph.edges)

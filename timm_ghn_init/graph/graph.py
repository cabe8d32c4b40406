"""The primitive graph of a network: what goes into a Graph HyperNetwork."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from .distances import shortest_paths

if TYPE_CHECKING:
    from torch import Tensor

# Index order is part of the released checkpoints: row i of `embed.weight` is primitive i.
PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)

Dialect = Literal["ghn2", "ghn3"]
Role = Literal["weight", "norm", "bias", "pos_enc"]


class Node(NamedTuple):
    """One primitive of the network."""

    primitive: str
    param: str  # the parameter that the node stands for, "" where there is none
    shape: tuple[int, ...] | None  # the parameter's, or (1, 1, kh, kw) for pooling


class Target(NamedTuple):
    """One parameter that can be predicted, and the node whose embedding it is decoded from.

    A node may serve several parameters: a norm's weight and bias share one, and so do q, k and v biases that are
    joined before use, each from row `offset` of the node's tensor.
    """

    param: str
    shape: tuple[int, ...]
    node: int
    role: Role
    offset: int = 0
    classifier: bool = False
    kernel: tuple[int, ...] | None = None  # weights stored in another shape than they are used in, e.g. experts
    layout: str = ""  # of a position embedding: "tokens" (.., L, C), "hwc" or "chw"
    grid: tuple[int, int] | None = None  # of a position embedding: rows and columns of its spatial part

    @property
    def whole(self) -> bool:
        """Whether every value is predicted: not those of class and register tokens in a position embedding."""
        return self.layout != "tokens" or self.grid is None or self.grid[0] * self.grid[1] == self.shape[-2]

    def part(self, parameter: "Tensor") -> "Tensor":
        """The values of a parameter that are predicted, as a view: all, or without those of the tokens."""
        if self.whole or self.grid is None:
            return parameter
        return parameter[..., -self.grid[0] * self.grid[1] :, :]


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of primitives, in topological order (node 0 is the input).

    Attributes:
        nodes: the N nodes, each (primitive, param, shape).
        edges: (E, 2) int64, one-hop edges (from, to) as node indices.
        targets: the parameters that a GHN can predict for this network, by name.
        skipped: every other parameter of the network with the reason why it has no prediction.
        dialect: "ghn2" or "ghn3"; they differ in how gates are drawn.
    """

    nodes: tuple[Node, ...]
    edges: np.ndarray
    targets: dict[str, Target]
    skipped: dict[str, str]
    dialect: Dialect = "ghn2"
    input_size: tuple[int, ...] = field(default=(3, 224, 224), compare=False)
    picture: ClassVar["Callable[[Graph], str] | None"] = None  # as SVG; `draw`, which knows graphs, sets it

    def distances(self, cutoff: int = 50) -> np.ndarray:
        """Lengths of the shortest directed paths: the virtual edges of GHN-2.

        Args:
            cutoff: longest path that counts, in edges.

        Returns:
            (N, N) int16, [u, v] is the length of the path from u to v, 0 where there is none (or u is v).
        """
        return shortest_paths(len(self.nodes), self.edges, cutoff)

    def _repr_svg_(self) -> str | None:
        return None if Graph.picture is None else Graph.picture(self)

    def __repr__(self) -> str:
        return (
            f"Graph({len(self.nodes)} nodes, {len(self.edges)} edges, {len(self.targets)} parameters to predict, "
            f"{len(self.skipped)} not, dialect={self.dialect!r})"
        )

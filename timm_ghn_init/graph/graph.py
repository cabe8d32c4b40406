"""The primitive graph of a network: what goes into a Graph HyperNetwork."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

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
KINDS = ("conv", "convnext", "attention")  # of networks, see `Graph.kind`
Role = Literal["weight", "norm", "bias", "pos_enc"]


class Node(NamedTuple):
    """One primitive of the network."""

    primitive: str
    param: str  # the parameter that the node stands for, "" where there is none
    shape: tuple[int, ...] | None  # the parameter's, or (1, 1, kh, kw) for pooling


class Place(NamedTuple):
    """The place of a position embedding's values: those that the forward uses, without those of class tokens."""

    axes: tuple[int, ...]  # the dimension of positions, or those of rows and columns
    channels: int  # the dimension of channels
    grid: tuple[int, int]  # rows and columns
    box: tuple[tuple[int, int], ...]  # first index and how many, for each dimension of the parameter


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
    place: Place | None = None  # of a position embedding
    scale: float = 1.0  # the layer computes with this times the parameter: what is predicted is for the product

    @property
    def whole(self) -> bool:
        """Whether every value is predicted: of a position embedding only those that are used, without tokens."""
        return self.place is None or self.shape == tuple(count for _, count in self.place.box)

    @property
    def numel(self) -> int:
        """How many values are predicted."""
        return math.prod(self.shape if self.place is None else (count for _, count in self.place.box))

    @property
    def grid(self) -> tuple[int, int] | None:
        """For a position embedding: rows and columns."""
        return None if self.place is None else self.place.grid

    @property
    def layout(self) -> str:
        """For a position embedding: "tokens" (one dimension of positions), "hwc" or "chw"."""
        if self.place is None:
            return ""
        if len(self.place.axes) == 1:
            return "tokens"
        return "chw" if self.place.channels < self.place.axes[0] else "hwc"

    def part(self, parameter: "Tensor") -> "Tensor":
        """The values of a parameter that are predicted, as a view."""
        for dim, (first, count) in enumerate(self.place.box if self.place is not None else ()):
            parameter = parameter.narrow(dim, first, count)
        return parameter


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
    picture: ClassVar["Callable[[Graph], str | None] | None"] = None  # as SVG; `draw`, which knows graphs, sets it

    @property
    def kind(self) -> str:
        """A name in `KINDS`: "attention", "convnext" (layer norms and no attention, also an MLP-Mixer), or "conv"."""
        primitives = {node.primitive for node in self.nodes}
        if "msa" in primitives:
            return "attention"
        return "convnext" if "ln" in primitives and "bn" not in primitives else "conv"

    def neighbours(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """The nodes before each node, and those after it."""
        before: dict[int, list[int]] = {i: [] for i in range(len(self.nodes))}
        after: dict[int, list[int]] = {i: [] for i in before}
        for u, v in self.edges.tolist():
            before[v].append(u)
            after[u].append(v)
        return before, after

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


def reached(
    starts: Iterable[int], neighbours: Mapping[int, Iterable[int]], stops: Callable[[int], bool]
) -> tuple[set[int], set[int]]:
    """The nodes that a search passes, and those at which it stops, the starts included."""
    passed, stopped, stack = set[int](), set[int](), list(starts)
    while stack:
        node = stack.pop()
        if stops(node):
            stopped.add(node)
        elif node not in passed:
            passed.add(node)
            stack += neighbours[node]
    return passed, stopped


def shortest_paths(n: int, edges: np.ndarray, cutoff: int = 50) -> np.ndarray:
    """Lengths of the shortest directed paths of a graph whose nodes are in topological order.

    In that order one pass is enough, a row for each node: whoever reaches v reaches it through a predecessor of v.
    That is N vector operations, where a general algorithm would search from each node.

    Args:
        n: number of nodes.
        edges: (E, 2) integers (from, to), each with from < to.
        cutoff: longest path that counts.

    Returns:
        (n, n) int16, [u, v] is the path length from u to v, 0 where there is none up to `cutoff`.
    """
    far = np.int16(cutoff + 1)
    to = np.full((n, n), far, dtype=np.int16)  # to[v, u]: rows are contiguous, so v's own row is what is written
    predecessors: list[list[int]] = [[] for _ in range(n)]
    for u, v in edges.tolist():
        predecessors[v].append(u)
    one = np.int16(1)
    for v, sources in enumerate(predecessors):
        if len(sources) == 1:
            np.add(to[sources[0], :v], one, out=to[v, :v])
        elif sources:
            np.add(to[sources, :v].min(0), one, out=to[v, :v])
        to[v, v] = 0
    to[to >= far] = 0
    return np.ascontiguousarray(to.T)

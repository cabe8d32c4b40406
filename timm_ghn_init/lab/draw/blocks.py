"""Blocks and stages of a network, by the names of its parameters, and equal ones folded into one."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...graph import Graph

Places = tuple[str, ...]  # of a node: its stage, its block, the blocks within; () where it is in none

_JOINS = ("sum", "concat", "msa", "cse")  # end a block; pooling may lie between two
_MOST_BACK = 2  # blocks: a cell of NASNet reads the last but one as well


def places(graph: Graph) -> list[Places]:
    """The stage and the blocks that each node lies in, outermost first.

    For a node without a parameter, its neighbours decide: a join ends the block that comes before it, and what
    lies between two nodes of a block, by the edges or in the order of the network, lies in it.
    """
    named = [_places(node.param) for node in graph.nodes]
    with_parameter = [v for v, node in enumerate(graph.nodes) if node.param]
    before: list[int] = [-1] * len(named)
    after: list[int] = [len(named)] * len(named)
    for u, v in graph.edges.tolist():
        before[v], after[u] = max(u, before[v]), min(v, after[u])
    for v, node in enumerate(graph.nodes):
        if node.param or before[v] < 0:
            continue
        i = bisect_left(with_parameter, v)
        around = [named[w] for w in with_parameter[max(0, i - 1) : i + 1]]
        follows = named[after[v]] if after[v] < len(named) else ()
        joined = named[before[v]] if node.primitive in _JOINS else _common(named[before[v]], follows)
        named[v] = max(joined, _common(*around) if len(around) == 2 else (), key=len)
    for v, node in enumerate(graph.nodes):  # a branch that is pooling alone
        w = after[v]
        if not node.param and node.primitive not in _JOINS and w < len(named) and graph.nodes[w].primitive in _JOINS:
            named[v] = max(named[v], named[w], key=len)
    return named


def _places(param: str) -> Places:
    """("stages.2", "stages.2.blocks.5") of "stages.2.blocks.5.mlp.fc1.weight": up to each module that is one of a row.

    Such a module is called by a number, or by a word with a number behind ("layer3", "denselayer7"); the latter counts
    within another only directly below it. The layer itself, the last module of all, is none.
    """
    parts = param.split(".")[:-2]
    found: list[str] = []
    last = -1
    for i, part in enumerate(parts):
        if part.isdigit() or (re.fullmatch(r"[A-Za-z_]+\d+", part) and (not found or i == last + 1)):
            found.append(".".join(parts[: i + 1]))
            last = i
    return tuple(found)


def _common(a: Places, b: Places) -> Places:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


class Folded(NamedTuple):
    """A graph in which rows of equal blocks are drawn once.

    Attributes:
        graph: without the others.
        places: of its nodes.
        times: by the name of a block, how many it stands for.
    """

    graph: Graph
    places: list[Places]
    times: dict[str, int]


def fold(graph: Graph) -> Folded:
    """Fold rows of blocks that have the same nodes and edges, inside and from what comes before, into the first."""
    named, times = places(graph), dict[str, int]()
    for depth in range(max(map(len, named), default=0)):
        for row in reversed(list(_rows_of_equal_blocks(graph, named, depth))):
            graph, named = _without_the_others(graph, named, row)
            times[row.name] = row.times
    return Folded(graph, named, times)


class _Row(NamedTuple):
    """`times` equal blocks, one after the other, each of `length` nodes."""

    name: str
    start: int
    length: int
    times: int


def _rows_of_equal_blocks(graph: Graph, named: list[Places], depth: int) -> Iterator[_Row]:
    blocks = list(_blocks(named, depth))
    signatures = [_signature(graph, start, end) for _, start, end in blocks]
    first = 0
    for i in range(1, len(blocks) + 1):
        joined = i < len(blocks) and signatures[i] == signatures[first] and _is_next(blocks[i - 1], blocks[i])
        if joined:
            continue
        name, start, end = blocks[first]
        row = _Row(name, start, end - start, i - first)
        if row.times > 1 and _is_closed(graph, row):
            yield row
        first = i


def _blocks(named: list[Places], depth: int) -> Iterator[tuple[str, int, int]]:
    """Name, first node and end of each block of a depth whose nodes follow one another."""
    bounds: dict[str, list[int]] = {}
    for v, p in enumerate(named):
        if len(p) > depth:
            bounds.setdefault(p[depth], []).append(v)
    for name, nodes in bounds.items():
        if nodes[-1] - nodes[0] + 1 == len(nodes):
            yield name, nodes[0], nodes[-1] + 1


def _is_next(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    """Whether a block comes right after another of the same list of modules."""
    stem = [re.sub(r"\d+$", "", name) for name, _, _ in (a, b)]
    return stem[0] == stem[1] and a[2] == b[1]


def _signature(graph: Graph, start: int, end: int) -> tuple[object, ...]:
    """Nodes and edges of a block, counted from its start."""
    v = graph.edges[:, 1]
    own = graph.edges[(v >= start) & (v < end)] - start
    return (
        tuple((n.primitive, n.shape) for n in graph.nodes[start:end]),
        tuple(sorted(map(tuple, own.tolist()))),
    )


def _is_closed(graph: Graph, row: _Row) -> bool:
    """Whether what comes behind is reached from the last blocks of the row only."""
    end, near = row.start + row.times * row.length, row.start + max(0, row.times - _MOST_BACK) * row.length
    return not any(row.start <= u < near and v >= end for u, v in graph.edges.tolist())


def _without_the_others(graph: Graph, named: list[Places], row: _Row) -> tuple[Graph, list[Places]]:
    second, end = row.start + row.length, row.start + row.times * row.length
    gone = end - second

    def new(v: int) -> int:
        if v < second:
            return v
        return row.start + (v - row.start) % row.length if v < end else v - gone

    edges = [(u, v) for u, v in graph.edges.tolist() if not second <= v < end]
    kept = sorted({(new(u), new(v)) for u, v in edges}, key=lambda e: (e[1], e[0]))
    nodes = (*graph.nodes[:second], *graph.nodes[end:])
    folded = replace(graph, nodes=nodes, edges=np.array(kept, dtype=np.int64).reshape(-1, 2), targets={}, skipped={})
    return folded, [*named[:second], *named[end:]]


def runs(row: list[int], named: list[Places], depth: int) -> list[tuple[str, int, int]]:
    """Name, first row and end of each block of a depth that has its rows for itself."""
    inside: list[set[str]] = [set() for _ in range(max(row) + 1)]
    for r, p in zip(row, named, strict=True):
        inside[r].add(p[depth] if len(p) > depth else "")
    found: list[tuple[str, int, int]] = []
    for r, names in enumerate(inside):
        name = next(iter(names)) if len(names) == 1 else ""
        if found and found[-1][0] == name and found[-1][2] == r:
            found[-1] = (name, found[-1][1], r + 1)
        else:
            found.append((name, r, r + 1))
    pieces = Counter(name for name, _, _ in found)
    shared = {name for names in inside if len(names) > 1 for name in names}
    return [(name, a, b) for name, a, b in found if name and pieces[name] == 1 and name not in shared]

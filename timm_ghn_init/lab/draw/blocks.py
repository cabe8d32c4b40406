"""Blocks and stages of a network, by the names of its parameters, and equal ones folded into one."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
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
    """The places that both lie in; an inner name contains the outer ones."""
    return tuple(x for x, y in zip(a, b, strict=False) if x == y)


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
        for name, start, length, number in reversed(list(_rows_of_equal_blocks(graph, named, depth))):
            graph, named = _first_alone(graph, named, start, length, number)
            times[name] = number
    return Folded(graph, named, times)


def _rows_of_equal_blocks(graph: Graph, named: list[Places], depth: int) -> Iterator[tuple[str, int, int, int]]:
    """For each row: name and first node of its first block, nodes in a block, number of blocks."""
    nodes_of = defaultdict(list)
    for v, p in enumerate(named):
        if len(p) > depth:
            nodes_of[p[depth]].append(v)
    blocks = [(name, vs[0], len(vs)) for name, vs in nodes_of.items() if vs[-1] - vs[0] + 1 == len(vs)]

    def kind(numbered: tuple[int, tuple[str, int, int]]) -> object:
        """The properties that the blocks of a row share; by the last one, each follows directly upon another."""
        i, (name, start, length) = numbered
        return re.sub(r"\d+$", "", name), _signature(graph, start, length), start - i * length

    for _, row in groupby(enumerate(blocks), kind):
        (_, (name, start, length)), *others = row
        number = len(others) + 1
        end, near = start + number * length, start + (number - _MOST_BACK) * length
        if others and not any(start <= u < near and v >= end for u, v in graph.edges.tolist()):
            yield name, start, length, number


def _signature(graph: Graph, start: int, length: int) -> object:
    """Nodes and edges of a block, counted from its start."""
    v = graph.edges[:, 1]
    own = graph.edges[(v >= start) & (v < start + length)] - start
    return [(n.primitive, n.shape) for n in graph.nodes[start : start + length]], sorted(own.tolist())


def _first_alone(graph: Graph, named: list[Places], start: int, length: int, number: int) -> tuple[Graph, list[Places]]:
    """The graph without the others of a row; their edges to what comes behind begin in the first."""
    second, end = start + length, start + number * length

    def new(v: int) -> int:
        if v < second:
            return v
        return start + (v - start) % length if v < end else v - (end - second)

    kept = {(new(u), new(v)) for u, v in graph.edges.tolist() if not second <= v < end}
    edges = np.array(sorted(kept, key=lambda e: (e[1], e[0])), dtype=np.int64).reshape(-1, 2)
    nodes = (*graph.nodes[:second], *graph.nodes[end:])
    return replace(graph, nodes=nodes, edges=edges, targets={}, skipped={}), [*named[:second], *named[end:]]


def runs(row: list[int], named: list[Places], depth: int) -> list[tuple[str, int, int]]:
    """Name, first row and end of each block of a depth that has its rows for itself."""
    rows_of = defaultdict(set)
    for r, p in zip(row, named, strict=True):
        rows_of[p[depth] if len(p) > depth else ""].add(r)
    owners = Counter(r for rows in rows_of.values() for r in rows)
    return [
        (name, min(rows), max(rows) + 1)
        for name, rows in rows_of.items()
        if name and max(rows) - min(rows) + 1 == len(rows) and all(owners[r] == 1 for r in rows)
    ]

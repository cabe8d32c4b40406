"""Virtual edges: shortest paths between all nodes of a directed acyclic graph."""

import numpy as np


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
    for v, sources in enumerate(predecessors):
        row = to[v]
        for u in sources:
            np.minimum(row[:v], to[u, :v] + np.int16(1), out=row[:v])
        row[v] = 0
    to[to >= far] = 0
    return np.ascontiguousarray(to.T)

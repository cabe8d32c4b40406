"""From recorded operations to the primitive graph: contraction, dialect, pruning."""

from dataclasses import dataclass, field

from .graph import Dialect

NO_OPS: frozenset[int] = frozenset()


@dataclass
class Op:
    """One recorded operation: a candidate for a node.

    `kind` is a primitive, or "gate": a multiplication of two things that both depend on the input, of which
    `features` is the larger one's origin. `sources` are the operations that feed it.
    """

    kind: str
    sources: frozenset[int]
    param: str = ""
    shape: tuple[int, ...] | None = None
    features: frozenset[int] = NO_OPS
    channels: int | None = None  # of its output, to tell spatial dimensions from the channel dimension
    grid: tuple[int, int] | None = None  # spatial size of its output
    scores: bool = False  # of a sum: of attention scores, and `features` are those terms that are none yet
    part: int | None = None  # of a concatenation of equal tensors: how many values each has
    free: bool = False  # whether it does not depend on the input
    contracted: bool = field(default=False)


def reduce(ops: list[Op], outputs: frozenset[int], dialect: Dialect) -> tuple[list[int], list[tuple[int, int]]]:
    """Contract what is no primitive and drop what does not reach the outputs.

    Args:
        ops: recorded operations in topological order; 0 is the input.
        outputs: the operations that the network's outputs come from.
        dialect: how gates are drawn.

    Returns:
        The operations that become nodes, in order, and the edges between them, both as indices into `ops`.
    """
    consumers = _consumers(ops)
    _absorb_attention(ops, consumers)
    _absorb_sums(ops, consumers)
    if dialect == "ghn3":
        _draw_gates(ops)
    origin: list[frozenset[int]] = []  # what each operation comes down to: itself, or its sources' origins
    sources: list[frozenset[int]] = []
    for index, op in enumerate(ops):
        resolved = frozenset().union(*(origin[s] for s in op.sources)) if op.sources else NO_OPS
        sources.append(resolved)
        origin.append(resolved if _is_contracted(op, resolved) else frozenset((index,)))
    kept = _reaching(sources, frozenset().union(*(origin[o] for o in outputs)))
    kept |= {0}
    order = sorted(kept)
    edges = [(s, v) for v in order for s in sorted(sources[v])]
    # An operation on constants alone is connected to the input as well: GHNs have only seen graphs with one source.
    edges += [(0, v) for v in order if not sources[v] and v and ops[v].kind != "pos_enc"]
    return order, edges


def _is_contracted(op: Op, sources: frozenset[int]) -> bool:
    if op.kind in ("sum", "concat"):
        return op.contracted or len(sources) < 2
    return op.contracted or op.kind == "gate"


def ancestors(ops: list[Op], of: frozenset[int]) -> set[int]:
    """These operations and all that they depend on."""
    return _reaching([op.sources for op in ops], of)


def _reaching(sources: list[frozenset[int]], outputs: frozenset[int]) -> set[int]:
    """Everything that the outputs depend on."""
    seen, stack = set(outputs), list(outputs)
    while stack:
        new = sources[stack.pop()] - seen
        seen |= new
        stack.extend(new)
    return seen


def _consumers(ops: list[Op]) -> list[list[int]]:
    consumers: list[list[int]] = [[] for _ in ops]
    for index, op in enumerate(ops):
        for s in op.sources:
            consumers[s].append(index)
    return consumers


def _absorb_attention(ops: list[Op], consumers: list[list[int]]) -> None:
    """Attention in two products, softmax(q) (softmax(k)^T v), is one node: the outer one."""
    for op, after in zip(ops, consumers, strict=True):
        if op.kind == "msa" and after and all(ops[a].kind == "msa" for a in after):
            op.contracted = True


def _absorb_sums(ops: list[Op], consumers: list[list[int]]) -> None:
    """x + a (y - x) is one sum of x and y, as is (1 - a) x + a y."""
    for index, op in enumerate(ops):
        if op.kind == "sum" and len(consumers[index]) == 1:
            outer = ops[consumers[index][0]]
            if outer.kind == "sum" and outer.sources - {index} <= op.sources:
                op.contracted = True


def _draw_gates(ops: list[Op]) -> None:
    """GHN-3: a gate that pools the features it multiplies is a `cse` node; the pooling inside it is not drawn."""
    for op in ops:
        if op.kind != "gate":
            continue
        pools = _pools_between(ops, op.features, op.sources - op.features or op.sources)
        if pools:
            op.kind = "cse"
            for pool in pools:
                ops[pool].contracted = True


def _pools_between(ops: list[Op], features: frozenset[int], gate: frozenset[int]) -> set[int]:
    """The global poolings of `features` that the gate branch comes from."""
    pools: set[int] = set()
    seen, stack = set(gate), list(gate)
    while stack:
        index = stack.pop()
        op = ops[index]
        if op.kind == "glob_avg" and op.sources <= features:
            pools.add(index)
            continue
        new = op.sources - seen - features
        seen |= new
        stack.extend(new)
    return pools

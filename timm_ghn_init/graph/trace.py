"""Model -> Graph: record one forward pass on the meta device, reduce it, and say what can be predicted."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.checks import one_of
from .adapters import leave_adapters
from .classifier import Output, by_place, declared_classifier, last_of
from .graph import Dialect, Graph, Node, Target
from .inputs import Inputs, attribute
from .positions import united
from .record import TraceError, record
from .recorder import Recorder
from .reduce import Op, ancestors, reduce
from .tape import PICKED, Use
from .unsupported import refuse_unsupported

UNUSED = "not used by the forward pass in eval mode"
UNREACHED = "not reached by the forward pass in eval mode, which depends on the values of its inputs (example_inputs=)"
PUT_OUT = "an output of the model by itself (the scale of logits, say)"


_DIALECT = one_of("ghn2", "ghn3")


def trace(
    model: nn.Module,
    input_size: int | Sequence[Any] | None = None,
    dialect: Dialect = "ghn2",
    classifier: Iterable[str] | None = None,
    *,
    example_inputs: Any = None,
) -> Graph:
    """Read the primitive graph off a model.

    One forward pass in eval mode with every tensor on the meta device: no arithmetic, no memory. A forward that needs
    real values is run once on the CPU instead, with a log line. The model is left as it was.

    Args:
        model: maps a batch of images, or what else it takes, to logits or features.
        input_size: (C, H, W), or (H, W), or one int, or (features,), or a list of those for several inputs. Default:
            what the model says of itself (timm's `pretrained_cfg`, `config.image_size`, the convolution that the input
            goes into), then a few usual sizes.
        dialect: "ghn2" or "ghn3", see `Graph`. A GHN knows its own: `ghn.dialect`.
        classifier: names of the modules that yield the logits. Default: timm's `get_classifier()`, else the last
            layers of the graph, where an output is a matrix of logits. For layers in a row, the last.
        example_inputs: what the forward is called with instead of images of `input_size`: a tensor, a tuple of
            positional arguments, or a dict of keyword arguments. Their values matter only to a forward that reads them.

    Returns:
        The graph, nodes in topological order.

    Raises:
        TraceError: the forward fails with these inputs, or nothing in the model was recognised.
        ValueError: a scripted, exported, lazy, quantised or offloaded model, or FSDP1, in whole or in part; both
            `input_size` and `example_inputs`, or no such inputs.

    Example:
        >>> graph = trace(timm.create_model("test_resnet"))
        >>> graph.nodes[1]
        Node(primitive='conv', param='conv1.0.weight', shape=(16, 3, 3, 3))
        >>> graph.skipped
        {}
    """
    refuse_unsupported(model, model_name(model))
    _DIALECT.check("dialect", dialect)
    return trace_supported(model, input_size, dialect, classifier, example_inputs=example_inputs)


def trace_supported(
    model: nn.Module,
    input_size: int | Sequence[Any] | None,
    dialect: Dialect,
    classifier: Iterable[str] | None = None,
    *,
    prepare: Callable[[], Mapping[str, Tensor] | None] | None = None,
    real: bool = True,
    example_inputs: Any = None,
) -> Graph:
    """`trace` for a model that `refuse_unsupported` has let pass.

    Args:
        prepare: called before a forward pass on real values, for a model that does not have all of its values yet:
            gives it those, or returns some by name. The rest are zero.
        real: whether there may be a forward pass on real values.
    """
    name = model_name(model)
    if next(model.parameters(), None) is None:
        raise TraceError(f"{name} has no parameters: there is nothing to initialise.")
    with torch.inference_mode(False):  # in which operators are not seen
        recorder, inputs = record(model, name, input_size, example_inputs, prepare, real)
    return _build(recorder, inputs, dialect, declared_classifier(model, recorder.tape.parameters, classifier))


def model_name(model: nn.Module) -> str:
    """The name of a model in messages: its timm architecture, or its class."""
    config = attribute(model, "pretrained_cfg")
    architecture = config.get("architecture") if isinstance(config, dict) else None
    return architecture or type(model).__name__


def _build(recorder: Recorder, inputs: Inputs, dialect: Dialect, declared: set[str] | None) -> Graph:
    """The graph of what was recorded, and for each parameter the node that it is predicted from, or why it is not."""
    tape = recorder.tape
    ops, parameters = tape.ops, tape.parameters
    leave_adapters(tape, recorder.named_modules, model_name(recorder.model))
    order, edges = reduce(ops, frozenset[int]().union(*(value.origin for _, _, value in recorder.outputs)), dialect)
    index = {op: node for node, op in enumerate(order)}
    nodes = tuple(Node(op.kind, op.param, op.shape) for op in (ops[i] for i in order))
    pairs = np.array([(index[u], index[v]) for u, v in edges], dtype=np.int64).reshape(-1, 2)
    if declared is None:
        outputs = [
            Output(name, shape, _nodes_of(value.origin, ops, index), value.activated, value.attention)
            for name, shape, value in recorder.outputs
        ]
        heads = by_place(outputs, inputs.batch, nodes, pairs, [ops[i].channels for i in order])
    else:
        heads = last_of(declared, nodes, pairs)
    targets = {}
    for name, parameter in parameters.items():
        uses = [u for u in tape.uses.get(name, ()) if u.op in index]
        if not parameter.numel():
            tape.explain(name, "has no values: one of its sizes is zero")
        elif uses:
            use = uses[0]._replace(place=united([u.place for u in uses]))  # of a layer called twice the first
            targets[name] = _target(name, tuple(parameter.shape), use, ops[use.op], index[use.op], name in heads)
    if not targets:
        raise TraceError(
            f"{model_name(recorder.model)}: none of its {len(parameters)} parameters was recognised as a convolution, "
            "linear layer, norm or position embedding."
        )
    picked = ancestors(ops, tape.picks)
    for name in parameters:
        if name not in targets and any(use.op in picked for use in tape.uses.get(name, ())):
            tape.explain(name, PICKED)
    for name in frozenset[str]().union(*(value.leaves for _, _, value in recorder.outputs if not value.origin)):
        tape.explain(name, PUT_OUT)
    unused = UNREACHED if recorder.has_values else UNUSED
    skipped = {name: tape.reasons.get(name, unused) for name in parameters if name not in targets}
    return Graph(nodes, pairs, targets, skipped, dialect, inputs.size)


def _nodes_of(origin: frozenset[int], ops: Sequence[Op], index: dict[int, int]) -> tuple[int, ...]:
    """The nodes that operations come down to, those that are none by what feeds them."""
    found, stack = set(), set(origin)
    while stack:
        op = stack.pop()
        if op in index:
            found.add(index[op])
        else:
            stack |= ops[op].sources
    return tuple(sorted(found))


def _target(name: str, shape: tuple[int, ...], use: Use, op: Op, node: int, head: bool) -> Target:
    head = head and op.kind in ("conv", "bias")  # not the norm of a head that has one
    kernel = use.kernel
    if use.role in ("norm", "bias") and kernel is None and len(shape) > 1:
        kernel = (math.prod(shape),)  # a vector, written as (1, C, 1, 1) or so
    return Target(name, shape, node, use.role, use.offset, head, kernel, use.place, use.scale)

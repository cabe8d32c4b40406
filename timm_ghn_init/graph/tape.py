"""The record of a forward pass: operations, values of tensors, uses of parameters."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .graph import Place, Role
from .provenance import Provenance
from .reduce import NO_OPS, Op
from .values import CONSTANT, Value, union

PICKED = "decides on an index or a mask only, and passes no features on"


class Use(NamedTuple):
    """How a parameter is used: the operation and the tensor of that operation which it is, or is a part of."""

    op: int
    role: Role
    shape: tuple[int, ...]
    offset: int = 0
    kernel: tuple[int, ...] | None = None
    place: Place | None = None
    scale: float = 1.0  # a constant that the layer multiplies the parameter, its input or its output by


class Tape:
    """Operations in the order in which they ran, and what is known of the tensors between them.

    Attributes:
        ops: the operations; 0 is the input.
        parameters: of the model, by name; a shared one by its first.
        uses: of each parameter, the operations that predict it.
        reasons: of parameters that were seen in a place that is not predicted.
        picks: operations that indices or masks were computed from.
        batch: how many examples the model is run on.
        provenance: of tensors that are computed from parameters and constants.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]], batch: int = 2) -> None:
        self.ops = [Op("input", NO_OPS)]
        self.parameters: dict[str, nn.Parameter] = {}
        self._owners: dict[int, nn.Module] = {}
        for path, module in modules:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in self._owners:
                        self.parameters[f"{path}.{key}" if path else key] = parameter
                    self._owners[id(parameter)] = module
        self.batch = batch
        self.uses: dict[str, list[Use]] = {}
        self.reasons: dict[str, str] = {}
        self.picks: frozenset[int] = NO_OPS
        self.deltas: list[frozenset[str]] = []  # parameters whose product is added to a weight
        self.composed: set[int] = set()  # layers whose weight is computed from several smaller parameters
        self.rotations: frozenset[str] = frozenset()  # parameters that orthogonal matrices are computed from
        self.rescaled: frozenset[str] = frozenset()  # those of weights that are computed and then scaled by others
        self.provenance = Provenance()
        self.stand_ins: dict[str, Tensor] = {}
        self.layer: nn.Module | None = None  # that is running and holds one weight, which it may scale
        self._values: dict[int, tuple[int, Value]] = {}  # by id of the tensor: (time, value)
        self._writes: dict[int, tuple[int, Value]] = {}  # by id of the storage: what was last written in place
        self._alive: list[Any] = []  # an id is unique as long as what it names is alive
        self._time = 0

    # -- values --------------------------------------------------------------------------------------------------

    def assign(self, tensor: Tensor, value: Value) -> None:
        self._time += 1
        if id(tensor) not in self._values:
            self._alive.append(tensor if tensor.is_meta else self._watched(tensor))
        self._values[id(tensor)] = (self._time, value)

    def _watched(self, tensor: Tensor) -> Any:
        """A tensor with values is let go with what is known of it: all of a forward pass together can be too much."""
        key = id(tensor)
        return weakref.ref(tensor, lambda _: self._values.pop(key, None))

    def value(self, tensor: Any) -> Value:
        """The value of a tensor, writes through other views of its memory included."""
        if not isinstance(tensor, Tensor):
            return CONSTANT
        time, value = self._values.get(id(tensor), (0, CONSTANT))
        if self._writes:
            written, other = self._writes.get(tensor.untyped_storage()._cdata, (0, CONSTANT))
            if written > time:
                return union((value, other))
        return value

    def features(self, tensor: Any) -> Value:
        """The value of a layer's input. Spikes and other decisions that a layer takes are features."""
        value = self.value(tensor)
        if value.origin or value.leaves or not value.decided_by:
            return value
        return Value(value.decided_by, activated=True)

    def write(self, tensor: Tensor, value: Value) -> None:
        """Note that an operation has written to a tensor in place."""
        if self.value(tensor) != value:
            self.assign(tensor, value)
            self._writes[tensor.untyped_storage()._cdata] = (self._time, value)

    def contract(self, name: str, tensors: list[Tensor]) -> Value:
        """An operation that is no primitive: its output stands for its inputs."""
        merged = self.merge([self.value(t) for t in tensors], f"an operand of {name.removeprefix('aten::')}")
        if "linalg_" in name and not merged.origin:  # solve, inverse, matrix exponential
            self.rotations |= merged.leaves
        return merged if merged.norm is None else merged._replace(norm=None)

    def merge(self, values: Sequence[Value], reason: str) -> Value:
        """Union of values. Parameters that meet something that depends on the input are not predicted from there."""
        if len(values) < 2:
            return values[0] if values else CONSTANT
        merged = union(values)
        if merged.origin and merged.leaves:
            for value in values:
                if not value.origin:
                    for name in value.leaves:
                        self.explain(name, reason)
            merged = merged._replace(leaves=frozenset().union(*(v.leaves for v in values if v.origin)))
        return merged

    def derivative(self, tensors: list[Tensor]) -> Value:
        """An operation of a backward pass, where a model puts out gradients: it adds no layers to those it is of."""
        values = [self.value(t) for t in tensors]
        layers = {use.op for value in values for name in value.leaves for use in self.uses.get(name, ())}
        return Value(NO_OPS.union(layers, *(value.origin for value in values)), activated=True)

    def pick(self, value: Value) -> None:
        """Something that is no feature was computed from a value: an index, a mask, a decision."""
        self.picks |= value.origin
        for name in value.leaves:
            self.explain(name, PICKED)

    def explain(self, name: str, reason: str) -> None:
        """Say why a parameter is not predicted. The first reason counts, unless it was only read for a decision."""
        if self.reasons.get(name, PICKED) == PICKED:
            self.reasons[name] = reason

    # -- operations ----------------------------------------------------------------------------------------------

    def add(self, op: Op) -> frozenset[int]:
        known = [self.ops[s] for s in sorted(op.sources)]
        if op.channels is None and known:
            channels = [k.channels for k in known]
            if op.kind == "concat":
                op.channels = sum(c for c in channels if c) if all(channels) else None
            else:
                op.channels = channels[0] if len(set(channels)) == 1 else None
        for k in known:
            op.grid = op.grid or k.grid
        op.free = all(k.free for k in known)
        self.ops.append(op)
        return frozenset((len(self.ops) - 1,))

    def is_free(self, origin: frozenset[int]) -> bool:
        """Whether none of these operations depends on the input: they are computed from parameters and constants."""
        return all(self.ops[index].free for index in origin)

    def use(self, value: Value, op: int, role: Role, shape: tuple[int, ...], main: str, **kwargs: Any) -> None:
        """Note that the tensor with this value is what operation `op` predicts: which parameters does it hold?"""
        parts = value.parts or ((main, 0),)
        for name, offset in parts:
            self.uses.setdefault(name, []).append(Use(op, role, shape, offset, **kwargs))
        for name in value.leaves.difference([n for n, _ in parts]):
            self.explain(name, f"folded into a {role} that is predicted without it")

    def scale_output(self, value: Value, tensor: Tensor, constant: float) -> Value:
        """The value of features times a constant, inside of a module that holds one weight.

        After the layer the constant belongs to its weight and bias; before, it is kept for them.
        """
        last = [index for index in value.origin if self.owner(self.ops[index].param) is self.layer]
        if not last:
            return value._replace(scale=value.scale * constant)
        op = self.ops[last[0]]
        if len(value.origin) == 1 and not value.activated and op.channels in (tensor.shape[-1], *tensor.shape[1:2]):
            for name in {op.param, *(self.ops[i].param for i in op.sources if op.kind == "bias")}:
                uses = self.uses.get(name, [])
                uses[:] = [u._replace(scale=u.scale * constant) if u.op in (last[0], *op.sources) else u for u in uses]
        return value

    def withdraw(self, name: str) -> None:
        """The use of a parameter is no layer."""
        self.uses.pop(name, None)

    def main_leaf(self, value: Value, numel: int) -> str:
        """Among the parameters that a weight is computed from, the one that is the weight.

        That is the one as large as the tensor that is used, else the largest; of several no mask.
        """
        if len(value.leaves) == 1:
            return next(iter(value.leaves))

        def rank(name: str) -> tuple[Any, ...]:
            size = self.parameters[name].numel()
            return size == numel, not is_mask(self.parameters[name]), size, name.endswith("weight")

        return max(sorted(value.leaves), key=rank)

    def numbers(self, tensor: Tensor, name: str) -> list[Tensor]:
        """As `Provenance.numbers`, of a parameter by name."""
        return self.provenance.numbers(tensor, self.stand_ins[name])

    def owner(self, name: str) -> nn.Module | None:
        return self._owners.get(id(self.parameters[name])) if name else None

    def node_shape(self, value: Value, main: str, used: Tensor) -> tuple[int, ...]:
        """The parameter's own shape, or the joined tensor's if it is one of several."""
        shape = tuple(self.parameters[main].shape)
        if not value.parts:
            return shape
        if used.dim() == 1:
            return tuple(used.shape)
        rows = max(offset + len(self.parameters[name]) for name, offset in value.parts)  # `used` may be transposed
        return (rows, *shape[1:])

    def siblings(self, value: Value) -> Iterable[str]:
        """All parameters of the modules that those of a value belong to."""
        owners = {id(self.owner(n)) for n in value.leaves}
        return [n for n in self.parameters if id(self.owner(n)) in owners] if owners else ()


def is_mask(parameter: Tensor) -> bool:
    """Whether a parameter is frozen and, as far as its values are known, nothing but zeros and ones."""
    if parameter.requires_grad:
        return False
    return parameter.is_meta or bool(((parameter == 0) | (parameter == 1)).all())


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors among arguments, and in lists, which collectives nest."""
    found: list[Tensor] = []
    for a in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (list, tuple)):
            found.extend(tensors_of(a, {}))
    return found


def written_by(arguments: Iterable[tuple[int, str]], args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes to, by position and name of those arguments."""
    return tensors_of([kwargs.get(name, args[i] if i < len(args) else None) for i, name in arguments], {})


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a vector, whichever way it was made to broadcast."""
    return tuple(s for s in shape if s > 1) or (1,)

"""One forward pass, every operation recorded as it is dispatched.

The table in `primitives.py` says what an operator is; for each kind of entry there is one method here.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import primitives as table
from .graph import Role
from .isolate import isolated
from .reduce import NO_OPS, Op
from .shapes import infer
from .values import CONSTANT, Value, joined, union


class ForwardError(Exception):
    """The model's own code raised; the message says what."""


class Use(NamedTuple):
    """How a parameter is used: the operation and the tensor of that operation which it is, or is a part of."""

    op: int
    role: Role
    shape: tuple[int, ...]
    offset: int = 0
    kernel: tuple[int, ...] | None = None


class Recorder(TorchDispatchMode):
    """Runs a model and writes down its operations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.ops = [Op("input", NO_OPS)]
        self.parameters = dict(model.named_parameters())
        self.modules = list(model.modules())
        self.owners = {id(p): m for m in self.modules for p in m._parameters.values() if p is not None}
        self.uses: dict[str, list[Use]] = {}
        self.reasons: dict[str, str] = {}  # of parameters seen in a place that is not predicted
        self._values: dict[int, tuple[int, Value]] = {}  # by id of the tensor: (time, value)
        self._writes: dict[int, tuple[int, Value]] = {}  # by id of the storage: what was last written in place
        self._alive: list[Any] = []  # ids stay unique as long as what they name is alive
        self._time = 0
        self._fault: Exception | None = None
        self._opaque = 0  # depth of norm modules that are written out in Python

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, size: Sequence[tuple[int, ...]], device: str) -> frozenset[int]:
        """One forward pass; returns the operations that the outputs come from."""
        dtype = next((p.dtype for p in self.parameters.values() if p.is_floating_point()), torch.float32)
        with isolated(self.modules, self.parameters, device) as names, torch.no_grad():
            for name, tensor in names.items():
                self.assign(tensor, Value(leaves=frozenset((name,))))
            inputs = [torch.zeros((2, *s), dtype=dtype, device=device) for s in size]
            for x in inputs:
                self.assign(x, Value(frozenset((0,))))
            self._hook_norms()
            for module in self.modules:
                if isinstance(module, nn.RNNBase):
                    module.__dict__["forward"] = partial(table.unrolled_once, module)
            with self:
                output = self._call(inputs)
        tensors = _output_tensors(output)
        self.logits = len(tensors) == 1 and tensors[0].dim() == 2
        return frozenset().union(*(self.value(t).origin for t in tensors))

    def _call(self, inputs: list[Tensor]) -> Any:
        try:
            return self.model(*inputs)
        except Exception as error:  # whatever the model's own code raises
            if self._fault is not None:
                raise self._fault from None
            raise ForwardError(f"{type(error).__name__}: {error}") from error

    def _hook_norms(self) -> None:
        """A norm that is written out in Python is one node: what it does inside is not looked at."""
        for module in self.modules:
            norm = table.written_norm(module)
            if norm is not None:
                module.register_forward_pre_hook(self._enter_norm)
                module.register_forward_hook(partial(self._leave_norm, norm))

    def _enter_norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._opaque += 1

    def _leave_norm(self, norm: table.WrittenNorm, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._opaque -= 1
        if self._opaque or not isinstance(output, Tensor):
            return
        own = {name: self.value(p) for name, p in module._parameters.items() if p is not None}
        bias = CONSTANT if norm.bias is None else own[norm.bias]
        x = next(self.value(t) for t in tree_leaves(inputs) if isinstance(t, Tensor))
        self.assign(output, self._add_norm(norm.primitive, x, own[norm.weight], bias))
        for value in own.values():
            for name in value.leaves:
                self._explain(name, f"a further parameter of {type(module).__name__}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = infer(func, args) if not kwargs else None
        if out is None:
            out = func(*args, **kwargs)
        name = func._schema.name
        entry = None if self._opaque else table.OPERATORS.get(name)
        try:
            if entry is None:
                value = self._contract(name, _tensors(args, kwargs))
            else:
                value = _HANDLERS[type(entry)](self, entry, args, kwargs, out)
        except Exception as fault:  # ours, not the model's
            self._fault = fault
            raise
        if func._schema.is_mutable:
            self._mutate(func, args, kwargs, value)
        for tensor in _tensors((out,), {}):
            # Masks and indices carry no gradient: what is computed from them does not depend on the features.
            self.assign(tensor, value if tensor.is_floating_point() or tensor.is_complex() else CONSTANT)
        return out

    # -- values --------------------------------------------------------------------------------------------------

    def assign(self, tensor: Tensor, value: Value) -> None:
        self._time += 1
        if id(tensor) not in self._values:
            self._alive.append(tensor)
        self._values[id(tensor)] = (self._time, value)

    def value(self, tensor: Any) -> Value:
        """What is known of a tensor, writes through other views of its memory included."""
        if not isinstance(tensor, Tensor):
            return CONSTANT
        time, value = self._values.get(id(tensor), (0, CONSTANT))
        if self._writes:
            written, other = self._writes.get(tensor.untyped_storage()._cdata, (0, CONSTANT))
            if written > time:
                return union((value, other))
        return value

    def _mutate(self, func: Any, args: Any, kwargs: Any, value: Value) -> None:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = kwargs.get(argument.name, args[position] if position < len(args) else None)
            for tensor in _tensors((given,), {}):
                before = self.value(tensor)
                if before != value:
                    self.assign(tensor, value)
                    storage = tensor.untyped_storage()
                    self._writes[storage._cdata] = (self._time, value)

    def _contract(self, name: str, tensors: list[Tensor]) -> Value:
        """An operation that is no primitive: its output stands for its inputs."""
        values = [self.value(t) for t in tensors]
        return self._merge(values, f"an operand of {name.removeprefix('aten::')}")

    def _merge(self, values: Sequence[Value], reason: str) -> Value:
        """Union of values. Parameters that meet something that depends on the input are not predicted from there."""
        if len(values) < 2:
            return values[0] if values else CONSTANT
        merged = union(values)
        if merged.origin and merged.leaves:
            for value in values:
                if not value.origin:
                    for name in value.leaves:
                        self._explain(name, reason)
            merged = merged._replace(leaves=frozenset().union(*(v.leaves for v in values if v.origin)))
        return merged

    def _explain(self, name: str, reason: str) -> None:
        if not self._opaque:
            self.reasons.setdefault(name, reason)

    # -- operations ----------------------------------------------------------------------------------------------

    def _add(self, op: Op) -> frozenset[int]:
        if op.channels is None or op.grid is None:
            known = [self.ops[s] for s in op.sources]
            if op.channels is None and known:
                channels = [k.channels for k in known]
                if op.kind == "concat":
                    op.channels = sum(c for c in channels if c) if all(channels) else None
                else:
                    op.channels = channels[0] if len(set(channels)) == 1 else None
            op.grid = op.grid or next((k.grid for k in known if k.grid), None)
        self.ops.append(op)
        return frozenset((len(self.ops) - 1,))

    def _use(self, value: Value, op: int, role: Role, shape: tuple[int, ...], main: str, **kwargs: Any) -> None:
        """Note that the tensor with this value is what operation `op` predicts: which parameters does it hold?"""
        parts = value.parts or ((main, 0),)
        for name, offset in parts:
            self.uses.setdefault(name, []).append(Use(op, role, shape, offset, **kwargs))
        for name in value.leaves.difference(n for n, _ in parts):
            self._explain(name, f"folded into a {role} that is predicted without it")

    def _main_leaf(self, value: Value, numel: int) -> str:
        """Of the parameters that a weight is computed from, the one that is the weight: as large, else the largest."""
        return max(
            sorted(value.leaves), key=lambda n: (self.parameters[n].numel() == numel, self.parameters[n].numel())
        )

    def _owner(self, name: str) -> nn.Module | None:
        return self.owners.get(id(self.parameters[name]))

    def _node_shape(self, value: Value, main: str, used: Tensor) -> tuple[int, ...]:
        """The parameter's own shape, or the joined tensor's if it is one of several."""
        shape = tuple(self.parameters[main].shape)
        if not value.parts:
            return shape
        if used.dim() == 1:
            return tuple(used.shape)
        rows = max(offset + len(self.parameters[name]) for name, offset in value.parts)  # `used` may be transposed
        return (rows, *shape[1:])

    def _add_layer(
        self, kind: str, x: Value, weight: Value, used: Tensor, channels: int, grid: tuple[int, int] | None = None
    ) -> Value:
        for name in x.leaves:
            self._explain(name, "a token or query that goes through a layer")
        main = self._main_leaf(weight, used.numel())
        shape = self._node_shape(weight, main, used)
        kernel = None
        if weight.origin:  # several kernels mixed into one, by the input: each expert is predicted as that kernel
            kernel = shape = _expert_kernel(self._owner(main))
        op = Op(kind, x.origin | weight.origin, main, shape, channels=channels, grid=grid)
        origin = self._add(op)
        self._use(weight, len(self.ops) - 1, "weight", shape, main, kernel=kernel)
        return Value(origin, attention=x.attention)

    def _add_bias(self, x: Value, bias: Value, used: Tensor) -> Value:
        main = self._main_leaf(bias, used.numel())
        shape = _without_ones(self._node_shape(bias, main, used))
        kernel = None
        if bias.origin:  # of several experts, mixed by the input
            kernel = shape = tuple(self.parameters[main].shape[1:])
        origin = self._add(Op("bias", x.origin, main, shape))
        self._use(bias, len(self.ops) - 1, "bias", shape, main, kernel=kernel)
        return Value(origin, attention=x.attention)

    def _add_norm(self, primitive: str, x: Value, weight: Value, bias: Value) -> Value:
        if not weight.leaves:
            return x
        main = sorted(weight.leaves)[0]
        shape = _without_ones(tuple(self.parameters[main].shape))
        origin = self._add(Op(primitive, x.origin, main, shape, channels=math.prod(shape)))
        self._use(weight, len(self.ops) - 1, "norm", shape, main)
        if bias.leaves:
            name = sorted(bias.leaves)[0]
            self._use(bias, len(self.ops) - 1, "bias", tuple(self.parameters[name].shape), name)
        return Value(origin)

    def constant(self, entry: table.Constant, args: Any, kwargs: Any, out: Any) -> Value:
        return CONSTANT

    def convolution(self, entry: table.Convolution, args: Any, kwargs: Any, out: Tensor) -> Value:
        x, used = self.value(args[0]), args[entry.weight]
        weight, bias = self.value(used), self.value(args[entry.bias])
        if not weight.leaves:
            return self._merge((x, weight, bias), "the bias of a layer without a weight of its own")
        dilation, transposed, groups = args[5], args[6], args[8]
        kind = "conv" if groups == 1 or weight.origin else "dil_conv" if min(dilation) > 1 else "sep_conv"
        grid = (out.shape[-2], out.shape[-1]) if out.dim() == 4 else None
        value = self._add_layer(kind, x, weight, used, used.shape[1] * groups if transposed else used.shape[0], grid)
        if bias.leaves:
            value = self._add_bias(value, bias, args[entry.bias])
        return value

    def product(self, entry: table.Product, args: Any, kwargs: Any, out: Tensor) -> Value:
        added = args[entry.bias] if entry.bias is not None and len(args) > entry.bias else None
        a, b, bias = self.value(args[entry.left]), self.value(args[entry.right]), self.value(added)
        if a.origin and b.origin:
            value = self._attention_product(a, b)
        elif self._is_weight(b, a):
            value = self._layer_product(a, b, args[entry.right], out)
        elif self._is_weight(a, b):
            value = self._layer_product(b, a, args[entry.left], out)
        else:
            value = self._merge((a, b), "a factor of a product that is no layer")
        if bias.origin:
            return self._merge((value, bias), "")
        return self._bias_or_table(value, bias, added) if bias.leaves else value

    def _bias_or_table(self, x: Value, bias: Value, used: Any) -> Value:
        if x.attention == "scores" or not x.origin:
            return self._merge((x, bias), "an attention bias")
        return self._add_bias(x, bias, used)

    def _is_weight(self, weight: Value, x: Value) -> bool:
        """Whether a factor is the weight of a layer that is applied to the other factor."""
        if not weight.leaves or weight.origin:
            return False
        main = self._main_leaf(weight, 0)
        if self.parameters[main].dim() < 2:
            return False
        # With no input on the other side (learned queries, coordinates) only the class of the layer can tell.
        return bool(x.origin) or table.is_layer(self._owner(main))

    def _layer_product(self, x: Value, weight: Value, used: Tensor, out: Tensor) -> Value:
        main = self._main_leaf(weight, used.numel())
        if x.origin and table.is_convolution(self._owner(main)) and self.parameters[main].dim() == 2:
            return Value(x.origin, weight.leaves)  # mixes kernels: the layer is the convolution that follows
        return self._add_layer("conv", x, weight, used, out.shape[-1])

    def _attention_product(self, a: Value, b: Value) -> Value:
        origin = a.origin | b.origin
        if "weights" in (a.attention, b.attention) or any(self._is_attention(v.origin) for v in (a, b)):
            return Value(self._add(Op("msa", origin)))
        return Value(origin, attention="scores")

    def _is_attention(self, origin: frozenset[int]) -> bool:
        return len(origin) == 1 and self.ops[next(iter(origin))].kind == "msa"

    def norm(self, entry: table.Norm, args: Any, kwargs: Any, out: Any) -> Value:
        x = self.value(args[0])
        weight = self.value(args[entry.weight]) if len(args) > entry.weight else CONSTANT
        bias = self.value(args[entry.bias]) if entry.bias is not None and len(args) > entry.bias else CONSTANT
        if not x.origin and x.leaves and any(self.parameters[n].dim() > 1 for n in self._siblings(weight)):
            return self._merge((x, weight, bias), "")  # standardisation of a weight
        if not weight.leaves:
            return self._merge((x, bias), "the bias of a norm without a weight")
        return self._add_norm(entry.primitive, x, weight, bias)

    def _siblings(self, value: Value) -> Iterable[str]:
        owners = {id(self._owner(n)) for n in value.leaves}
        return [n for n in self.parameters if id(self._owner(n)) in owners] if owners else ()

    def pool(self, entry: table.Pool, args: Any, kwargs: Any, out: Any) -> Value:
        x = self.value(args[0])
        if not x.origin:
            return x
        kernel = args[entry.kernel]
        if len(kernel) == 1:  # one extent for all dimensions, of which a 1-D pooling has one
            kernel = [1, kernel[0]] if args[0].dim() == 3 else [kernel[0], kernel[0]]
        return Value(self._add(Op(entry.primitive, x.origin, shape=(1, 1, *kernel[-2:]))))

    def global_pool(self, entry: table.GlobalPool, args: Any, kwargs: Any, out: Any) -> Value:
        x = self.value(args[0])
        return Value(self._add(Op("glob_avg", x.origin))) if x.origin else x

    def mean(self, entry: table.Mean, args: Any, kwargs: Any, out: Tensor) -> Value:
        x = self.value(args[0])
        dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
        if not x.origin or not dims or x.attention or not self._is_spatial(args[0], x, dims):
            return x
        return Value(self._add(Op("glob_avg", x.origin)))

    def _is_spatial(self, x: Tensor, value: Value, dims: Sequence[int]) -> bool:
        """Whether these are all of a tensor's spatial dimensions; the channels that are left tell the layout."""
        n = x.dim()
        reduced = sorted(d % n for d in dims)
        if n == 3:
            channels = {self.ops[o].channels for o in value.origin}
            left = x.shape[3 - reduced[0]] if len(reduced) == 1 and reduced[0] else None
            return left is not None and (left in channels or (reduced == [1] and channels == {None}))
        return (n == 4 and reduced in ([1, 2], [2, 3])) or (n == 5 and reduced in ([3, 4], [2, 3, 4], [1, 2, 3]))

    def join(self, entry: table.Join, args: Any, kwargs: Any, out: Tensor) -> Value:
        tensors = _tensors(args, kwargs)
        values = [self.value(t) for t in tensors]
        if entry.primitive == "concat" and not any(v.origin for v in values):
            return joined(tensors, values, args, self.parameters)
        with_origin = [v for v in values if v.origin]
        if entry.primitive == "concat":
            merged = self._merge(values, "a token joined to the others")
            return Value(self._add(Op("concat", merged.origin))) if len(with_origin) > 1 else with_origin[0]
        if len(with_origin) == 1 and len(values) == 2:
            fixed = 0 if values[1].origin else 1
            return self._add_parameter(with_origin[0], values[fixed], tensors[fixed], out)
        if len(with_origin) < 2:
            return self._merge(values, "a term of a sum")
        attention = {v.attention for v in with_origin} - {""}
        if attention:  # terms of scores or weights: part of the attention, no residual
            for v in values:
                self._demote(v)
            return union(values)._replace(attention=max(attention))
        return Value(self._add(Op("sum", union(values).origin)))

    def _demote(self, value: Value) -> None:
        """A product with a parameter that is added to attention scores is a relative position, not a layer."""
        if value.attention:
            return
        for index in value.origin:
            if self._is_table_product(index):
                self._contract_table(index)

    def _is_table_product(self, index: int) -> bool:
        op = self.ops[index]
        if op.kind == "sum":
            return all(self._is_table_product(s) for s in op.sources)
        return op.kind == "conv" and not table.is_layer(self._owner(op.param))

    def _contract_table(self, index: int) -> None:
        op = self.ops[index]
        op.contracted = True
        if op.kind == "sum":
            for source in op.sources:
                self._contract_table(source)
        else:
            self.uses.pop(op.param, None)
            self._explain(op.param, "a relative-position table")

    def _add_parameter(self, x: Value, p: Value, used: Tensor, out: Tensor) -> Value:
        """activations + parameter: a bias, a position embedding, or something that is not predicted."""
        if not p.leaves:
            return x
        extents = [s for s in used.shape if s > 1]
        if len(extents) == 1 and self._is_bias(x, p, extents[0]):
            return self._add_bias(x, p, used)
        if x.attention == "scores":
            return self._merge((x, p), "an attention bias or relative-position table")
        if len(extents) >= 2 and (used.dim() < out.dim() or used.shape[0] == 1 or used.stride(0) == 0):
            return self._add_position(x, p, out)
        what = "table of positions, looked up for each patch," if len(extents) > 1 else "learned scalar or vector"
        return self._merge((x, p), f"a {what} added to the features")

    def _is_bias(self, x: Value, p: Value, extent: int) -> bool:
        """Whether a vector is added to the channels that a layer has just put out."""
        last = self.ops[next(iter(x.origin))]
        if len(x.origin) > 1 or last.kind not in ("conv", "sep_conv", "dil_conv") or last.channels != extent:
            return False
        # Attention scores still have the projection of q and k as their origin, not only where a layer mixes the heads.
        return x.attention != "scores" or all(self._owner(n) is self._owner(last.param) for n in p.leaves)

    def _add_position(self, x: Value, p: Value, out: Tensor) -> Value:
        added = x.origin
        for name in sorted(p.leaves):
            shape = tuple(self.parameters[name].shape)
            if sum(s > 1 for s in shape) < 2:
                self._explain(name, "a token joined to the others")
                continue
            grid = next((self.ops[o].grid for o in sorted(x.origin) if self.ops[o].grid), None)
            channels = next((self.ops[o].channels for o in sorted(x.origin)), None)
            origin = self._add(Op("pos_enc", NO_OPS, name, shape, channels=channels, grid=grid))
            self.uses.setdefault(name, []).append(Use(len(self.ops) - 1, "pos_enc", shape))
            added |= origin
        return Value(self._add(Op("sum", added))) if added != x.origin else x

    def multiply(self, entry: table.Multiply, args: Any, kwargs: Any, out: Tensor) -> Value:
        tensors = _tensors(args, kwargs)
        values = [self.value(t) for t in tensors]
        if len(values) < 2 or not all(v.origin for v in values):
            return self._merge(values, "a learned scale of the features (layer scale, temperature, affine ...)")
        merged = union(values)
        if not entry.gate or values[0].origin == values[1].origin or merged.attention or merged.leaves:
            return merged
        larger = max(range(2), key=lambda i: tensors[i].numel())
        return Value(self._add(Op("gate", merged.origin, features=values[larger].origin)))

    def softmax(self, entry: table.Softmax, args: Any, kwargs: Any, out: Tensor) -> Value:
        x = self.value(args[0])
        return x._replace(attention="weights") if x.origin else x

    def attention(self, entry: table.Attention, args: Any, kwargs: Any, out: Any) -> Value:
        values = [self.value(t) for t in _tensors(args, kwargs)]
        for v in values[3:]:
            self._demote(v)
        merged = self._merge(values, "an attention bias or learned query")
        return Value(self._add(Op("msa", merged.origin))) if merged.origin else merged


_HANDLERS: dict[type, Any] = {
    table.Constant: Recorder.constant,
    table.Convolution: Recorder.convolution,
    table.Product: Recorder.product,
    table.Norm: Recorder.norm,
    table.Pool: Recorder.pool,
    table.GlobalPool: Recorder.global_pool,
    table.Mean: Recorder.mean,
    table.Join: Recorder.join,
    table.Multiply: Recorder.multiply,
    table.Softmax: Recorder.softmax,
    table.Attention: Recorder.attention,
}


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors among arguments, one level of lists deep."""
    found = []
    for a in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (list, tuple)):
            found.extend(t for t in a if isinstance(t, Tensor))
    return found


def _output_tensors(output: Any, depth: int = 3) -> list[Tensor]:
    """Tensors in a model's output: in tuples, lists and dicts, and in attributes, e.g. those of a dataclass."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif depth and hasattr(leaf, "__dict__"):
            found.extend(_output_tensors(vars(leaf), depth - 1))
    return found


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a vector, whichever way it was made to broadcast."""
    return tuple(s for s in shape if s > 1) or (1,)


def _expert_kernel(owner: Any) -> tuple[int, ...]:
    """(K, C/groups, kh, kw) of a convolution that keeps its kernels as one (experts, numel) parameter."""
    shape = getattr(owner, "weight_shape", None)
    if shape is not None:
        return tuple(shape)
    return (owner.out_channels, owner.in_channels // owner.groups, *owner.kernel_size)

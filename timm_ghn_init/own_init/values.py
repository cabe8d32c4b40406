"""Memory for models from the meta device, and the model's own initialisation for what a prediction leaves.

A model that was created on the meta device has lost what its constructor would have drawn and computed. Most of that
comes back by the methods that its modules have for the purpose. They are run on stand-ins: real tensors, full of marks,
for what is wanted, and meta tensors, which cost nothing, for all that is predicted anyway. So it is seen what was set,
and a part of a sharded parameter is cut out of the same whole on every rank.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..utils.checks import InputError
from ..utils.own_draws import own_draws
from ..utils.text import logger
from ..utils.threads import one_thread
from .stand_ins import meta_parameter, named_tensors, placeless_parameter, replaced

_logger = logger(__name__)

_EACH = ("reset_parameters", "init_non_persistent_buffers")  # of a module, for its own tensors
_WHOLE = "init_weights"  # of a model, for all that is in it


def set_values(
    model: nn.Module, names: Collection[str], is_drawn: Callable[[Tensor], bool] | None = None, lost: bool = False
) -> dict[str, Tensor]:
    """Parameters of which somebody may have set the values: without those that are known to be drawn at random.

    If a parameter has no values, the model's own initialisation gives them; values that only the constructor sets are
    not known then. A sharded parameter has the values of the part that this process has.

    Args:
        names: of the parameters in question.
        is_drawn: as `DeferredInit.is_drawn`, of a model that waits for its values.
        lost: whether what the memory holds has no meaning.

    Returns:
        Values by name, those of the model's own initialisation on the CPU.
    """
    parameters = dict(model.named_parameters())
    there = {n for n in names if not (lost or parameters[n].is_meta)}
    values = {n: _part(parameters[n]) for n in names if n in there and not (is_drawn and is_drawn(parameters[n]))}
    asked = _set_without_draws(model, [n for n in names if n not in there]) if len(there) < len(names) else []
    own = own_values(model, asked, 0) if asked else OwnValues({}, ())
    return values | {n: value for n, value in own.values.items() if n not in own.unset}


def _part(parameter: Tensor) -> Tensor:
    if type(parameter) is nn.Parameter:
        return parameter
    part = parameter.detach()
    return part.to_local() if hasattr(part, "to_local") else part


class _Draws(TorchDispatchMode):
    """Notes which tensors are written to at random, and which otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: set[int] = set()
        self.set: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            key = args[0].untyped_storage()._cdata
            if torch.Tag.nondeterministic_seeded in func.tags:
                self.drawn.add(key)
            elif func._schema.name in ("aten::zero_", "aten::fill_", "aten::copy_"):
                self.set.add(key)
                if args[0].numel() * args[0].element_size() == args[0].untyped_storage().nbytes():
                    self.drawn.discard(key)
        return func(*args, **(kwargs or {}))


def _set_without_draws(model: nn.Module, names: Collection[str]) -> list[str]:
    """The parameters to which a model's own initialisation gives values that it does not draw. It needs no memory."""
    stand_ins: dict[str, Tensor] = {}

    def stand_in(name: str, tensor: Tensor) -> Tensor:
        stand_ins[name] = placeless_parameter(tensor) if isinstance(tensor, nn.Parameter) else meta_parameter(tensor)
        return stand_ins[name]

    with replaced(model, stand_in), torch.no_grad(), _Draws() as draws:
        _initialise(model)
    keys = {n: stand_ins[n].untyped_storage()._cdata for n in names if n in stand_ins}
    return [n for n, key in keys.items() if key in draws.set and key not in draws.drawn]


class OwnValues(NamedTuple):
    """Values by the model's own initialisation, and the names of what it has not set (see `leftover`)."""

    values: dict[str, Tensor]
    unset: tuple[str, ...]


def on_meta(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers without memory."""
    return [name for name, t in named_tensors(model).items() if t.is_meta]


def materialise(model: nn.Module, device: torch.device | str) -> None:
    """Give memory to what has none, as `to_empty` does, and leave the rest alone. Parameters stay the same objects.

    Raises:
        ValueError: someone holds a weak reference to a parameter, so that it cannot get memory. Others may have got it;
            `forget` takes it back.
    """
    _put(model, on_meta(model), device)


def forget(model: nn.Module, names: Collection[str]) -> None:
    """Put parameters and buffers of these names back on the meta device. Parameters stay the same objects."""
    tensors = named_tensors(model)
    _put(model, [name for name in names if not tensors[name].is_meta], "meta")


def _put(model: nn.Module, names: Collection[str], device: torch.device | str) -> None:
    """Give parameters and buffers of these names other memory, without values."""
    tensors = named_tensors(model)
    wanted = {id(tensors[name]): name for name in names}
    made: dict[int, Tensor] = {}

    def put(t: Tensor) -> Tensor:
        if id(t) not in wanted:
            return t
        if id(t) not in made:
            made[id(t)] = torch.empty_like(t, device=device)
            if isinstance(t, nn.Parameter):
                _swap(t, made[id(t)], f"{type(model).__name__}: {wanted[id(t)]}")
        return t if isinstance(t, nn.Parameter) else made[id(t)]

    # `_apply` would swap them itself, but only with a setting of the process.
    model._apply(put)


def _swap(parameter: nn.Parameter, new: Tensor, name: str) -> None:
    try:
        torch.utils.swap_tensors(parameter, nn.Parameter(new, requires_grad=parameter.requires_grad))
    except RuntimeError as error:
        raise InputError(
            f"{name} is on the meta device and cannot get memory ({error}). Delete weak references to it, or build the "
            "model on the CPU."
        ) from error


def own_values(model: nn.Module, wanted: Collection[str], seed: int) -> OwnValues:
    """Values that a model's own initialisation gives to some of its parameters and buffers.

    It is neither written to nor asked for any of its values; the global random state stays.

    Args:
        model: may be on the meta device, and sharded.
        wanted: names.
        seed: of what is drawn.

    Returns:
        A tensor on the CPU for each name, whole, in the dtype of the model's; NaN or zero where nothing has set it.
    """
    stand_ins: dict[str, Tensor] = {}

    def stand_in(name: str, tensor: Tensor) -> Tensor:
        if name in wanted:
            stand_ins[name] = _marked(tensor)
            return stand_ins[name]
        if isinstance(tensor, nn.Parameter):
            return placeless_parameter(tensor)
        if tensor.is_meta:
            return meta_parameter(tensor)
        return tensor.detach().cpu().clone()  # a buffer that stays, but may be reset with others

    with replaced(model, stand_in), torch.no_grad(), one_thread(), own_draws(seed):
        versions = {name: t._version for name, t in stand_ins.items()}
        _initialise(model)
        found = named_tensors(model)
        now = {name: found.get(name, stand_ins[name]) for name in wanted}
        unset = [n for n, t in now.items() if t is stand_ins[n] and not _is_set(t, versions[n])]
        return OwnValues({n: now[n].detach() if n not in unset else leftover(now[n]) for n in now}, tuple(unset))


def leftover(tensor: Tensor) -> Tensor:
    """The value of a tensor that nothing has set: NaN, so that it is noticed, or 0 where there is no NaN."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0).detach()


def warn_unset(name: str, unset: Collection[str]) -> None:
    """One warning for a model's parameters and buffers that nothing has set."""
    if unset:
        some = ", ".join(list(unset)[:5]) + (" ..." if len(unset) > 5 else "")
        _logger.warning(
            "%s: %d parameters and buffers are neither predicted nor set by the model's own initialisation, and hold "
            "NaN or 0: %s. Its constructor computes them: copy them from a model that was not created on the meta "
            "device.",
            name,
            len(unset),
            some,
        )


def _initialise(model: nn.Module) -> None:
    """Call the methods that set values. A module comes after those inside of it, as in constructors."""
    for module in _inside_out(model, set()):
        for method in _EACH:
            _call(module, method)
    for module in _outermost_with(model, _WHOLE):
        _call(module, _WHOLE)


def _inside_out(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    if module not in seen:
        seen.add(module)
        for child in module.children():
            yield from _inside_out(child, seen)
        yield module


def _outermost_with(module: nn.Module, method: str) -> Iterator[nn.Module]:
    if callable(getattr(module, method, None)):
        yield module
        return
    for child in module.children():
        yield from _outermost_with(child, method)


def _call(module: nn.Module, method: str) -> None:
    call = getattr(module, method, None)
    if not callable(call):
        return
    try:
        call()
    except Exception as error:  # the model's own code; what it has not set is reported
        _logger.info("%s.%s: %s: %s", type(module).__name__, method, type(error).__name__, error)


def _marked(tensor: Tensor) -> Tensor:
    marked = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").fill_(_mark(tensor))
    return nn.Parameter(marked, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else marked


def _mark(tensor: Tensor) -> Any:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.nan
    return False if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max


def _is_set(tensor: Tensor, version: int) -> bool:
    """Whether no mark is left; of whole numbers and flags a mark may be the value that was meant."""
    if tensor.is_floating_point() or tensor.is_complex():
        return not bool(tensor.isnan().any())
    return tensor._version != version or bool((tensor != _mark(tensor)).any())

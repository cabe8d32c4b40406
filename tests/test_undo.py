"""A traced model is as it was before, whatever it holds and its forward does; what cannot be traced is refused."""

import functools
import re
import types
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timm_ghn_init.graph import TraceError, trace

SIZE = (3, 8, 8)
NAMES = {"c.weight", "c.bias", "h.weight", "h.bias"}


class Net(nn.Module):
    """A small classifier that first does something with itself and its input."""

    shared: ClassVar[dict[str, Any]] = {}
    calls = 0

    def __init__(self, act: Callable[[Any, Tensor], object] = lambda m, x: None, **held: Any) -> None:
        super().__init__()
        self.c, self.h = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.__dict__.update(act=act, **held)

    def forward(self, x: Tensor) -> Tensor:
        self.act(self, x)
        return self.h(self.c(x).mean((2, 3)))


def assert_traced(model: nn.Module) -> None:
    """All parameters are seen, and are afterwards what they were before."""
    before = {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    assert set(trace(model, SIZE).targets) == NAMES
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (tensor, values) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)


# -- containers ------------------------------------------------------------------------------------------------------


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise TypeError("read-only")


REFUSED = dict.fromkeys(
    ("__setitem__", "update", "clear", "extend", "append", "add", "copy", "pop", "__len__"), _refuse
)
FrozenDict, FrozenList, FrozenSet = (type("Frozen", (t,), dict(REFUSED)) for t in (dict, list, set))
FrozenModules = type("FrozenModules", (nn.ModuleDict,), {"__setitem__": _refuse, "clear": _refuse, "update": _refuse})
Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "held", [FrozenDict(a=[1]), FrozenList([1, {}]), FrozenSet([1]), types.MappingProxyType({"a": 1})], ids=type
)
def test_a_container_that_refuses_writes(held: Any) -> None:
    assert_traced(Net(held=held))


def test_modules_that_refuse_to_be_changed() -> None:
    modules = nn.ModuleDict({"a": nn.Linear(2, 2)})
    modules.__class__ = FrozenModules
    model = Net()
    model.modules_ = modules
    assert set(trace(model, SIZE).targets) == NAMES
    assert not modules.a.weight.is_meta


class Plain:
    """An object with attributes, some of which cannot be asked for."""

    def __init__(self) -> None:
        self.steps, self.seen = 0, [1]

    @property
    def broken(self) -> int:
        raise RuntimeError("broken")

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Slotted:
    __slots__ = ("seen", "steps")

    def __init__(self) -> None:
        self.seen = [1]


def note(holder: Any, x: Any) -> None:
    holder.seen.append(x)
    holder.steps = x


# Kind of what a module holds: how the forward writes to it, and what can be seen of it.
WRITES: dict[str, tuple[Any, Callable[[Any, Any], object], Callable[[Any], Any]]] = {
    "list": ([1, [2]], lambda v, x: (v.append(x), v[1].clear()), repr),
    "set": ({1}, lambda v, x: v.add(2), repr),
    "deque": (deque([1, 2], maxlen=2), lambda v, x: v.append(x), repr),
    "order": (OrderedDict(a=1, b=2), lambda v, x: v.move_to_end("a"), list),
    "defaultdict": (defaultdict(list), lambda v, x: v["a"].append(x), dict),
    "counter": (Counter("ab"), lambda v, x: v.update("b"), dict),
    "namedtuple": (Pair([1], {}), lambda v, x: (v.a.append(x), v.b.update(x=x)), repr),
    "dict behind a proxy": (types.MappingProxyType({"a": [1]}), lambda v, x: v["a"].append(x), repr),
    "UserDict": (UserDict(a=1), lambda v, x: v.update(x=x), dict),
    "weak keys": (weakref.WeakKeyDictionary(), lambda v, x: v.__setitem__(Net, x), len),
    "namespace": (types.SimpleNamespace(seen=[1]), note, lambda v: (v.seen, hasattr(v, "steps"))),
    "object": (Plain(), note, lambda v: (v.seen, v.steps)),
    "object with slots": (Slotted(), note, lambda v: (v.seen, hasattr(v, "steps"))),
    "NumPy array": (np.zeros(2), lambda v, x: v.__iadd__(1), np.ndarray.tolist),
    "bytearray": (bytearray(b"a"), lambda v, x: v.extend(b"b"), bytes),
    "generator": (torch.Generator(), lambda v, x: torch.rand(2, generator=v), lambda v: v.get_state().sum().item()),
    "tensor in a list": ([torch.zeros(2)], lambda v, x: v[0].add_(1), lambda v: v[0].tolist()),
}


@pytest.mark.parametrize(("held", "write", "seen"), WRITES.values(), ids=WRITES)
def test_what_the_forward_writes_is_undone(held: Any, write: Any, seen: Any) -> None:
    before = seen(held)
    assert_traced(Net(lambda m, x: write(m.held, x), held=held))
    assert seen(held) == before


def test_a_forward_that_raises_half_way() -> None:
    def act(m: Any, x: Tensor) -> None:
        m.c.log = [m.c.train(), m.register_buffer("grid", x)]
        m.c.weight = nn.Parameter(x)
        raise ArithmeticError("half-way")

    model = Net(act)
    weight, attributes = model.c.weight, set(vars(model.c))
    with pytest.raises(TraceError, match=r"^Net: .*half-way"):
        trace(model, SIZE)
    assert model.c.weight is weight
    assert set(vars(model.c)) == attributes
    assert model.c.training
    assert not list(model.buffers())


# -- modules ---------------------------------------------------------------------------------------------------------


def test_a_hook_that_keeps_what_it_sees() -> None:
    seen, count = {}, 0

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal count
        count += 1
        seen["output"] = output

    model = Net()
    model.c.register_forward_hook(hook)
    assert_traced(model)
    assert (list(seen), count) == (["output"], 1)  # whoever hangs a hook wants to find there what it has noted


def test_a_module_that_is_not_registered() -> None:
    hidden = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model = Net(lambda m, x: m.hidden[0](x).sum().item(), hidden=[hidden])  # which needs values: on the CPU
    assert_traced(model)
    assert hidden[1].training
    assert hidden[1].num_batches_tracked == 0
    assert not hidden[1].running_mean.any()


def test_values_written_where_there_are_some() -> None:
    def act(m: Any, x: Tensor) -> None:
        x.sum().item()  # on the CPU
        m.c.weight.data.mul_(2)
        m.h.bias.data.copy_(m.h.bias + 1)

    assert_traced(Net(act))


def test_attributes_of_the_class() -> None:
    class Counting(Net):
        pass

    def act(m: Any, x: Tensor) -> None:
        type(m).calls += 1
        type(m).grid = x
        m.shared["x"] = x

    assert_traced(Counting(act))
    assert (Counting.calls, hasattr(Counting, "grid"), Net.shared) == (0, False, {})


def test_a_method_that_caches() -> None:
    class Cached(Net):
        @functools.lru_cache  # noqa: B019
        def grid(self, n: int) -> Tensor:
            return torch.arange(n, device=self.c.weight.device)

    model = Cached(lambda m, x: m.grid(3))
    assert_traced(model)
    assert not model.grid(3).is_meta


class RefusesAttributes(Net):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "act" in vars(self):
            raise TypeError(name)
        super().__setattr__(name, value)


class RaisesForAttributes(Net):
    def __getattr__(self, name: str) -> Any:
        return self._modules[name]  # a KeyError for all others


class TrainsOtherwise(Net):
    def train(self, data: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("there is no data")


@pytest.mark.parametrize("make", [RefusesAttributes, RaisesForAttributes, TrainsOtherwise])
def test_classes_that_bend_the_rules_of_modules(make: Callable[[], nn.Module]) -> None:
    assert_traced(make())


def test_buffers_without_values_are_zero_where_values_are_needed() -> None:
    with torch.device("meta"):
        model = Net(lambda m, x: range(int(m.steps)), steps=torch.zeros((), dtype=torch.int64))
    assert set(trace(model, SIZE).targets) == NAMES
    assert all(p.is_meta for p in (*model.parameters(), model.steps))


# -- kinds that are refused ------------------------------------------------------------------------------------------


def sequence(first: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(first or nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture(scope="module")
def scripted() -> Any:
    return torch.jit.script(sequence())


def _with(part: Any, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(part, name, value)
    return part


def _named(path: str, base: type = nn.Module) -> Any:
    """A class of a package that may not be installed."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module})


def _with_weight(path: str) -> nn.Module:
    model = sequence()
    model[3]._parameters["weight"] = model[3].weight.detach().as_subclass(_named(path, Tensor))
    return model


def _offloaded() -> nn.Module:
    hook = types.SimpleNamespace(hooks=[types.SimpleNamespace(offload=True)])
    return sequence(_with(nn.Conv2d(3, 4, 3), _hf_hook=hook))


def _of_zero3() -> nn.Module:
    model = sequence()
    model[0].weight.ds_tensor = torch.zeros(1)
    return model


REFUSED_KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "lazy": (lambda: sequence(nn.LazyConv2d(4, 3)), r"^Sequential: 0.weight is lazy.*forward pass first"),
    "lazy norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()), r"1.weight is lazy"),
    "quantised": (lambda: torch.ao.quantization.quantize_dynamic(sequence(), {nn.Linear}), "3 is quantised.*floating"),
    "bitsandbytes": (lambda: sequence(_named("bitsandbytes.nn.modules.Linear4bit")()), "0 is quantised"),
    "torchao": (lambda: _with_weight("torchao.dtypes.nf4tensor.NF4Tensor"), "3.weight is quantised"),
    "offloaded": (_offloaded, "0 is offloaded.*remove_hook_from_submodules"),
    "ZeRO-3": (_of_zero3, "0.weight is partitioned.*before deepspeed.initialize"),
    "fairscale": (lambda: _named("fairscale.nn.FullyShardedDataParallel")(), "wrapped in Fully.*before wrapping it"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "message"), REFUSED_KINDS.values(), ids=REFUSED_KINDS)
def test_kinds_that_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace(make(), SIZE)


def test_scripted_models_are_refused_whole_and_in_part(scripted: Any) -> None:
    values = {name: t.clone() for name, t in scripted.state_dict().items()}
    for model, where in (scripted, "the model"), (nn.Sequential(scripted, nn.ReLU()), "0"):
        with pytest.raises(ValueError, match=rf"{where} is scripted .*Initialise the Python model"):
            trace(model, SIZE)
    assert all(torch.equal(values[name], t) for name, t in scripted.state_dict().items())
    assert scripted.training


@pytest.mark.parametrize("original", [False, True])
def test_flat_parameters_are_refused(original: bool, tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import FullyShardedDataParallel

    init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(sequence(), device_id=torch.device("cpu"), use_orig_params=original)
        for part in model, model.module:
            with pytest.raises(ValueError, match=r"FullyShardedDataParallel \(FSDP1\).*before wrapping it"):
                trace(part, SIZE)
    finally:
        destroy_process_group()


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=re.escape("A model is a torch.nn.Module, not torch.Tensor")):
        trace(torch.zeros(1))  # type: ignore[arg-type]


def test_models_prepared_for_quantisation_are_in_floating_point() -> None:
    model = sequence()
    model[0].add = torch.ao.nn.quantized.FloatFunctional()
    assert set(trace(model, SIZE).targets) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_models_of_transformers_are_not_quantised_by_their_base_class() -> None:
    mixin = _named("transformers.integrations.peft.PeftAdapterMixin", object)
    model = type("PreTrained", (nn.Sequential, mixin), {})(*sequence())
    assert set(trace(model, SIZE).targets) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_a_pass_on_values_lets_go_of_what_is_no_longer_needed() -> None:
    """All activations together may be more than there is memory for, and nobody wants copies of them."""

    def act(m: Any, x: Tensor) -> None:
        x.sum().item()  # on the CPU
        inner = m.c(x)
        seen = weakref.ref(inner.relu_())
        inner = inner * 2
        assert seen() is None

    assert_traced(Net(act))

"""Blocks that are alike are recorded once, and the graph is the one that recording each of them gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from timm_ghn_init.graph import Graph, TraceError, replay, trace

BLOCKS, WIDTH, SIZE = 4, 8, (3, 16, 16)


def block() -> nn.Sequential:
    def layer() -> nn.Module:
        return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)

    return nn.Sequential(layer(), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(0.1), layer(), nn.BatchNorm2d(WIDTH))


class Tower(nn.Module):
    """Residual blocks in a row."""

    def __init__(self, make: Callable[[], nn.Module] = block) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.blocks = nn.ModuleList(make() for _ in range(BLOCKS))
        self.fc = nn.Linear(WIDTH, 5)
        self.mode: Callable[[Tower], Any] = lambda tower: None

    def train(self, mode: bool = True) -> "Tower":
        super().train(mode)
        self.mode(self)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for b in self.blocks:
            x = self.step(x, b)
        return self.fc(x.mean((2, 3)))

    def step(self, x: Tensor, b: nn.Module) -> Tensor:
        return x + b(x)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many blocks were written down by what one of them had done, itself included."""
    count, write = [0], replay.Replay._write

    def counting(self: Any, *args: Any) -> Any:
        count[0] += 1
        return write(self, *args)

    with mock.patch.object(replay.Replay, "_write", counting):
        yield count


def recorded(model: nn.Module, **kwargs: Any) -> Graph:
    """The graph with each block recorded."""
    with mock.patch.object(replay, "alike", lambda *_: ()):
        return trace(model, **kwargs)


def replayed(model: nn.Module, **kwargs: Any) -> int:
    """How many blocks were replayed; the graph is checked."""
    with counted() as count:
        graph = trace(model, **kwargs)
    expected = recorded(model, **kwargs)
    assert graph.nodes == expected.nodes
    np.testing.assert_array_equal(graph.edges, expected.edges)
    assert list(graph.targets.items()) == list(expected.targets.items())
    assert graph.skipped == expected.skipped
    return count[0]


def test_alike() -> None:
    assert replayed(Tower(), input_size=SIZE) == BLOCKS


def test_all_of_timms_test_models_in_both_dialects() -> None:
    names, total = timm.list_models("test_*"), 0
    assert names
    for name in names:
        model = timm.create_model(name)
        total += sum(replayed(model, dialect=dialect) for dialect in ("ghn2", "ghn3"))  # type: ignore[arg-type]
    assert total > 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_models_of_several_kinds(name: str) -> None:
    assert replayed(timm.create_model(name, drop_path_rate=0.1)) > 5


# -- blocks that are not alike -----------------------------------------------------------------------------------------


def hooked(tower: Tower) -> None:
    tower.blocks[1].register_forward_hook(lambda module, args, out: out + args[0])


def hooked_inside(tower: Tower) -> None:
    tower.blocks[1][0].register_forward_pre_hook(lambda module, args: (args[0].mean((2, 3), keepdim=True),))


def flagged(tower: Tower) -> None:
    tower.blocks[1][0].groups, tower.blocks[1][0].weight = WIDTH, nn.Parameter(torch.ones(WIDTH, 1, 3, 3))


def other_class(tower: Tower) -> None:
    tower.blocks[1][2] = nn.MaxPool2d(3, 1, 1)


def tied(tower: Tower) -> None:
    tower.blocks[1][0].weight = tower.blocks[2][0].weight


def shared(tower: Tower) -> None:
    tower.blocks[1][0] = tower.blocks[2][0]


def frozen(tower: Tower) -> None:
    tower.blocks[1][0].weight.requires_grad_(False)


def own_forward(tower: Tower) -> None:
    first = tower.blocks[0]
    tower.blocks[1].forward = lambda x: first[1](x)


def in_training(tower: Tower) -> None:
    tower.mode = lambda t: t.blocks[1].train(True) if t.training is False and not t.blocks[1].training else None


def other_buffer(tower: Tower) -> None:
    for i, b in enumerate(tower.blocks):
        b.register_buffer("index", torch.tensor([0, int(i == 1)]))


def of_its_own_class(tower: Tower) -> None:
    tower.blocks[1].__class__ = type("Own", (nn.Sequential,), {})


def tensor_attribute(tower: Tower) -> None:
    tower.blocks[1].scale = torch.ones(())


@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        *((change, 1) for change in (hooked, hooked_inside, flagged, other_class, frozen, own_forward, in_training)),
        *((change, 1) for change in (other_buffer, of_its_own_class, tensor_attribute)),
        *((change, 2) for change in (tied, shared)),
    ],
)
def test_unlike(change: Callable[[Tower], None], unlike: int) -> None:
    tower = Tower()
    change(tower)
    assert replayed(tower, input_size=SIZE) == BLOCKS - unlike


def test_what_matters_in_training_only_is_alike() -> None:
    tower = Tower()
    tower.blocks[1][3].p = 0.2
    assert replayed(tower, input_size=SIZE) == BLOCKS


def test_a_class_that_was_changed_is_not_trusted() -> None:
    def forward(self: nn.Sequential, x: Tensor) -> Tensor:
        return self[4](self[0](x))

    with mock.patch.object(nn.Sequential, "forward", forward):
        assert replayed(Tower(), input_size=SIZE) == 0


def test_a_hook_of_all_modules() -> None:
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out + args[0] if isinstance(module, nn.ReLU) else out
    )
    try:
        assert replayed(Tower(), input_size=SIZE) == 0
    finally:
        hook.remove()


def test_a_block_that_is_called_twice() -> None:
    class Twice(Tower):
        def step(self, x: Tensor, b: nn.Module) -> Tensor:
            return x + b(b(x))

    assert replayed(Twice(), input_size=SIZE) == BLOCKS


def test_a_weight_that_is_used_from_outside_before() -> None:
    class Uses(Tower):
        def step(self, x: Tensor, b: Any) -> Tensor:
            return x + b(nn.functional.conv2d(x, b[0].weight, padding=1))

    assert replayed(Uses(), input_size=SIZE) == 0


# -- blocks whose doings are not their own affair ----------------------------------------------------------------------


def trusted(cls: type) -> type:
    """A class as if it came with one of the packages whose modules are replayed."""
    for thing in (cls, *vars(cls).values()):
        if isinstance(thing, (type, FunctionType)):
            thing.__module__ = "timm.of_a_test"
    return cls


@trusted
class Layer(nn.Module):
    """Two convolutions and what a test does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(WIDTH, WIDTH, 1, bias=False) for _ in range(2))


@trusted
class WritesToItsInput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x.add_(self.a(x)))


@trusted
class LeavesWhatItMade(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        return self.b(self.kept)


@trusted
class Appends(Layer):
    def forward(self, x: Tensor) -> Tensor:
        KEPT.append(self.a(x))
        return self.b(KEPT[-1])


@trusted
class TakesFromElsewhere(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x) + OTHER[0])
        OTHER[0] = x
        return x


@trusted
class GivesItsInputBack(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.b(self.a(x))
        return x


@trusted
class GivesAMask(Layer):
    def forward(self, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return y, y > 0


@trusted
class GivesItsWeight(Layer):
    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x)), self.a.weight


@trusted
class GivesViewsOfOne(Layer):
    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x)).chunk(2, 1)


@trusted
class GivesSeveral(Layer):
    def forward(self, x: Tensor, *, scale: float = 1.0, also: Any = None) -> Any:
        y = self.a(x) * scale
        return {"y": [self.b(y), None], "x": x}


KEPT: list[Tensor] = []
OTHER: list[Any] = [0.0]


class Reads(Tower):
    """Makes something of all that the blocks give and leave."""

    def step(self, x: Tensor, b: nn.Module) -> Tensor:
        out = b(x, scale=2.0, also=(x, 3)) if isinstance(b, GivesSeveral) else b(x)
        if isinstance(out, dict):
            return out["y"][0] + out["x"]
        if isinstance(out, tuple):
            first, second = out
            if second.dtype == torch.bool:
                return x + first * second
            return x + (torch.cat((second, first), 1) if second.shape == first.shape else first * second.mean())
        return x + out + getattr(b, "kept", 0) + (KEPT.pop() if KEPT else 0)


@pytest.mark.parametrize(
    ("cls", "replays"),
    [
        *((cls, False) for cls in (WritesToItsInput, LeavesWhatItMade, Appends, TakesFromElsewhere)),
        *((cls, False) for cls in (GivesAMask, GivesItsWeight, GivesViewsOfOne)),
        *((cls, True) for cls in (GivesItsInputBack, GivesSeveral)),
    ],
)
def test_own_affairs(cls: type[Layer], replays: bool) -> None:
    OTHER[0] = 0.0
    KEPT.clear()
    tower = Reads(cls)
    with counted() as count:
        graph = trace(tower, SIZE)
    OTHER[0] = 0.0
    KEPT.clear()
    expected = recorded(tower, input_size=SIZE)
    assert (graph.nodes, graph.targets, graph.skipped) == (expected.nodes, expected.targets, expected.skipped)
    np.testing.assert_array_equal(graph.edges, expected.edges)
    assert (count[0] > 0) == replays
    assert "kept" not in vars(tower.blocks[0])


def test_a_failure_is_told_as_if_each_had_been_recorded() -> None:
    tower = Tower()
    tower.fc = nn.Linear(7, 5)
    messages = []
    for run in (trace, recorded):
        with pytest.raises(TraceError) as told:
            run(tower, input_size=SIZE)
        messages.append(str(told.value))
    assert messages[0] == messages[1]


def test_the_model_is_left_as_it_was() -> None:
    tower = Tower()
    before = [dict(vars(m)) for m in tower.modules()]
    trace(tower, SIZE)
    assert [dict(vars(m)) for m in tower.modules()] == before

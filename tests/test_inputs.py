"""What a model is called with to be traced: what it says of itself, what is found out, and what the caller gives."""

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from timm_ghn_init import init_model
from timm_ghn_init.graph import TraceError, trace


class Net(nn.Module):
    """A model whose forward is a function of the model and whatever it is called with."""

    def __init__(self, run: Callable[..., Any] = lambda m, x: m.c(x), **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(channels: int = 3, out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, bias=False)


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.zeros(1, channels, size, size)


def ids(length: int = 6) -> Tensor:
    return torch.zeros(1, length, dtype=torch.int64)


def edges(graph: Any) -> set[tuple[str, str]]:
    names = [node.param or node.primitive for node in graph.nodes]
    return {(names[u], names[v]) for u, v in graph.edges.tolist()}


# -- without a size --------------------------------------------------------------------------------------------------


def only(*shape: int) -> Callable[..., Any]:
    def run(m: Any, x: Tensor) -> Any:
        if tuple(x.shape[1:]) != shape:
            raise ValueError(f"{shape}, please")
        return m.c(x)

    return run


def with_wrong_layer_first() -> nn.Module:
    return Net(lambda m, x: m.head(m.stem(x)), head=conv(16), stem=conv(3, 16))


UNSAID: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "usual size, three channels": (lambda: nn.Sequential(conv()), (3, 224, 224)),
    "channels of the convolution": (lambda: nn.Sequential(conv(7)), (7, 224, 224)),
    "of the convolution that is used first": (with_wrong_layer_first, (3, 224, 224)),
    "of images that are folded first": (lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(12)), (3, 224, 224)),
    "of one channel that are folded first": (lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(4)), (1, 224, 224)),
    "a signal": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3)), (2, 1024)),
    "a video": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3)), (2, 16, 224, 224)),
    "a volume": (lambda: Net(only(1, 64, 64, 64), c=nn.Conv3d(1, 4, 3)), (1, 64, 64, 64)),
    "a vector": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 4)), (20,)),
    "token ids": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), (16,)),
    "config.image_size": (lambda: Net(only(3, 48, 48), c=conv(), config=SimpleNamespace(image_size=48)), (3, 48, 48)),
    "two sizes in a dict": (lambda: Net(only(3, 8, 9), c=conv(), config={"image_size": [8, 9]}), (3, 8, 9)),
    "of its vision tower": (
        lambda: Net(only(1, 9, 9), c=conv(1), config={"vision_config": SimpleNamespace(image_size=9, num_channels=1)}),
        (1, 9, 9),
    ),
    "frames and size": (
        lambda: Net(only(3, 4, 9, 9), c=nn.Conv3d(3, 4, 3), config={"num_frames": 4, "image_size": 9}),
        (3, 4, 9, 9),
    ),
    "a volume's size": (lambda: Net(only(1, 9, 8, 7), c=nn.Conv3d(1, 4, 3), img_size=(9, 8, 7)), (1, 9, 8, 7)),
    "timm's config": (lambda: Net(only(5, 8, 8), c=conv(5), pretrained_cfg={"input_size": (5, 8, 8)}), (5, 8, 8)),
    "timm's config, other channels": (
        lambda: Net(lambda m, x: m.c(x), c=conv(1), pretrained_cfg={"input_size": (3, 8, 8)}),
        (1, 8, 8),
    ),
    "in a wrapper": (
        lambda: nn.DataParallel(Net(only(3, 48, 48), c=conv(), config={"image_size": 48})),
        (3, 48, 48),
    ),
}


@pytest.mark.parametrize(("make", "size"), UNSAID.values(), ids=UNSAID)
def test_a_size_is_found(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    assert trace(make()).input_size == size


def test_an_exported_graph_is_called_as_it_was_recorded() -> None:
    exported = torch.export.export(nn.Sequential(conv(5)), (image(5, 9),)).module()
    assert trace(exported).input_size == (5, 9, 9)


class ByKeyword(nn.Module):
    """Takes images by a keyword, first or not, and nothing else that is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.c = conv()

    def forward(self, *, labels: Any = None, pixel_values: Tensor) -> Tensor:
        return self.c(pixel_values)


class ByKeywordBehindIds(ByKeyword):
    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Tensor:  # type: ignore[override]
        assert input_ids is None
        return self.c(pixel_values)


class ByAnotherKeyword(ByKeyword):
    def forward(self, *, threshold: float = 0.0, picture: Tensor) -> Tensor:  # type: ignore[override]
        return self.c(picture)


@pytest.mark.parametrize("model", [ByKeyword, ByKeywordBehindIds, ByAnotherKeyword])
def test_images_by_keyword(model: Callable[[], nn.Module]) -> None:
    for made in model(), nn.DataParallel(model()):
        assert trace(made, 16).input_size == (3, 16, 16)


# -- with one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "given", "size"),
    [
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3)), 50, (2, 50)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3)), (2, 50), (2, 50)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3)), 9, (2, 9, 9, 9)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3)), (9, 8, 7), (2, 9, 8, 7)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3)), (2, 9, 8, 7), (2, 9, 8, 7)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 4)), 20, (20,)),
        (lambda: nn.Sequential(nn.Linear(7, 4)), (7,), (7,)),
    ],
)
def test_sizes_of_what_is_no_image(make: Callable[[], nn.Module], given: Any, size: tuple[int, ...]) -> None:
    assert trace(make(), given).input_size == size


def test_sizes_of_an_image_and_a_vector() -> None:
    model = Net(lambda m, x, y: m.c(x).mean((2, 3)) + m.v(y), c=conv(), v=nn.Linear(7, 4, bias=False))
    graph = trace(model, [(3, 8, 8), (7,)])
    assert edges(graph) == {("input", "c.weight"), ("c.weight", "glob_avg"), ("glob_avg", "sum")} | {
        ("input", "v.weight"),
        ("v.weight", "sum"),
    }


# -- examples --------------------------------------------------------------------------------------------------------


Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Sample:
    image: Tensor
    mask: Tensor


def two() -> Net:
    return Net(lambda m, a, b: m.a(a) + m.b(b), a=conv(), b=conv(1))


EXAMPLES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "a tensor": (lambda: Net(c=conv()), image()),
    "a tuple": (two, (image(), image(1))),
    "keywords": (two, {"a": image(), "b": image(1)}),
    "keywords of another mapping": (two, UserDict(a=image(), b=image(1))),
    "a list of images": (lambda: Net(lambda m, x: [m.c(i) for i in x], c=conv()), [image()[0], image(3, 9)[0]]),
    "a namedtuple": (lambda: Net(lambda m, x: m.a(x.a) + m.b(x.b), a=conv(), b=conv(1)), (Pair(image(), image(1)),)),
    "a dataclass": (lambda: Net(lambda m, x: m.c(x.image) * x.mask, c=conv()), Sample(image(), image(1, 6))),
    "a dict as one argument": (lambda: Net(lambda m, x: m.c(x["image"]), c=conv()), ({"image": image()},)),
    "beside what is no tensor": (lambda: Net(lambda m, x, k: m.c(x) if k == "a" else x, c=conv()), (image(), "a")),
}


@pytest.mark.parametrize(("make", "example"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples(make: Callable[[], nn.Module], example: Any) -> None:
    graph = trace(make(), example_inputs=example)
    assert not graph.skipped
    assert graph.input_size == (3, 8, 8)
    assert {v for u, v in edges(graph) if u == "input"} == set(graph.targets)


class ImageAndText(nn.Module):
    """Features of an image and those of a text's last token, added."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.embed = conv(3, 8), nn.Embedding(20, 8)
        self.position = nn.Parameter(torch.zeros(1, 6, 8))
        self.t, self.h = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Any = None) -> Tensor:
        t = self.t(self.embed(input_ids.view(-1, input_ids.shape[-1])) + self.position)
        if attention_mask is not None:
            t = t + (1 - attention_mask[..., None].float())
        last = t[torch.arange(len(t), device=t.device), input_ids.argmax(-1)]
        return self.h(self.c(pixel_values).mean((2, 3)) + last)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.bool)])
def test_image_and_text(mask: Tensor | None) -> None:
    """Token ids are an input like the image. A mask is none, and indices only choose."""
    example = {"input_ids": ids(), "pixel_values": image(), "attention_mask": mask}
    graph = trace(ImageAndText(), example_inputs=example)
    assert edges(graph) == {
        *{("input", "c.weight"), ("c.weight", "glob_avg"), ("glob_avg", "sum")},
        *{("input", "sum"), ("position", "sum"), ("sum", "t.weight"), ("t.weight", "t.bias"), ("t.bias", "sum")},
        *{("sum", "h.weight"), ("h.weight", "h.bias")},
    }
    assert graph.skipped == {"embed.weight": "a table in which the input is looked up"}


def test_examples_are_not_written_to() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        assert not x.sum().item()  # so that it runs on values
        return m.c(x.add_(1))

    example = image()
    assert set(trace(Net(run, c=conv()), example_inputs=example).targets) == {"c.weight"}
    assert not example.any()


def test_init_model_takes_examples() -> None:
    model = Net(lambda m, x, y: m.h(m.c(x).mean((2, 3)) * y), c=conv(), h=nn.Linear(4, 10))
    report = init_model(model, "ghn2-fashion", example_inputs=(image(), torch.ones(1, 4)), device="cpu")
    assert set(report.predicted) == {"c.weight", "h.weight", "h.bias"}


@pytest.mark.parametrize("example", [{"a": 3}, "image", [], ()])
def test_examples_without_a_tensor(example: Any) -> None:
    with pytest.raises(ValueError, match=r"example_inputs must be a tensor, a tuple .* or a dict"):
        trace(Net(c=conv()), example_inputs=example)


def test_a_size_and_examples() -> None:
    with pytest.raises(ValueError, match="not by both"):
        trace(Net(c=conv()), 8, example_inputs=image())


# -- failures --------------------------------------------------------------------------------------------------------


def test_an_error_names_the_two_attempts_that_got_furthest() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        for _ in range({256: 3, 299: 5}.get(x.shape[-1], 0)):
            x = x + 1
        raise ValueError(f"not {x.shape[-1]}")

    with pytest.raises(TraceError) as raised:
        trace(Net(run, c=conv()))
    message = str(raised.value)
    assert message.startswith("Net: the forward pass failed")
    assert "input_size=" in message
    assert "example_inputs=" in message
    assert message.endswith("Tried: 3x299x299 on meta: ValueError: not 299; 3x256x256 on meta: ValueError: not 256")


def test_one_error_is_named_once() -> None:
    with pytest.raises(TraceError) as raised:
        trace(Net(lambda m, x: 1 // 0, c=conv()))
    assert str(raised.value).count("ZeroDivisionError") == 1


def test_values_of_a_model_on_meta_are_its_own_and_it_stays_there() -> None:
    """Where the forward needs values and fails nevertheless, the model is as it was."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = conv()
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def reset_parameters(self) -> None:
            self.steps.fill_(3)

        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError(f"{int(self.steps)} steps")

    with torch.device("meta"):
        model = Steps()
    with pytest.raises(TraceError, match="3 steps"):
        init_model(model, "ghn2-fashion", input_size=8, device="cpu")
    assert model.c.weight.is_meta
    assert model.steps.is_meta

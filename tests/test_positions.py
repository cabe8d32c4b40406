"""Position embeddings: which rows are predicted, in any layout and spelling, and what only looks like one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Graph, trace

Make = Callable[[], nn.Module]
C = 6


class Net(nn.Module):
    """Patches of 2 x 2 of an image, whatever is run on them, a linear layer."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run, self.p, self.l = run, nn.Conv2d(3, C, 2, 2, bias=False), nn.Linear(C, 4, bias=False)
        for name, part in parts.items():
            if name == "ids":
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.run(self, self.p(x)))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def pos(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def table(rows: int, channels: int = C) -> nn.Embedding:
    return nn.Embedding(rows, channels, _weight=torch.zeros(rows, channels))


def rows(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def written(graph: Graph, ghn: GHN, name: str) -> list[int]:
    """The positions of a parameter, as rows in order, that a prediction writes to."""
    parameter = torch.full(graph.targets[name].shape, torch.nan)
    ghn.decode(graph, ghn.embed(graph), [name])[name].write_(parameter)
    place = graph.targets[name].place
    assert place is not None
    there = parameter.isfinite()
    assert torch.equal(there.any(place.channels), there.all(place.channels)), "whole rows"
    return there.any(place.channels).flatten().nonzero().flatten().tolist()


def by_two_tables(m: Any, x: Tensor) -> Tensor:
    """As DETR has it: half of the channels for columns, half for rows."""
    h, w = x.shape[-2:]
    across, down = m.columns(rows(w, x)), m.rows(rows(h, x))
    both = torch.cat((across[None].repeat(h, 1, 1), down[:, None].repeat(1, w, 1)), -1)
    return tokens(x + both.permute(2, 0, 1)[None].repeat(len(x), 1, 1, 1))


def by_coordinates(m: Any, x: Tensor) -> Tensor:
    """One table for both axes, looked up for each patch."""
    h, w = x.shape[-2:]
    y, x_ = torch.meshgrid(rows(h, x), rows(w, x), indexing="ij")
    return tokens(x) + (m.pos[0][x_.flatten()] + m.pos[1][y.flatten()])


def by_one_hot(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y, x_ = torch.meshgrid(rows(h, x), rows(w, x), indexing="ij")
    hot = F.one_hot(torch.stack((x_, y)).flatten(1), m.pos.shape[1])
    return tokens(x) + (hot.to(m.pos.dtype) @ m.pos).sum(0)


def with_class_token(m: Any, x: Tensor) -> Tensor:
    return torch.cat((m.token.expand(len(x), -1, -1), tokens(x)), 1)


def sequence_first(m: Any, x: Tensor) -> Tensor:
    return (tokens(x).transpose(0, 1) + m.pos).transpose(0, 1)


# How it is used, on a grid of 3 x 4: the parts, the parameter, its layout, grid, and the rows that are used.
def by_two_sums(m: Any, x: Tensor) -> Tensor:
    """As torchvision's MViT has time and space."""
    both = m.other.repeat_interleave(4, 0)
    both.add_(m.pos.expand(3, 4, C).reshape(12, C))
    return tokens(x) + both


USED: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]], str, str, tuple[int, int], range]] = {
    "added": (lambda m, x: tokens(x) + m.pos, {"pos": lambda: pos(1, 12, C)}, "pos", "tokens", (3, 4), range(12)),
    "first of more rows": (
        lambda m, x: tokens(x) + m.pos[:, :12],
        {"pos": lambda: pos(1, 20, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "last of more rows": (
        lambda m, x: tokens(x) + m.pos[:, -12:],
        {"pos": lambda: pos(1, 40, C)},
        *("pos", "tokens", (3, 4), range(28, 40)),
    ),
    "from the middle": (
        lambda m, x: tokens(x).add_(m.pos.narrow(1, 2, 12)),
        {"pos": lambda: pos(1, 20, C)},
        *("pos", "tokens", (3, 4), range(2, 14)),
    ),
    "class token and padding": (
        lambda m, x: with_class_token(m, x) + m.pos[:, :13],
        {"pos": lambda: pos(1, 20, C), "token": lambda: pos(1, 1, C)},
        *("pos", "tokens", (3, 4), range(1, 13)),
    ),
    "embedding of arange": (
        lambda m, x: tokens(x) + m.pos(rows(12, x)),
        {"pos": lambda: table(20)},
        *("pos.weight", "tokens", (3, 4), range(12)),
    ),
    "embedding of arange and an offset": (
        lambda m, x: tokens(x) + m.pos(rows(12, x)[None].expand(len(x), -1) + 2),
        {"pos": lambda: table(20)},
        *("pos.weight", "tokens", (3, 4), range(2, 14)),
    ),
    "embedding of indices in a buffer": (
        lambda m, x: tokens(x) + m.pos(m.ids[:, :12]),
        {"pos": lambda: table(20), "ids": lambda: torch.arange(3, 20)[None]},
        *("pos.weight", "tokens", (3, 4), range(3, 15)),
    ),
    "sequence first": (sequence_first, {"pos": lambda: pos(12, 1, C)}, "pos", "tokens", (3, 4), range(12)),
    "repeated": (
        lambda m, x: tokens(x) + m.pos.repeat(len(x), 1, 1),
        {"pos": lambda: pos(1, 12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "expanded": (
        lambda m, x: tokens(x) + m.pos.expand(len(x), -1, -1),
        {"pos": lambda: pos(12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "stacked for the batch": (
        lambda m, x: tokens(x) + torch.stack([m.pos[0]] * len(x)),
        {"pos": lambda: pos(1, 12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "channels first": (
        lambda m, x: (x.flatten(2) + m.pos).mT,
        {"pos": lambda: pos(1, C, 12)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "map, channels last": (
        lambda m, x: tokens(x) + m.pos.flatten(0, 1),
        {"pos": lambda: pos(3, 4, C)},
        *("pos", "hwc", (3, 4), range(12)),
    ),
    "map, cropped": (
        lambda m, x: tokens(x + m.pos[:, :, :3, :4]),
        {"pos": lambda: pos(1, C, 4, 5)},
        *("pos", "chw", (3, 4), (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13)),
    ),
    "scaled, in half precision, dropped out": (
        lambda m, x: tokens(x) + F.dropout(m.pos.half().float() * 0.5, 0.1, m.training),
        {"pos": lambda: pos(1, 12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "normalised": (
        lambda m, x: tokens(x) + F.layer_norm(m.pos, (C,)),
        {"pos": lambda: pos(1, 12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "subtracted": (
        lambda m, x: torch.add(tokens(x), m.pos, alpha=-1),
        {"pos": lambda: pos(1, 12, C)},
        *("pos", "tokens", (3, 4), range(12)),
    ),
    "columns of two tables": (
        by_two_tables,
        {"rows": lambda: table(9, C // 2), "columns": lambda: table(9, C // 2)},
        *("columns.weight", "tokens", (1, 4), range(4)),
    ),
    "rows of two tables": (
        by_two_tables,
        {"rows": lambda: table(9, C // 2), "columns": lambda: table(9, C // 2)},
        *("rows.weight", "tokens", (3, 1), range(3)),
    ),
    "rows and columns that broadcast": (
        lambda m, x: tokens(x + (m.rows + m.columns)),
        {"rows": lambda: pos(1, C, 3, 1), "columns": lambda: pos(1, C, 1, 4)},
        *("columns", "tokens", (1, 4), range(4)),
    ),
    "one table for both axes": (
        by_coordinates,
        {"pos": lambda: pos(2, 9, C)},
        *("pos", "tokens", (4, 1), (0, 1, 2, 3, 9, 10, 11, 12)),
    ),
    "one table, by one-hot vectors": (
        by_one_hot,
        {"pos": lambda: pos(2, 9, C)},
        *("pos", "tokens", (4, 1), (0, 1, 2, 3, 9, 10, 11, 12)),
    ),
    "written in place to others": (
        by_two_sums,
        {"other": lambda: pos(3, C), "pos": lambda: pos(4, C)},
        *("pos", "tokens", (2, 2), range(4)),
    ),
    "interpolated": (
        lambda m, x: tokens(x + F.interpolate(m.pos.mT.reshape(1, C, 5, 5), x.shape[-2:])),
        {"pos": lambda: pos(1, 25, C)},
        *("pos", "tokens", (5, 5), range(25)),
    ),
}


@pytest.mark.parametrize(("run", "parts", "name", "layout", "grid", "used"), USED.values(), ids=USED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_used_is_predicted(
    run: Any, parts: Any, name: str, layout: str, grid: Any, used: Any, device: str, seeded_ghn2: GHN
) -> None:
    """Whether the model has values or not."""
    if device == "meta" and "ids" in parts:
        pytest.skip("the indices are not known")
    model = Net(run, **{part: make() for part, make in parts.items()}).to(device)
    graph = trace(model, (3, 6, 8))
    target = graph.targets[name]
    assert (target.role, target.layout, target.grid) == ("pos_enc", layout, grid)
    assert written(graph, seeded_ghn2, name) == list(used)
    assert target.whole == (len(used) * target.shape[target.place.channels] == model.get_parameter(name).numel())
    primitives = [n.primitive for n in graph.nodes]
    assert primitives.count("sum") == 1
    assert primitives.count("pos_enc") == len([n for n in parts if n not in ("ids", "token")])


def test_rows_are_the_positions_of_the_grid(seeded_ghn2: GHN) -> None:
    """Whatever the layout, the same position gets the same values."""
    spellings = {
        "added": (1, 12, C),
        "sequence first": (12, C),
        "channels first": (C, 12),
        "map, channels last": (12, C),
    }
    found = []
    for key, shape in spellings.items():
        run, parts, name, *_ = USED[key]
        graph = trace(Net(run, **{part: make() for part, make in parts.items()}), (3, 6, 8))
        predicted = seeded_ghn2.predict(graph)[name].reshape(shape).squeeze()
        found.append(predicted.mT if shape[0] == C else predicted)
    for other in found[1:3]:  # a node that shows another shape has another embedding
        torch.testing.assert_close(other, found[0])


def test_a_video_has_one_grid_for_all_times(seeded_ghn2: GHN) -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.pos = nn.Conv3d(3, C, (1, 2, 2), (1, 2, 2)), pos(1, 5, 3, 4, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.p(x).permute(0, 2, 3, 4, 1) + self.pos

    graph = trace(Video(), (3, 5, 6, 8))
    assert graph.targets["pos"].grid == (3, 4)
    predicted = seeded_ghn2.predict(graph)["pos"]
    assert torch.equal(predicted[:, :1].expand_as(predicted), predicted)


def test_a_sequence_of_a_video_likewise(seeded_ghn2: GHN) -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.pos = nn.Conv3d(3, C, (1, 2, 2), (1, 2, 2)), pos(1, 60, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.p(x).flatten(2).mT + self.pos

    graph = trace(Video(), (3, 5, 6, 8))
    assert graph.targets["pos"].grid == (3, 4)
    predicted = seeded_ghn2.predict(graph)["pos"].view(5, 12, C)
    assert torch.equal(predicted[:1].expand(5, -1, -1), predicted)


def test_positions_of_a_text_are_those_of_a_line() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.pos, self.l = nn.Embedding(9, C), pos(11, C), nn.Linear(C, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.l(self.e(ids) + self.pos[: ids.shape[1]])

    place = trace(Text(), example_inputs=torch.zeros(1, 9, dtype=torch.int64)).targets["pos"].place
    assert place is not None
    assert (place.grid, place.box) == ((9, 1), ((0, 9), (0, C)))


def test_positions_that_follow_the_tokens() -> None:
    """As RoBERTa has it: counted from 2 on where there is no padding, which is token 1."""

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.pos, self.l = nn.Embedding(9, C), table(20), nn.Linear(C, 4)

        def forward(self, ids: Tensor) -> Tensor:
            there = ids.ne(1).int()
            return self.l(self.e(ids) + self.pos(torch.cumsum(there, 1) * there + 1))

    example = torch.tensor([[0, 3, 3, 2, 1, 1]])
    place = trace(Text(), example_inputs=example).targets["pos.weight"].place
    assert place is not None
    assert place.box == ((1, 5), (0, C))


# -- none of them ------------------------------------------------------------------------------------------------------


def blocks(m: Any, x: Tensor) -> Tensor:
    return (torch.einsum("bngc,gcd->bngd", tokens(x).unflatten(-1, (2, 3)), m.w) + m.b).flatten(2)


def attend(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    t = tokens(x)
    q, k, v = m.qkv(t).chunk(3, -1)
    return (q @ k.mT).softmax(-1), v


def mixed_weights(m: Any, x: Tensor) -> Tensor:
    weights, v = attend(m, x)
    return (weights + m.mix) @ v


def qkv() -> nn.Linear:
    return nn.Linear(C, 3 * C)


def from_queries(m: Any, x: Tensor) -> Tensor:
    """A learned query for each of five answers."""
    t = tokens(x)
    return (m.q(m.query).expand(len(x), -1, -1) @ t.mT).softmax(-1) @ t


NONE: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]], dict[str, str | None]]] = {
    "bias of a block-diagonal layer": (
        blocks,
        {"w": lambda: nn.Parameter(torch.randn(2, 3, 3)), "b": lambda: pos(2, 3)},
        {"w": "weight", "b": "bias"},
    ),
    "matrix added to attention weights": (mixed_weights, {"qkv": qkv, "mix": lambda: pos(1, 12, 12)}, {"mix": None}),
    "class token": (
        lambda m, x: torch.cat((m.token.expand(len(x), -1, -1), tokens(x)), 1),
        {"token": lambda: pos(1, 1, C)},
        {"token": None},
    ),
    "register tokens": (
        lambda m, x: torch.cat((m.token.repeat(len(x), 1, 1), tokens(x)), 1),
        {"token": lambda: pos(1, 3, C)},
        {"token": None},
    ),
    "prompts from a table": (
        lambda m, x: torch.cat((m.token(rows(3, x)).expand(len(x), -1, -1), tokens(x)), 1),
        {"token": lambda: table(3)},
        {"token.weight": None},
    ),
    "learned queries": (
        from_queries,
        {"query": lambda: pos(1, 5, C), "q": lambda: nn.Linear(C, C)},
        {"query": None, "q.weight": "weight"},
    ),
    "a number for each position": (lambda m, x: tokens(x) + m.s, {"s": lambda: pos(1, 12, 1)}, {"s": None}),
    "a bias": (lambda m, x: tokens(x) @ m.w + m.b, {"w": lambda: pos(C, C), "b": lambda: pos(1, 1, C)}, {"b": "bias"}),
}


@pytest.mark.parametrize(("run", "parts", "roles"), NONE.values(), ids=NONE)
def test_what_is_no_position(run: Any, parts: Any, roles: dict[str, str | None], seeded_ghn2: GHN) -> None:
    graph = trace(Net(run, **{part: make() for part, make in parts.items()}), (3, 6, 8))
    found = {name: t.role for name, t in graph.targets.items()}
    assert {name: found.get(name) for name in roles} == roles
    assert all(n.primitive != "pos_enc" for n in graph.nodes)
    seeded_ghn2.predict(graph)

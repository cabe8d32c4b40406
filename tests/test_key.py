"""The key of finished weights: what it depends on, and what it does not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from timm_ghn_init import GHN, init_model, load_ghn, trace
from timm_ghn_init.weights import cache, key
from timm_ghn_init.weights.key import ghn_digest, graph_digest


@pytest.fixture
def name_of(monkeypatch: pytest.MonkeyPatch, seeded_ghn2: GHN) -> Callable[..., str]:
    """The name under which `init_model` asks the cache for a model's weights."""
    asked: list[str] = []

    def remember(name: str, make: object, like: Any) -> tuple[Any, dict[str, Any], bool]:
        asked.append(name)
        return {n: t.clone() for n, t in like.items()}, {}, True

    monkeypatch.setattr(cache, "remember", remember)

    def name_of(model: nn.Module | None = None, source: str = "ghn2-orth?layer=3", **options: Any) -> str:
        init_model(model or resnet(), source, **{"ghn": seeded_ghn2, "cache": True, "device": "cpu", **options})
        return asked.pop()

    return name_of


def resnet(**options: Any) -> nn.Module:
    return timm.create_model("test_resnet", **options)


def test_what_makes_another_key(name_of: Callable[..., str], seeded_ghn2: GHN, seeded_ghn3: GHN) -> None:
    other = copy.deepcopy(seeded_ghn2)
    other.bias_class[1].bias[0] += 1e-6
    names = {
        "as it is": name_of(),
        "10 classes": name_of(resnet(num_classes=10)),
        "11 classes": name_of(resnet(num_classes=11)),
        "no classifier": name_of(resnet(num_classes=0)),
        "1 channel": name_of(resnet(in_chans=1)),
        "another graph of the same parameters": name_of(resnet(global_pool="max")),
        "float16": name_of(resnet().half()),
        "layer": name_of(source="ghn2-orth?layer=4"),
        "beta": name_of(source="ghn2-orth?layer=3&beta=1e-5"),
        "seed": name_of(seed=1),
        "noise only": name_of(source="ghn2-orth?layer=3&orth=0"),
        "classifier=0": name_of(source="ghn2-orth?layer=3&classifier=0"),
        "another weight of the GHN": name_of(ghn=other),
        "another GHN": name_of(ghn=seeded_ghn3),
        "another architecture": name_of(timm.create_model("test_convnext")),
    }
    assert len(set(names.values())) == len(names)


def test_what_makes_no_other_key(name_of: Callable[..., str], seeded_ghn2: GHN, ghn_file: Path) -> None:
    torch.manual_seed(5)
    assert {
        name_of(),
        name_of(seed=0),
        name_of(source="ghn2-orth?layer=3&seed=0&cache=1"),
        name_of(source=f"file:{ghn_file}-orth?layer=3", ghn=None),
        name_of(resnet().eval()),
        name_of(resnet(drop_path_rate=0.1)),
        name_of(ghn=copy.deepcopy(seeded_ghn2)),
    } == {name_of()}


@pytest.mark.parametrize("constant", ["ALGORITHM", "__version__"])
def test_another_release_makes_another_key(
    constant: str, name_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name_of()
    monkeypatch.setattr(key, constant, "other")
    assert name_of() != before


def test_layers_that_are_not_post_processed_make_another_key(name_of: Callable[..., str]) -> None:
    """The last layer is left alone, and so is what shares its weight; graph and parameters do not show that."""

    class Chain(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x))

    plain, shared = (Chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)) for _ in range(2))
    shared.append(nn.Module())
    shared[2].weight = shared[0].weight
    everything = [name for name, _ in plain.named_parameters()]  # the head too
    plain_name, shared_name = (name_of(model, "ghn2-orth?layer=1", only=everything) for model in (plain, shared))
    assert plain_name != shared_name


def test_ghn_digest(seeded_ghn2: GHN, ghn_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights, not of the file; a GHN that never changes is read once, another one always."""
    torch.save(
        {"config": seeded_ghn2.config, "state_dict": seeded_ghn2.state_dict()}, pt := ghn_file.with_suffix(".pt")
    )
    assert ghn_digest(load_ghn(ghn_file)) == ghn_digest(load_ghn(pt)) == ghn_digest(seeded_ghn2)
    own = copy.deepcopy(seeded_ghn2)
    before = ghn_digest(own)
    own.ln.bias.data[0] += 1  # what no version counter sees
    assert ghn_digest(own) != before == ghn_digest(seeded_ghn2, frozen=True)
    monkeypatch.setattr(key, "digest", lambda tensors: "read again")
    assert ghn_digest(seeded_ghn2, frozen=True) == before
    assert ghn_digest(seeded_ghn2) != before


def test_graph_digest(seeded_ghn2: GHN) -> None:
    digests = [graph_digest(trace(resnet(**options))) for options in ({}, {"drop_rate": 0.5}, {"global_pool": "max"})]
    assert digests[0] == digests[1] != digests[2]
    assert graph_digest(trace(resnet(), dialect="ghn3")) != digests[0]

"""What values may be: one vocabulary, asked before anything is done."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import timm_ghn_init
from timm_ghn_init.lab.training.loop import TrainConfig
from timm_ghn_init.lab.training.networks import sample
from timm_ghn_init.utils import checks
from timm_ghn_init.utils.checks import Kind
from timm_ghn_init.weights.cache import size_limit

HUGE = 10**5000  # of more digits than Python shows
NAN, INF = float("nan"), float("inf")

# kind -> what is one, what is none; as values and as text
VALUES: dict[str, tuple[Kind, list[Any], list[Any]]] = {
    "whole": (checks.whole(1), [1, 2**63 - 1, np.int64(3)], [0, -1, 2**63, HUGE, 1.0, True, "1", None, NAN]),
    "range": (checks.whole(0, 8), [0, 8], [9, -1]),
    "multiple": (checks.WIDTH, [4, 32], [0, 5, -4, 2**14 + 4, 4.0, True]),
    "positive": (checks.POSITIVE, [1, 1e-300, np.float32(2)], [0, -1.0, NAN, INF, HUGE, True, "1", 1j, None]),
    "not negative": (checks.NOT_NEGATIVE, [0, 1.5], [-1e-9, NAN, INF]),
    "part": (checks.PART, [0, 0.99], [1, -0.1, NAN]),
    "word": (checks.one_of("sgd", "adamw"), ["sgd"], ["adam", "", None, ["sgd"]]),
    "either": (checks.either(checks.whole(1), checks.one_of("auto")), [1, "auto"], [0, "1", None]),
    "or none": (checks.or_none(checks.FLAG), [None, True, False], [0, 1, "yes"]),
    "namespace": (checks.NAMESPACE, ["me", "a-b.c"], ["", "a/b", "a--b", "-a", "a" * 97, None, 5]),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str, record_property: Callable[[str, object], None]) -> None:
    kind, good, bad = VALUES[name]
    record_property("tried", len(bad))
    for value in good:
        kind.check("it", value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^it must be .*, not ") as error:
            kind.check("it", value)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (checks.whole(0), "12", 12),
        (checks.POSITIVE, "3e-5", 3e-5),
        (checks.FLAG, "1", True),
        (checks.either(checks.whole(1), checks.one_of("auto")), "auto", "auto"),
    ],
)
def test_text(kind: Kind, text: str, value: object) -> None:
    assert kind.read(text) == value


@pytest.mark.parametrize(
    "text", ["", " ", "nan", "inf", "-1", "1e400", "1_0", " 1", "x", "9" * 5000, "\udcff", "/dev/null"]
)
def test_text_that_is_none(text: str) -> None:
    for kind in (checks.whole(0), checks.POSITIVE):
        if (kind, text) != (checks.POSITIVE, "9" * 5000):
            with pytest.raises(ValueError, match=f"^must be {kind.wanted}, not ") as error:
                kind.read(text)
            assert len(str(error.value)) < 200


def test_what_is_too_large_is_called_so() -> None:
    with pytest.raises(ValueError, match=r"18446744073709551616, which is too large$"):
        checks.SEED.read(str(2**64))


# -- where they are asked ----------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, 10))


OPTIONS: list[tuple[str, list[Any]]] = [
    ("source", [5, None, b"ghn2"]),
    ("ghn", ["ghn2", small]),
    ("input_size", [True, 0, -1, NAN, (3, 224, True), "224", (), (1,) * 5, [[3, 0, 8]], 10**9]),
    ("seed", [NAN, "1", -1, True, 1.0, 2**63]),
    ("device", ["meta", "quantum", "", 5.5, "\udcff", 99]),
    ("progress", ["yes", 1]),
    ("cache", ["yes", 1]),
    ("init_rest", ["yes", 0]),
    ("timeout", [0, -1, NAN, INF, "1m", True]),
]


@pytest.mark.parametrize(("name", "values"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_init_model(
    name: str, values: list[Any], seeded_ghn2: Any, record_property: Callable[[str, object], None]
) -> None:
    """The error names the argument, and nothing has happened to the model."""
    record_property("tried", len(values))
    model = small()
    before = {n: p.clone() for n, p in model.named_parameters()}
    for value in values:
        options = {"source": "ghn2-orth?layer=1", "ghn": seeded_ghn2, "input_size": 32, name: value}
        with pytest.raises(ValueError, match=f"{name} must be"):
            timm_ghn_init.init_model(model, **options)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_other_functions() -> None:
    for call in (
        lambda: timm_ghn_init.postprocess(5, layer=1),  # type: ignore[arg-type]
        lambda: timm_ghn_init.trace(small(), 32, "ghn4"),  # type: ignore[arg-type]
        lambda: timm_ghn_init.load_ghn("ghn2-fashion", "meta"),
        lambda: timm_ghn_init.save_ghn(5, "x.safetensors"),  # type: ignore[arg-type]
    ):
        with pytest.raises(checks.InputError, match="must be"):
            call()
    with pytest.raises(timm_ghn_init.CheckpointError, match="no such file"):
        timm_ghn_init.load_ghn("file:a\0b.pt")


def test_init_model_of_something_else() -> None:
    for thing in (5, "resnet50", None, nn.Linear):
        with pytest.raises((TypeError, ValueError), match="Module"):
            timm_ghn_init.init_model(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [1e38, 1e300, 1001.0])
def test_noise_that_no_dtype_holds(beta: float, seeded_ghn2: Any) -> None:
    """Its orthogonal factor would be NaN, or nothing at all would change."""
    model = small()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"beta=1.*at most 1000"):
        timm_ghn_init.init_model(model, f"ghn2-orth?layer=1&beta={beta}", ghn=seeded_ghn2, input_size=32)
    with pytest.raises(ValueError, match=r"beta=1.*at most 1000"):
        timm_ghn_init.postprocess(model, layer=1, beta=beta)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loudest_noise_is_finite(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    timm_ghn_init.postprocess(model, layer=1, beta=1000, orthogonal=False)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "value"), [("layer", True), ("layer", 1.0), ("beta", "1"), ("seed", "1"), ("seed", NAN), ("orthogonal", 1)]
)
def test_postprocess(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        timm_ghn_init.postprocess(small(), **{"layer": 1, name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, 1.5, True]),
        ("networks", [0, NAN]),
        ("batch_size", [1, "8"]),
        ("pool", [0]),
        ("warmup", [0]),
        ("max_macs", [NAN, INF, -5, 0, 1]),
        ("lr", [NAN, 0, -1, INF]),
        ("clip", [0, -1, NAN]),
        ("weight_decay", [-1, NAN]),
        ("label_smoothing", [1, -0.1]),
        ("seed", [-1, 2**64]),
    ],
)
def test_training_runs(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be"):
            TrainConfig(**{name: value})


def test_the_width_of_a_ghn() -> None:
    for hid in (5, 0, -4, "8"):
        with pytest.raises(ValueError, match="hid must be a multiple of 4"):
            TrainConfig(ghn={**TrainConfig().ghn, "hid": hid})


def test_networks_that_nobody_would_ever_draw() -> None:
    for macs in (1.0, NAN, -5.0):
        with pytest.raises(ValueError, match="max_macs must be"):
            sample("train", 0, 0, max_macs=macs)


@pytest.mark.parametrize("text", ["9" * 400 + "T", "1e5", "-1", "nan", ""])
def test_sizes_of_the_cache(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="TIMM_GHN_CACHE_SIZE"):
        size_limit(text)

"""The registry: sources of one's own, those of other packages, compositions, mimetic attention and weight selection."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hub_server import HubServer
from torch import Tensor, nn

from timm_ghn_init import GHN, init_model, parse_source, register_source, registry, trace
from timm_ghn_init.cli import main
from timm_ghn_init.recipe.mimetic import attentions
from timm_ghn_init.recipe.select import entries
from timm_ghn_init.sources import is_source, list_sources


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(registry, "_table", dict(registry._table))


def small(model: nn.Module, seed: int, *, std: float = 0.5) -> Iterator[tuple[str, Tensor | str]]:
    """Small random weights."""
    for name, p in model.named_parameters():
        if p.dim() > 1:
            yield name, std * torch.randn(p.shape)
        else:
            yield name, "a vector"


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


# -- registration ------------------------------------------------------------------------------------------------------


def test_a_source_of_ones_own() -> None:
    register_source("small", small)
    model, other = net(), net().half()
    state = torch.get_rng_state()
    report = init_model(model, "small?std=0.1&seed=3")
    assert torch.equal(torch.get_rng_state(), state)
    assert report.predicted == {"0.weight": "weight", "4.weight": "weight"}
    assert report.skipped["1.bias"] == "a vector"
    assert (report.source, report.seed, report.device, report.nodes) == ("small?seed=3&std=0.1", 3, "cpu", 0)
    assert model[0].weight.std().item() == pytest.approx(0.1, rel=0.2)
    init_model(other, "small?std=0.1", seed=3)
    assert torch.equal(other[4].weight, model[4].weight.half())
    assert not torch.equal(snapshot(other)["0.weight"], init_and_get(net(), "small?std=0.1", seed=4).half())
    assert set(init_model(net(), "small?only=0.*").predicted) == {"0.weight"}
    assert "small" in [str(s) for s in list_sources()]
    assert parse_source("small?std=1").keys == (*registry.SHARED, "std")


def init_and_get(model: nn.Module, source: str, **options: Any) -> Tensor:
    init_model(model, source, **options)
    return model.get_parameter("0.weight").detach()


def test_as_a_decorator_with_keys_of_every_kind_and_orthogonal_weights() -> None:
    got: dict[str, Any] = {}

    @register_source("many", keys={"a": 1, "b": float, "c": "x", "d": True}, description="Many keys", orthogonal=True)
    def many(model: nn.Module, seed: int, **keys: Any) -> Iterator[tuple[str, Tensor]]:
        got.update(keys, seed=seed)
        yield "0.weight", torch.randn(8, 3, 3, 3)

    assert callable(many)
    model = net()
    report = init_model(model, "many?b=2&d=0&layer=1", seed=7)
    assert got == {"a": 1, "b": 2.0, "c": "x", "d": False, "seed": 7}
    q = model[0].weight.flatten(1)
    torch.testing.assert_close(q @ q.T, torch.eye(8))
    assert report.postprocessed == ("0.weight",) and report.layer == 1
    for wrong in ("many?a=1.5", "many?b=x", "many?d=2", "many?e=1", "many?beta=0", "many-orth"):
        with pytest.raises(ValueError, match="many"):
            parse_source(wrong)


@pytest.mark.parametrize("name", ["rand", "ghn", "ghn2", "mimetic", "ghn4", "Caps", "a b", "my-orth", "", "a?b", 3])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ValueError, match="register_source"):
        register_source(name, small)


def test_what_else_cannot_be_registered() -> None:
    register_source("small", small)
    with pytest.raises(ValueError, match="small is taken"):
        register_source("small", small)
    register_source("small", small, replace=True)
    with pytest.raises(ValueError, match="taken"):
        register_source("rand", small, replace=True)
    with pytest.raises(ValueError, match="the key seed has a meaning"):
        register_source("other", small, keys={"seed": 1})
    with pytest.raises(ValueError, match="needs a default or a type"):
        register_source("other", small, keys={"std": [1]})
    with pytest.raises(ValueError, match="no function"):
        register_source("other", 3)  # type: ignore[arg-type]


def yields(*pairs: Any) -> Any:
    def function(model: nn.Module, seed: int) -> Any:
        yield "0.weight", torch.ones(8, 3, 3, 3)
        yield from pairs

    return function


def raises(model: nn.Module, seed: int) -> Any:
    yield "0.weight", torch.ones(8, 3, 3, 3)
    raise KeyError("a bug")


def writes(model: nn.Module, seed: int) -> Any:
    yield "0.weight", model[0].weight.mul_(1)


WRONG: dict[str, tuple[Any, str]] = {
    "raises": (raises, "the function of wrong failed: KeyError: 'a bug'"),
    "is no generator": (lambda model, seed: None, "the function of wrong failed: TypeError"),
    "yields no pairs": (yields("0.bias"), "the function of wrong failed"),
    "writes": (writes, "has written to 0.weight"),
    "unknown name": (yields(("0.wieght", torch.ones(1))), "'0.wieght', and .* no parameter .* Did you mean 0.weight"),
    "a name twice": (yields(("0.weight", torch.ones(8, 3, 3, 3))), "two values for 0.weight"),
    "shape": (yields(("0.bias", torch.ones(7))), r"shape \(7,\) for 0.bias, whose shape is \(8,\)"),
    "broadcast": (yields(("0.bias", torch.ones(()))), "for 0.bias"),
    "NaN": (yields(("0.bias", torch.full((8,), torch.nan))), "NaN or infinity for 0.bias"),
    "too large for the dtype": (yields(("0.bias", torch.full((8,), 1e39, dtype=torch.float64))), "NaN or infinity"),
    "no tensor": (yields(("0.bias", [0.0] * 8)), "0.bias, which is no tensor"),
    "no memory": (yields(("0.bias", torch.empty(8, device="meta"))), "without memory"),
    "complex": (yields(("0.bias", torch.ones(8, dtype=torch.complex64))), "complex value for 0.bias"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_function_that_is_wrong_leaves_the_model_as_it_was(case: str) -> None:
    function, message = WRONG[case]
    register_source("wrong", function)
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        init_model(model, "wrong")
    assert unchanged(model, before)
    with torch.device("meta"):
        on_meta = net()
    with pytest.raises(ValueError, match="wrong"):
        init_model(on_meta, "wrong", device="cpu")
    assert all(p.is_meta for p in on_meta.parameters()) or case == "writes"


def test_a_function_may_read_the_model_even_from_the_meta_device() -> None:
    register_source("half", lambda model, seed: ((n, p / 2) for n, p in model.named_parameters()))
    model = net()
    before = snapshot(model)
    init_model(model, "half")
    assert torch.equal(model[0].weight, before["0.weight"] / 2)
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    report = init_model(model, "half", device="cpu", seed=3)
    assert not report.unset and not report.own and torch.equal(model.norm.weight, torch.full((64,), 0.5))


def test_timm_builds_it_by_its_tag() -> None:
    register_source("small", small)
    models = [timm.create_model("test_vit.small", pretrained=True, num_classes=3), timm.create_model("test_vit")]
    assert models[0].pretrained_cfg["source"] == "small" and models[0].pretrained_cfg["tag"] == "small"
    assert models[0].pretrained_cfg["description"] == "Small random weights."
    composed = timm.create_model("test_vit.rand+small?std=2&only=blocks.*", pretrained=True)
    assert composed.blocks[0].attn.qkv.weight.std() > 1.8
    assert is_source("small") and not is_source("smal") and not is_source("large")


def test_values_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same function, keys, seed and values of the model, and no others."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    calls = []

    def counted(model: nn.Module, seed: int) -> Any:
        calls.append(seed)
        yield from small(model, seed)

    register_source("counted", counted)
    torch.manual_seed(0)
    before = net().state_dict()
    models = [net() for _ in range(4)]
    for model in models[:3]:
        model.load_state_dict(before)
    texts = ["counted?cache=1"] * 2 + ["counted?cache=1&seed=1"] * 2
    reports = [init_model(m, s) for m, s in zip(models, texts, strict=True)]
    assert [r.cached for r in reports] == [False, True, False, False] and calls == [0, 1, 1]
    assert unchanged(models[1], snapshot(models[0]))
    assert reports[1].predicted == reports[0].predicted and reports[1].skipped == reports[0].skipped


# -- other packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that names three sources."""
    about = tmp_path / "their_inits-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-inits\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[timm_ghn_init.sources]\ntheirs = their_inits:theirs\ndecorated = their_inits:named\nbroken = their_inits:no\n"
    )
    (tmp_path / "their_inits.py").write_text(
        "import torch\nfrom timm_ghn_init import register_source\n"
        "def theirs(model, seed, *, value: float = 2.0):\n"
        "    for name, p in model.named_parameters():\n        yield name, torch.full(p.shape, value)\n"
        "named = register_source('decorated', keys={'n': 1})(lambda model, seed, n: theirs(model, seed, value=n))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._installed.cache_clear()
    yield tmp_path
    sys.modules.pop("their_inits", None)
    registry._installed.cache_clear()


def test_sources_of_an_installed_package(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert is_source("theirs?value=3") and "their_inits" not in sys.modules
    model = net()
    init_model(model, "theirs?value=3")
    assert (model[0].weight == 3).all()
    init_model(model, "decorated?n=5")
    assert (model[0].weight == 5).all()
    with pytest.raises(ValueError, match="broken of the package their-inits cannot be loaded: AttributeError"):
        parse_source("broken")
    names = [str(s) for s in list_sources()]
    assert {"theirs", "decorated"} <= set(names) and "broken" not in names
    assert "broken of the package their-inits" in caplog.text


def test_list_and_predict(package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from safetensors import safe_open

    assert main(["list", "--json"]) == 0
    assert {"theirs", "mimetic", "select"} <= {row["source"] for row in json.loads(capsys.readouterr().out)}
    output = tmp_path / "w.safetensors"
    assert main(["predict", "test_vit", "--source", "rand+theirs?only=*.bias", "-o", str(output)]) == 0
    with safe_open(output, "pt") as file:
        about = json.loads(file.metadata()["timm_ghn_init"])
        assert (file.get_tensor("norm.bias") == 2).all()
    assert about["source"] == "rand+theirs?only=*.bias" and about["ghn"] is None
    assert about["functions"].keys() == {"rand", "theirs"}


def test_patterns_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", "test_vit", "--source", "rand+mimetic", "--only", "blocks.0.*", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"] == "rand?only=blocks.0.*+mimetic?only=blocks.0.*"
    assert {n.rpartition(".")[0].split(".")[1] for n in report["predicted"]} == {"0"}
    assert main(["inspect", "test_vit", "--source", "ghn2", "--skip", "*.bias", "cls_token", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["parameters"]}
    assert rows["norm.bias"]["reason"] == "skip=*.bias" and rows["norm.weight"]["predicted"]
    for command in (["inspect", "test_vit"], ["predict", "test_vit", "-o", str(tmp_path / "x.safetensors")]):
        assert main([*command, "--source", "ghn2-fashion", "--only", "nothing"]) == 2
        assert "only=nothing matches none of its parameters" in capsys.readouterr().err


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "own-initialisation.md"


def test_the_guides_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    """The page's files, installed, go all the way: tag, meta device, predict, finetune, cache and Hub."""
    files = re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```', GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in files] == ["small_start.py", "pyproject.toml"]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path / "site"), str(tmp_path)]
    assert subprocess.run(pip, check=False).returncode == 0
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    registry._installed.cache_clear()
    try:
        model = timm.create_model("test_vit.small-start?std=0.1", pretrained=True)
        assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.05)
        with torch.device("meta"):
            other = timm.create_model("test_vit")
        first = init_model(other, "small-start?std=0.1&cache=1", device="cpu")
        assert torch.equal(other.head.weight, model.head.weight)
        with torch.device("meta"):
            other = timm.create_model("test_vit")
        second = init_model(other, "small-start?std=0.1", device="cpu", cache=True)
        assert second.skipped["norm.weight"] == "not a matrix" and (first.cached, second.cached) == (False, True)

        output = tmp_path / "start.safetensors"
        assert main(["predict", "test_vit", "--source", "small-start?std=0.1", "-o", str(output)]) == 0
        again = timm.create_model("test_vit", checkpoint_path=str(output))
        assert torch.equal(again.head.weight, model.head.weight)
        tune = ["--seeds", "1", "--epochs", "1", "--labels", "20", "--validation", "10", "-q"]
        runs = [*("--source", "small-start", "rand+small-start", "-o", str(tmp_path / "runs.jsonl"))]
        assert main(["finetune", "test_resnet", *runs, *tune]) == 0
        records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
        assert len(records) == 2

        assert main(["push", "test_vit", "--source", "rand+small-start?std=0.1", "--repo", "me/start"]) == 0
        loaded = timm.create_model("hf-hub:me/start", pretrained=True)
        assert torch.equal(loaded.head.weight, model.head.weight)
        assert b"Every matrix from a narrow normal distribution" in hub.files("me/start")["README.md"]
    finally:
        sys.modules.pop("small_start", None)
        registry._installed.cache_clear()


# -- compositions ------------------------------------------------------------------------------------------------------


def test_values_of_the_right_source_replace_those_of_the_left_one(seeded_ghn2: GHN) -> None:
    alone, attention, model = (timm.create_model("test_vit") for _ in range(3))
    for other in (attention, model):
        other.load_state_dict(alone.state_dict())
    left = init_model(alone, "ghn2-orth?layer=2", ghn=seeded_ghn2)
    right = init_model(attention, "mimetic?seed=2")
    report = init_model(model, "ghn2-orth?layer=2+mimetic?seed=2", ghn=seeded_ghn2)
    assert report.source == "ghn2-orth?layer=2+mimetic?seed=2"
    assert set(report.predicted) == set(left.predicted)
    for name, part in report.parts.items():
        expected = attention if name in right.predicted else alone
        assert part == ("mimetic?seed=2" if name in right.predicted else "ghn2-orth?layer=2")
        assert torch.equal(model.get_parameter(name), expected.get_parameter(name)), name
    assert set(report.postprocessed) == set(left.postprocessed) - set(right.predicted)
    assert f"from mimetic?seed=2: {len(right.predicted)} parameters" in str(report)
    assert report.nodes == left.nodes and report.layer == 2


def test_three_parts_and_a_weight_that_is_computed() -> None:
    register_source("ones", lambda model, seed: ((n, torch.ones(p.shape)) for n, p in model.named_parameters()))
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
    model = nn.Sequential(layer, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2))
    report = init_model(model, "orth+ones?only=0.*+rand?only=0.bias")
    torch.testing.assert_close(layer.weight, torch.ones(8, 3, 1, 1))
    assert not layer.bias.any() and report.parts["0.bias"] == "rand?only=0.bias"
    assert report.parts["1.weight"] == "orth" and report.postprocessed == ("1.weight",)


@pytest.mark.parametrize(
    "text", ["rand+ghn2", "ghn2+ghn3-t", "ghn2?cache=1+mimetic", "ghn2+mimetc", "rand+", "rand+no?x=1"]
)
def test_compositions_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError):
        parse_source(text)


# -- mimetic -----------------------------------------------------------------------------------------------------------


class Torchs(nn.Module):
    """PyTorch's own attention, whose weights for q, k and v are one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attn, self.head = nn.Conv2d(3, 32, 8, 8), nn.MultiheadAttention(32, 4), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        return self.head((x + self.attn(x, x, x)[0]).mean(0))


class Separate(nn.Module):
    """Query, key and value by layers of their own, called in another order."""

    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 5)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        k, v, q = (f(x).unflatten(2, (2, 16)).transpose(1, 2) for f in (self.key, self.value, self.query))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


def relative(product: Tensor, target: Tensor) -> float:
    """Cosine between two matrices."""
    return float((product * target).sum() / product.norm() / target.norm())


@pytest.mark.parametrize("build", [lambda: timm.create_model("vit_tiny_patch16_224", depth=2), Torchs, Separate])
def test_products_of_mimetic_attention(build: Any) -> None:
    model = build()
    before = snapshot(model)
    report = init_model(model, "mimetic?seed=1")
    found = list(attentions(model, trace(model)))
    assert found
    for attention in found:
        weights = [model.get_parameter(n).detach() for n in attention[:4]]
        out = weights[3]
        d, width = len(out), len(out) // attention.heads
        q, k, v = weights[0].split(d) if attention.q == attention.k else weights[:3]
        assert relative(out @ v, -torch.eye(d)) > 0.65  # 0.4 / sqrt(0.4^2 + 0.4^2)
        torch.testing.assert_close((out @ v).diagonal().mean(), torch.tensor(-0.4), atol=0.05, rtol=0)
        whole = torch.linalg.matrix_norm(out @ v + 0.4 * torch.eye(d)) / d**0.5
        assert whole.item() == pytest.approx(0.4, rel=0.05)  # Z alone is left
        for head in range(attention.heads):
            rows = slice(head * width, (head + 1) * width)
            product = q[rows].T @ k[rows]
            assert torch.linalg.matrix_rank(product) == width
            assert product.diagonal().mean() > 0.7 * width / d  # the largest directions of 0.7 Z + 0.7 I
            assert relative(product, torch.eye(d)) > 0.35
    written = {n for a in found for n in a[:4]}
    assert set(report.predicted) == written
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n not in written)


def test_mimetic_positions_and_models_without_attention() -> None:
    model = timm.create_model("test_vit")
    init_model(model, "mimetic?pos=1")
    pos = model.pos_embed[0]
    assert not pos[0].any()  # the class token has no position
    products = pos[1:] @ pos[1:].T
    assert (products.argmax(1) == torch.arange(len(products))).all()
    with pytest.raises(ValueError, match="mimetic needs attention"):
        init_model(net(), "mimetic", input_size=4)


# -- select ------------------------------------------------------------------------------------------------------------


def test_entries_at_even_distances() -> None:
    assert entries(torch.arange(12), torch.Size([4])).tolist() == [0, 3, 6, 9]
    assert entries(torch.arange(10), torch.Size([4])).tolist() == [0, 3, 6, 9]
    assert entries(torch.arange(7), torch.Size([3])).tolist() == [0, 3, 6]
    assert entries(torch.arange(24).reshape(4, 6), torch.Size([2, 4])).tolist() == [[0, 2, 3, 5], [12, 14, 15, 17]]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (("test_vit", {"embed_dim": 32, "num_heads": 2, "depth": 3}), ("test_vit", {})),
        (("test_convnext", {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1)}), ("test_convnext", {})),
    ],
)
def test_select_entry_by_entry(student: Any, teacher: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = timm.create_model(teacher[0], **teacher[1])
    torch.save(large.state_dict(), tmp_path / "large.pth")
    model = timm.create_model(student[0], **student[1])
    report = init_model(model, f"select?from={teacher[0]}&weights={tmp_path}/large.pth")
    assert set(report.predicted) == {n for n, _ in model.named_parameters()}
    given = large.state_dict()
    for name, p in model.named_parameters():
        places = [every(most, few) for most, few in zip(given[name].shape, p.shape, strict=True)]
        assert torch.equal(p, torch.from_numpy(given[name].numpy()[np.ix_(*places)])), name


def every(most: int, few: int) -> list[int]:
    """The places that are taken of a dimension."""
    return (
        list(range(0, most, most // few))
        if most % few == 0
        else [round(i * (most - 1) / (few - 1)) for i in range(few)]
    )


def test_select_names_what_does_not_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small_one, large = timm.create_model("test_vit", embed_dim=32, num_heads=2), timm.create_model("test_vit")
    torch.save(small_one.state_dict(), tmp_path / "small.pth")
    before = snapshot(large)
    with pytest.raises(ValueError, match=r"test_vit does not fit: cls_token has the shape \(1, 1, 64\)"):
        init_model(large, f"select?from=test_vit&weights={tmp_path}/small.pth")
    with pytest.raises(ValueError, match=r"does not fit: stem.0.weight is not in it"):
        init_model(timm.create_model("test_convnext"), f"select?from=test_vit&weights={tmp_path}/small.pth")
    with pytest.raises(ValueError, match="select needs a teacher"):
        init_model(large, "select")
    with pytest.raises(ValueError, match=r"none\.pth"):
        init_model(large, f"select?from=test_vit&weights={tmp_path}/none.pth")
    assert unchanged(large, before)
    other = timm.create_model("test_vit", embed_dim=32, num_heads=2, num_classes=3)
    report = init_model(other, f"select?from=test_vit&weights={tmp_path}/small.pth")
    assert report.skipped["head.weight"] == "classifier of 3 classes, the teacher's has 1000"


def test_select_from_weights_that_timm_loads() -> None:
    """Here those of another source, which needs no network."""
    model = timm.create_model("test_vit", embed_dim=32, num_heads=2)
    init_model(model, "select?from=test_vit.rand")
    large = timm.create_model("test_vit.rand", pretrained=True)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, large.blocks[0].mlp.fc1.weight[::2, ::2])

"""Sharded models, on one, two and four processes: see sharded_job.py for what they do."""

import itertools
import json
from pathlib import Path

import pytest
import timm
import torch
from processes import aside
from sharded_job import CHECKS, VIT, on_ranks
from timm_models import on_meta, skip_if_values_are_read
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from timm_ghn_init import init_model
from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import trace
from timm_ghn_init.integration.create import _on_meta
from timm_ghn_init.own_init.values import own_values
from timm_ghn_init.recipe.postprocessing import layers_of
from timm_ghn_init.sharded.blocks import blocks_of, shard_blocks
from timm_ghn_init.sharded.layout import _box
from timm_ghn_init.sharded.post import owners

WORLDS = (1, 2, 4, -2)
POSITIONS = {
    "vit_tiny_patch16_224": {"tokens"},
    "volo_d1_224": {"hwc"},
    "pit_ti_224": {"chw"},
}


@pytest.fixture(scope="module")
def said(ghn_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[str]]:
    """What each rank of each world says of each check: "" or its error."""
    folder = tmp_path_factory.mktemp("sharded")
    try:
        aside(on_ranks, str(ghn_file), folder, WORLDS)
    except RuntimeError as error:
        skip_if_values_are_read(str(error))
        raise
    errors = {}
    for world in WORLDS:
        files = [folder / str(world) / f"{rank}.json" for rank in range(abs(world))]
        ranks = [json.loads(f.read_text()) if f.exists() else {} for f in files]
        for name in CHECKS:
            errors[world, name] = [r.get(name, "not run: see what was written to stderr") for r in ranks]
    return errors


@pytest.mark.parametrize(
    ("world", "name"), [(w, name) for w in WORLDS for name, (worlds, _) in CHECKS.items() if w in worlds]
)
def test_on_ranks(world: int, name: str, said: dict[tuple[int, str], list[str]]) -> None:
    errors = said[world, name]
    if name == "a_rank_that_dies":
        errors = errors[:1]  # the other one is dead
    skip_if_values_are_read("".join(errors))
    if not hasattr(torch.distributed.fsdp, "fully_shard") and any("create_sharded needs" in e for e in errors):
        pytest.skip("create_sharded needs PyTorch 2.6")
    assert not any(errors), next(e for e in errors if e)


def parts(shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, size) of parts that cut every dimension at uneven places."""
    cuts = []
    for n in shape:
        edges = sorted({0, n // 3, n // 2 + 1 if n > 1 else n, n})
        cuts.append([(a, b - a) for a, b in itertools.pairwise(edges)])
    return [tuple(zip(*choice, strict=True)) for choice in itertools.product(*cuts)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("resnet18", {}),
        ("condconv", {}),
        ("test_convnext", {"in_chans": 1}),
        ("volo_d1_224", {}),
        ("pit_ti_224", {}),
        ("beit_base_patch16_224", {}),
    ],
)
def test_parts_of_tiles(name: str, options: dict[str, int], seeded_ghn2: GHN) -> None:
    """Whichever way a parameter is cut, its parts are those of the whole, and no value is left out."""
    from timm.layers import CondConv2d

    if name == "condconv":
        model: nn.Module = Routed(CondConv2d(6, 9, 3, num_experts=3, padding=1))
    else:
        model = on_meta(name, **options)
    graph = trace(model)
    seen = set()
    for tile in seeded_ghn2.decode(graph, seeded_ghn2.embed(graph)).values():
        target = tile.target
        kind = (target.role, target.kernel, target.offset, target.layout, target.shape[:1], tuple(tile.block.shape))
        if kind in seen or len(parts(target.shape)) > 100:
            continue
        seen.add(kind)
        start = torch.full(target.shape, torch.nan)
        whole = start.clone()
        tile.write_(whole)
        for offset, size in parts(target.shape):
            part = torch.full(size, torch.nan)
            tile.write_part_(part, offset)
            expected = whole[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
            assert torch.equal(part.nan_to_num(7.0), expected.nan_to_num(7.0)), (target, offset, size)
    assert seen
    assert (name == "condconv") == any(kernel and len(kernel) > 1 for _, kernel, *_ in seen)
    assert (name == "beit_base_patch16_224") == any(offset for _, _, offset, *_ in seen)
    layouts = {layout for _, _, _, layout, *_ in seen} - {""}
    assert layouts == POSITIONS.get(name, set())


class Routed(nn.Module):
    """A convolution with experts, as EfficientNet's are."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.stem, self.routing, self.conv = nn.Conv2d(3, 6, 1), nn.Linear(6, 3), conv
        self.head = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.conv(x, torch.sigmoid(self.routing(x.mean((2, 3))))).mean((2, 3)))


@pytest.mark.parametrize("mesh", [(1,), (3,), (5,), (2, 3), (3, 2)])
def test_boxes_are_what_chunks_leave(mesh: tuple[int, ...]) -> None:
    """Sharding is `torch.chunk`, dimension of the mesh by dimension of the mesh."""
    for shape in itertools.product((1, 5, 8), (1, 3, 4)):
        whole = torch.arange(shape[0] * shape[1]).view(shape)
        for placements in itertools.product((Shard(0), Shard(1), Replicate()), repeat=len(mesh)):
            for coordinate in itertools.product(*map(range, mesh)):
                part = whole
                for placement, count, index in zip(placements, mesh, coordinate, strict=True):
                    if isinstance(placement, Shard):
                        chunks = part.chunk(count, placement.dim)
                        part = chunks[index] if index < len(chunks) else part.narrow(placement.dim, 0, 0)
                box = _box(shape, mesh, coordinate, placements)
                assert torch.equal(box.of(whole), part)
                assert box.size == tuple(part.shape)


def test_sharding_without_fsdp2_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard", raising=False)
    with pytest.raises(ImportError, match=r"create_sharded needs .*PyTorch 2\.6; this is"):
        shard_blocks(nn.Linear(2, 2))


def test_a_constructor_that_reads_values_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of timm's did until 1.0.20."""

    def entrypoint(pretrained: bool = False, **kwargs: object) -> nn.Module:
        return nn.Dropout(torch.linspace(0, 1, 3)[1].item())

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "reads_values", entrypoint)
    with pytest.raises(RuntimeError, match=r"reads_values: its constructor .*timm 1\.0\.21 on; this is"):
        _on_meta("reads_values", {})


def test_owners_share_the_work() -> None:
    model = nn.Sequential(*(nn.Linear(n, n) for n in (8, 64, 16, 32, 4)))
    rounds = [{layer.name: rank for rank, layer in r.items()} for r in owners(layers_of(model), 2)]
    assert rounds == [{"1.weight": 0, "3.weight": 1}, {"2.weight": 1, "0.weight": 0}, {"4.weight": 0}]


def test_blocks() -> None:
    vit, convnext = on_meta("vit_tiny_patch16_224"), on_meta("convnext_atto")
    assert list(blocks_of(vit)) == [f"blocks.{i}" for i in range(12)]
    blocks = [f"stages.{i}.blocks.{j}" for i, depth in enumerate((2, 2, 6, 2)) for j in range(depth)]
    assert set(blocks_of(convnext)) == {*blocks, *(f"stages.{i}.downsample" for i in (1, 2, 3))}
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)))
    assert list(blocks_of(plain)) == ["0", "2"]
    assert list(blocks_of(nn.Linear(2, 2))) == []


def test_model_from_the_meta_device(ghn_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is predicted is as ever, what is not comes from the model itself, and what it has not is said."""
    source = f"file:{ghn_file}-orth?layer=15"
    model = on_meta("test_convnext", num_classes=10)
    identities = {n: id(p) for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    report = init_model(model, source)
    assert torch.equal(state, torch.get_rng_state())
    assert identities == {n: id(p) for n, p in model.named_parameters()}
    expected = timm.create_model("test_convnext", num_classes=10)
    init_model(expected, source)
    found, wanted = model.state_dict(), expected.state_dict()
    assert all(torch.equal(found[n], wanted[n]) for n in report.predicted)
    assert set(report.predicted) | set(report.own) | set(report.unset) == set(found)
    assert 0 < found["head.fc.weight"].std() < 0.1
    assert report.unset and all(n.endswith("gamma") and found[n].isnan().all() for n in report.unset)
    assert "NaN or 0" in caplog.text and report.unset[0] in caplog.text
    assert "set by nothing" in str(report)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "levit_128s", "convit_tiny"])
def test_buffers_that_constructors_compute(name: str, ghn_file: Path) -> None:
    """Where the device of a predicted parameter decides where they are put, too."""
    small = {"swin_tiny_patch4_window7_224": {"depths": (1, 2, 1, 1)}, "swinv2_cr_tiny_224": {"depths": (1, 2, 1, 1)}}
    options = small.get(name, {})
    model = on_meta(name, num_classes=10, **options)
    report = init_model(model, f"file:{ghn_file}", device="cpu")
    for n, buffer in timm.create_model(name, num_classes=10, **options).named_buffers():
        assert n in report.unset or torch.equal(model.get_buffer(n), buffer), n


def test_rest_of_a_model_after_to_empty(ghn_file: Path) -> None:
    source = f"file:{ghn_file}"
    one, two = (on_meta("test_vit", num_classes=7) for _ in range(2))
    init_model(one, source, seed=5)
    two.to_empty(device="cpu")
    report = init_model(two, source, seed=5, init_rest=True)
    assert {"head.weight", "cls_token"} <= set(report.own)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_own_values_leave_the_model_alone() -> None:
    """Batch norm's own reset would write to buffers that nobody asked for, and hooks and modes stay as well."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].running_mean.fill_(3)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    values, unset = own_values(model, ["0.weight"], seed=1)
    assert list(values) == ["0.weight"] and not unset
    assert not torch.equal(values["0.weight"], before["0.weight"])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    again, _ = own_values(model, ["0.weight"], seed=1)
    assert torch.equal(values["0.weight"], again["0.weight"])


def test_buffers_that_only_the_constructor_knows() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("index", torch.arange(3))
            self.register_buffer("flags", torch.ones(3, dtype=torch.bool))

    with torch.device("meta"):
        model = Indexed()
    values, unset = own_values(model, ["fc.weight", "index", "flags"], seed=0)
    assert set(unset) == {"index", "flags"} and torch.equal(values["index"], torch.zeros(3, dtype=torch.int64))

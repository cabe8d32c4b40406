"""Checkpoints: every format reads back to the same bits, and whatever goes wrong is one clear error."""

import collections
import copy
import json
import logging
import pickle
import random
import re
import resource
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import GHN2_CONFIG, seed_weights
from fetching import fetch_from, peaks_of_memory
from file_server import FileServer, serving
from filelock import FileLock
from processes import aside, context
from safetensors.torch import load_file, safe_open, save_file

from timm_ghn_init import init_model, sources, trace
from timm_ghn_init.checkpoints import download
from timm_ghn_init.checkpoints import load as checkpoints
from timm_ghn_init.checkpoints.load import (
    CheckpointError,
    fetch,
    git_blob_id,
    is_cached,
    load_ghn,
    resolve_default,
    save_ghn,
    shared_ghn,
)
from timm_ghn_init.ghn import GHN, Facts
from timm_ghn_init.recipe.postprocessing import list_layers
from timm_ghn_init.sources import KNOWN, Source
from timm_ghn_init.weights.key import ghn_digest

SMALL = {**GHN2_CONFIG, "max_shape": (8, 8, 11, 11), "num_classes": 10, "hid": 8}
CONFIGS = {
    "ghn2": SMALL,
    "ghn1": {**SMALL, "ve": False, "layernorm": False},
    "mlp": {**SMALL, "hypernet": "mlp", "decoder": "mlp", "ve": False},
    "ghn3": {**SMALL, "hypernet": "graphormer", "heads": 2, "layers": 2},
}
GRAPH_EMBEDDINGS = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's files, the network or what another test loaded."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIMM_GHN_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("TIMM_GHN_DEFAULT", raising=False)
    checkpoints._shared.cache_clear()
    checkpoints._failed.clear()
    yield
    checkpoints._shared.cache_clear()
    checkpoints._failed.clear()


def small(kind: str = "ghn2") -> GHN:
    return seed_weights(GHN(**CONFIGS[kind]))  # type: ignore[return-value]


def same(a: GHN, b: GHN) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return a.config == b.config and list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


def torch_file(path: Path, ghn: GHN | None = None, **changes: Any) -> Path:
    """A checkpoint as ppuda saves it."""
    ghn = ghn or small()
    torch.save({"state_dict": ghn.state_dict(), "config": ghn.config, "epoch": 3, **changes}, path)
    return path


def joblib_file(path: Path, state: dict[str, Any], **options: Any) -> Path:
    pytest.importorskip("joblib").dump(state, path, **options)
    return path


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


# Files


@pytest.mark.parametrize("kind", CONFIGS)
def test_save_and_load(tmp_path: Path, kind: str) -> None:
    ghn = small(kind)
    save_ghn(ghn, tmp_path / "a.safetensors", {"trained": "never"})
    loaded = load_ghn(tmp_path / "a.safetensors")
    assert same(ghn, loaded)
    assert loaded.dialect == ghn.dialect
    assert not loaded.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    # the file is an ordinary one
    values = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(values[name], t) for name, t in ghn.state_dict().items())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as f:
        assert f.metadata() == {"trained": "never", "format": "pt", "config": json.dumps(ghn.config, sort_keys=True)}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_ghn_carries_where_its_post_processing_begins(tmp_path: Path) -> None:
    ghn = copy.deepcopy(small())
    assert ghn.depth is None
    ghn.depth = 0.25
    save_ghn(ghn, tmp_path / "a.safetensors")
    loaded = load_ghn(tmp_path / "a.safetensors")
    assert loaded.depth == 0.25
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)))
    assert init_model(model, "ghn2-orth", ghn=loaded, input_size=8).layer == 3
    assert init_model(model, "ghn2-orth?layer=5", ghn=loaded, input_size=8).layer == 5
    loaded.depth = None
    assert init_model(model, "ghn2-orth", ghn=loaded, input_size=8).layer == 7  # a guess


def test_post_processing_begins_at_a_depth_for_each_kind_of_network(tmp_path: Path) -> None:
    ghn = copy.deepcopy(small())
    ghn.depth = {"conv": 0.0, "convnext": 0.25, "attention": 0.5}
    save_ghn(ghn, tmp_path / "a.safetensors")
    small_ones: dict[str, dict[str, Any]] = {
        "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)},
        "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
        "mixer_s32_224": {"img_size": 32},
        "vit_tiny_patch16_224": {"depth": 2, "img_size": 32},
    }
    kinds = {}
    for name, arguments in small_ones.items():
        model = timm.create_model(name, **arguments)
        report = init_model(model, "ghn2-orth", ghn=load_ghn(tmp_path / "a.safetensors"), input_size=32)
        kinds[name] = kind = trace(model, 32).kind
        assert report.layer == int(ghn.depth[kind] * len(list_layers(model))) + 1
    assert list(kinds.values()) == ["conv", "convnext", "convnext", "attention"]


def test_facts_travel_with_a_ghn(tmp_path: Path) -> None:
    """Whatever is noted of a GHN, now or later, is in its copies, its file and its key."""
    depths = {"conv": 0.0, "convnext": 0.25, "attention": 0.5}
    other = {"config": None, "depth": depths, "layer_scale": 0.25, "trained_on": "a \n folder"}
    assert list(other) == [f.name for f in fields(Facts)]  # a new field: name a value for it
    ghn = GHN.of(replace(small().facts, **{name: value for name, value in other.items() if value is not None}))
    ghn.load_state_dict(small().state_dict())
    for name, value in other.items():
        assert value is None or getattr(ghn, name) == value
        changed = copy.deepcopy(small())
        changed.facts = replace(changed.facts, **{name: getattr(ghn.facts, name)})
        assert value is None or ghn_digest(changed) != ghn_digest(small())
    assert Facts.read(ghn.facts.metadata()) == ghn.facts
    save_ghn(ghn, tmp_path / "a.safetensors")
    for received in (load_ghn(tmp_path / "a.safetensors"), copy.deepcopy(ghn), pickle.loads(pickle.dumps(ghn))):
        assert received.facts == ghn.facts and ghn_digest(received) == ghn_digest(ghn)


@pytest.mark.parametrize("text", ["1", "-0.1", "NaN", "a quarter", "", "[0]", "true", '{"conv": 0.1}', "[" * 9999])
def test_a_depth_that_is_none(tmp_path: Path, text: str) -> None:
    save_ghn(small(), tmp_path / "a.safetensors", {"depth": text})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: depth must be a number from 0 up to 1"):
        load_ghn(tmp_path / "a.safetensors")


def test_saving_in_other_precisions_and_layouts(tmp_path: Path) -> None:
    ghn = copy.deepcopy(small()).bfloat16()
    save_ghn(ghn, tmp_path / "a.safetensors")
    assert same(load_ghn(tmp_path / "a.safetensors"), copy.deepcopy(ghn).float())


def test_saving_what_must_not_be_saved(tmp_path: Path) -> None:
    save_ghn(small(), tmp_path / "a.safetensors")
    before = listing(tmp_path)
    broken = copy.deepcopy(small())
    broken.decoder_1d.fc[2].weight[3, 2] = float("nan")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: decoder_1d\.fc\.2\.weight holds NaN"):
        save_ghn(broken, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="safetensors"):
        save_ghn(small(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="metadata must be strings"):
        save_ghn(small(), tmp_path / "a.safetensors", {"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(OSError):
        save_ghn(small(), tmp_path / "no" / "a.safetensors")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path: Path, kind: str, zipped: bool) -> None:
    ghn = small(kind)
    torch.save(
        {"state_dict": ghn.state_dict(), "config": {**ghn.config, "debug_level": 1}},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=zipped,
    )
    assert same(load_ghn(tmp_path / "a.pt"), ghn)


@pytest.mark.parametrize("top_level", [True, False], ids=["as released", "as in the module"])
@pytest.mark.parametrize("compress", [0, 3])
def test_ghn3_files(tmp_path: Path, top_level: bool, compress: int) -> None:
    """A bare state dict: the config is read off it, and both spellings of the graph embeddings are known."""
    ghn = small("ghn3")
    prefix = "gnn.0." if top_level else " "
    state = {
        (name.removeprefix(prefix) if any(e in name for e in GRAPH_EMBEDDINGS) else name): t
        for name, t in ghn.state_dict().items()
    }
    assert ("input_dist_embed.weight" in state) == top_level
    loaded = load_ghn(joblib_file(tmp_path / "a.pt", state, compress=compress))
    assert same(loaded, ghn)
    assert loaded.dialect == "ghn3"


@pytest.mark.parametrize("heads", [8, 16])
@pytest.mark.parametrize("max_shape", [(6, 6, 11, 11), (64, 64, 16, 16)])
@pytest.mark.parametrize("layernorm", [True, False])
def test_inferred_configs(tmp_path: Path, heads: int, max_shape: tuple[int, ...], layernorm: bool) -> None:
    config = {**CONFIGS["ghn3"], "hid": 16, "heads": heads, "layers": 3, "max_shape": max_shape, "layernorm": layernorm}
    ghn = seed_weights(GHN(**config))
    torch.save(ghn.state_dict(), tmp_path / "a.pt")
    assert load_ghn(tmp_path / "a.pt").config == ghn.config == {**config, "hypernet": "graphormer"}


@pytest.mark.parametrize("kind", ["ghn1", "ghn2"])
def test_a_bare_ghn2(tmp_path: Path, kind: str) -> None:
    """As GHN-3's package keeps them: no config, 1 x 1 convolutions as matrices."""
    ghn = small(kind)
    state = {name: t.squeeze() if name.startswith("decoder.") else t for name, t in ghn.state_dict().items()}
    assert state["decoder.conv.0.weight"].dim() == 2
    assert same(load_ghn(joblib_file(tmp_path / "a.pt", state)), ghn)


def test_a_ghn3_from_its_own_trainer(tmp_path: Path) -> None:
    ghn = small("ghn3")
    config = {**ghn.config, "hypernet": "gatedgnn", "is_ghn2": False}
    assert same(load_ghn(torch_file(tmp_path / "a.pt", ghn, config=config)), ghn)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_of_the_user_are_read_where_they_lie(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_ghn(small(), path) if suffix == "safetensors" else torch_file(path)
    before = listing(tmp_path)
    for name in (path, str(path), f"file:{path}", f"file:{path}-orth?seed=1", Source(f"file:{path}")):
        assert same(load_ghn(name), small())
    assert fetch(f"file:{path}") == path
    assert listing(tmp_path) == before


def test_a_loaded_ghn_outlives_its_file(tmp_path: Path) -> None:
    save_ghn(small(), tmp_path / "a.safetensors")
    loaded = load_ghn(tmp_path / "a.safetensors")
    with open(tmp_path / "a.safetensors", "r+b") as f:
        f.write(b"\xff" * (tmp_path / "a.safetensors").stat().st_size)
        f.truncate(10)
    assert same(loaded, small())


def test_a_loaded_ghn_belongs_to_who_loaded_it(tmp_path: Path) -> None:
    """What is done to it changes nothing that the same source gives later, in this process."""
    save_ghn(small(), tmp_path / "a.safetensors")
    source = Source(f"file:{tmp_path}/a.safetensors")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    init_model(model, source, input_size=8)
    before = [p.detach().clone() for p in model.parameters()]
    loaded = load_ghn(source)
    loaded.depth = 0.9
    for p in loaded.parameters():
        p.mul_(2)
    init_model(model, source, input_size=8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert same(load_ghn(source), small()) and load_ghn(source).depth is None


def test_the_package_shares_one_instance_per_file(tmp_path: Path) -> None:
    cpu, path = torch.device("cpu"), tmp_path / "a.safetensors"
    save_ghn(small(), path)
    loaded: list[GHN] = []
    work = lambda: loaded.append(shared_ghn(Source(f"file:{path}"), cpu))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (tmp_path / "link.safetensors").symlink_to(path)
    loaded.append(shared_ghn(Source(f"file:{tmp_path}/link.safetensors"), cpu))
    assert len(loaded) == 5 and len(set(map(id, loaded))) == 1
    save_ghn(small("ghn1"), path)  # another file of the same name
    assert same(shared_ghn(Source(f"file:{path}"), cpu), small("ghn1"))
    with pytest.raises(ValueError, match="one that can compute"):
        load_ghn(path, "meta")


def test_a_copy_of_a_file_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Where the bytes of a file are, and in which format, is not seen in a prediction."""
    path = KNOWN[sources.SHIPPED].local_path
    assert path is not None
    save_ghn(load_ghn(sources.SHIPPED), tmp_path / S, {"note": "longer metadata"})
    torch_file(tmp_path / P, load_ghn(sources.SHIPPED))
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3), torch.nn.Conv2d(40, 9, 3))  # the last layer is kept
    models = [copy.deepcopy(own) for _ in range(3)]
    for model, name in zip(models, (sources.SHIPPED, f"file:{tmp_path / S}", f"file:{tmp_path / P}"), strict=True):
        init_model(model, f"{name}-orth?layer=1", input_size=8)
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), model.parameters(), strict=True))


def test_random_state_and_default_dtype_are_left_alone(tmp_path: Path) -> None:
    torch_file(tmp_path / "a.pt")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_ghn(tmp_path / "a.pt")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert same(loaded, small())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda(tmp_path: Path) -> None:
    save_ghn(small(), tmp_path / "a.safetensors")
    loaded = load_ghn(tmp_path / "a.safetensors", "cuda")
    assert all(p.is_cuda for p in loaded.parameters())
    assert same(copy.deepcopy(loaded).cpu(), small())


# Files of users' own


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_suffixes(tmp_path: Path, suffix: str) -> None:
    """What is in a file tells its format."""
    saved(tmp_path / S).rename(tmp_path / f"a{suffix}")
    for name in (tmp_path / f"a{suffix}", str(tmp_path / f"a{suffix}"), f"file:{tmp_path}/a{suffix}-orth?seed=1"):
        assert same(load_ghn(name), small())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module."])
@pytest.mark.parametrize("kind", ["ghn2", "ghn3"])
def test_what_wrappers_put_before_names(tmp_path: Path, prefix: str, kind: str) -> None:
    ghn = small(kind)
    state = released(ghn) if kind == "ghn3" else ghn.state_dict()
    path = torch_file(tmp_path / P, ghn, state_dict={prefix + name: t for name, t in state.items()})
    assert same(load_ghn(path), ghn)
    torch_file(tmp_path / P, ghn, state_dict={**state, f"{prefix}x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 unknown .*x"):
        load_ghn(path)


def test_what_trainers_save_beside_a_ghn(tmp_path: Path) -> None:
    """An optimiser's state, and what else torch reads without being asked."""
    ghn = copy.deepcopy(small()).train().requires_grad_()
    optimizer = torch.optim.AdamW(ghn.parameters())
    sum(p.sum() for p in ghn.parameters()).backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "generator": torch.get_rng_state(),
        "seen": {1, 2},
        "accuracy": (np.float64(0.5), np.float32(0.5), np.int64(3)),
        "count": collections.Counter("abca"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "sparse": torch.eye(3).to_sparse(),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "raw": (b"abc", bytearray(b"abc"), 1j, 2**100, -1.5, None),
    }
    for zipped in (True, False):
        if not zipped:
            del beside["float8"]  # PyTorch itself does not read it from its older format
        torch.save(
            {"state_dict": ghn.state_dict(), "config": ghn.config, **beside},
            tmp_path / P,
            _use_new_zipfile_serialization=zipped,
        )
        assert same(load_ghn(tmp_path / P), ghn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_torch_files_in_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    ghn = copy.deepcopy(small()).to(dtype)
    torch_file(tmp_path / P, ghn)
    assert same(load_ghn(tmp_path / P), copy.deepcopy(ghn).float())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_that_are_views_of_one_storage(tmp_path: Path, zipped: bool) -> None:
    """Transposed, parts of one flat vector, parameters with attributes."""
    flat = torch.cat([t.flatten() for t in WEIGHTS.values()])
    parts = flat.split([t.numel() for t in WEIGHTS.values()])
    state: dict[str, Any] = {name: p.view(t.shape) for p, (name, t) in zip(parts, WEIGHTS.items(), strict=True)}
    state[WEIGHT] = torch.nn.Parameter(WEIGHTS[WEIGHT].t().contiguous().t())
    state[WEIGHT].note = "mine"
    assert not state[WEIGHT].is_contiguous()
    torch.save({"state_dict": state, "config": SMALL}, tmp_path / P, _use_new_zipfile_serialization=zipped)
    assert same(load_ghn(tmp_path / P), small())


class Settings:
    """Somebody's own class."""

    def __init__(self) -> None:
        self.lr = 0.1


@pytest.fixture
def _no_safe_globals() -> Iterator[None]:
    yield
    torch.serialization.clear_safe_globals()


@pytest.mark.usefixtures("_no_safe_globals")
def test_other_objects_are_named_and_can_be_allowed(tmp_path: Path) -> None:
    path = torch_file(tmp_path / P, args=Settings())
    with pytest.raises(CheckpointError, match=rf"add_safe_globals\(\[{__name__}\.Settings\]\)"):
        load_ghn(path)
    torch.serialization.add_safe_globals([Settings])
    assert same(load_ghn(path), small())
    torch_file(path, config=Settings())
    with pytest.raises(CheckpointError, match=r"its config is no dictionary but .*Settings"):
        load_ghn(path)
    torch_file(path, state_dict={**WEIGHTS, WEIGHT: Settings()})
    with pytest.raises(CheckpointError, match=f"the entry '{WEIGHT}' is no tensor"):
        load_ghn(path)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this PyTorch has no such option")
def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = torch_file(tmp_path / P)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(load_ghn(path), small())


def deflated(path: Path) -> Path:
    """The same archive, packed by some other program."""
    with zipfile.ZipFile(path) as old:
        entries = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries:
            new.writestr(name, data)
    return path


# Files that are wrong

P, S = "a.pt", "a.safetensors"
WEIGHT = "gnn.gru.weight_hh"
WEIGHTS = small().state_dict()


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def with_weight(folder: Path, change: Callable[[torch.Tensor], Any]) -> Path:
    """A checkpoint with something else for one of its tensors."""
    return torch_file(folder / P, state_dict={**WEIGHTS, WEIGHT: change(WEIGHTS[WEIGHT])})


def with_config(folder: Path, config: Any) -> Path:
    """A checkpoint with another config."""
    return torch_file(folder / P, config=config)


def poison(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def save_with(path: Path, metadata: dict[str, str], **changes: torch.Tensor) -> Path:
    save_file({**small().state_dict(), **changes}, path, metadata)
    return path


def saved(path: Path, ghn: GHN | None = None) -> Path:
    save_ghn(ghn or small(), path)
    return path


def archive(path: Path, entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def torch_offset(path: Path) -> int:
    """A position in the values of the largest tensor."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    return largest.header_offset + 30 + len(largest.filename) + largest.file_size // 2


def flip(path: Path, position: int) -> Path:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    return write(path, bytes(data))


def config_with(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**SMALL, **changes}.items() if v is not ...}


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda d: d / P, "no such file"),
    "a folder": (lambda d: (d / P).mkdir() or d / P, "is a folder"),
    "empty": (lambda d: write(d / P, b""), "begins with b''"),
    "an error page": (lambda d: write(d / P, b"<!DOCTYPE html><html>"), "an error page"),
    "a Git LFS pointer": (lambda d: write(d / S, b"version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
    "torch, half": (lambda d: cut(torch_file(d / P), 0.5), "damaged"),
    "torch, nearly whole": (lambda d: cut(torch_file(d / P), 0.999), "damaged"),
    "safetensors, half": (lambda d: cut(saved(d / S), 0.5), "damaged"),
    "safetensors, header only": (lambda d: cut(saved(d / S), 0.01), "damaged"),
    "safetensors, one byte short": (lambda d: cut(saved(d / S), 0.99999), "damaged"),
    "joblib, half": (lambda d: cut(joblib_file(d / P, small("ghn3").state_dict()), 0.5), "ends early|damaged"),
    "joblib, packed, half": (
        lambda d: cut(joblib_file(d / P, small("ghn3").state_dict(), compress=3), 0.5),
        "packed data end early|damaged",
    ),
    "torch, with code": (lambda d: with_config(d, RunsCode(d / "ran")), "add_safe_globals"),
    "torch, with code beside": (lambda d: torch_file(d / P, args=RunsCode(d / "ran")), "add_safe_globals"),
    "pickle, with code": (lambda d: write(d / P, pickle.dumps(RunsCode(d / "ran"))), "not admitted"),
    "joblib, with code": (lambda d: joblib_file(d / P, {"x": RunsCode(d / "ran")}), "not admitted"),
    "pickle named safetensors": (lambda d: write(d / S, pickle.dumps(RunsCode(d / "ran"))), "not admitted"),
    "no dictionary": (lambda d: torch.save([1, 2], d / P) or d / P, "no state dict.*list"),
    "no tensors": (lambda d: torch_file(d / P, state_dict={}), "no state dict"),
    "another model": (lambda d: torch.save(torch.nn.Linear(2, 2).state_dict(), d / P) or d / P, "no GHN's checkpoint"),
    "an entry that is no tensor": (lambda d: with_weight(d, lambda t: 3), WEIGHT),
    "a bit of a tensor flipped": (lambda d: flip(torch_file(d / P), torch_offset(d / P)), "damaged|CRC"),
    "an archive of something else": (lambda d: archive(d / P, {"x/readme": b"hello"}), "damaged"),
    "a tensor of integers": (lambda d: with_weight(d, torch.Tensor.int), WEIGHT),
    "a sparse tensor": (lambda d: with_weight(d, torch.Tensor.to_sparse), WEIGHT),
    "NaN": (lambda d: with_weight(d, poison(float("nan"))), f"{WEIGHT} holds NaN"),
    "inf": (lambda d: with_weight(d, poison(float("inf"))), f"{WEIGHT} holds NaN or inf"),
    "-inf": (lambda d: with_weight(d, poison(-float("inf"))), f"{WEIGHT} holds NaN"),
    "a wrong shape": (lambda d: with_weight(d, torch.Tensor.t), f"{WEIGHT} has the shape"),
    "a tensor missing": (
        lambda d: torch_file(d / P, state_dict={k: v for k, v in WEIGHTS.items() if k != WEIGHT}),
        f"1 missing .{WEIGHT}",
    ),
    "a tensor too many": (lambda d: torch_file(d / P, state_dict={**WEIGHTS, "x": torch.ones(1)}), "1 unknown .x"),
    "both spellings": (
        lambda d: torch_file(
            d / P,
            small("ghn3"),
            state_dict={**small("ghn3").state_dict(), "input_dist_embed.weight": torch.ones(1001, 8)},
        ),
        "twice",
    ),
    "another GHN's config": (lambda d: with_config(d, CONFIGS["ghn1"]), "4 unknown|6 unknown"),
    "another width": (lambda d: with_config(d, config_with(hid=16)), "the config asks for"),
    "a config that is none": (lambda d: with_config(d, [1]), "no dictionary but list"),
    "a config without classes": (lambda d: with_config(d, config_with(num_classes=...)), "lacks num_classes"),
    "an unknown entry": (lambda d: with_config(d, config_with(dropout=0.1)), "unknown entry 'dropout'"),
    "an entry that is no name": (lambda d: with_config(d, {**SMALL, 3: 4}), "unknown entry 3"),
    "a config that is no JSON": (lambda d: save_with(d / S, {"config": "{"}), "no JSON"),
    "a config that is a list": (lambda d: save_with(d / S, {"config": "[]"}), "no dictionary"),
    "layers without tensors": (lambda d: with_config(d, {**CONFIGS["ghn3"], "layers": 1000}), "1000 layers"),
    "a header without end": (lambda d: write(d / S, (2**30).to_bytes(8, "little") + b"{}"), "damaged"),
    "a packed archive": (lambda d: deflated(torch_file(d / P)), "packed archive.*torch.save"),
    "heads that do not fit": (lambda d: with_config(d, config_with(heads=3)), "multiple of 4 and of heads"),
    "a size beyond all": (lambda d: with_config(d, config_with(max_shape=(4096,) * 4)), "No GHN is that large"),
}
BAD_VALUES = {
    "max_shape": [(8, 8, 11), (8, 8, 11, 0), (8, 8, 11, 11.0), (8, 8, 11, 10**9), "8811", None, True],
    "num_classes": [0, -1, 10.0, "10", True, None, 10**9],
    "hypernet": ["gcn", None, 1, ["mlp"]],
    "decoder": ["gatedgnn", None],
    "weight_norm": [1, "yes", None],
    "ve": [0, None],
    "layernorm": ["", None],
    "hid": [0, 32.0, "32", None, 10**9],
    "heads": [0, None],
    "layers": [-1, 1.5],
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_files(tmp_path: Path, what: str) -> None:
    make, message = WRONG[what]
    path = make(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_ghn(path)
    assert str(path) in str(error.value)
    assert listing(tmp_path) == before  # so no code ran, nothing was removed and nothing written
    assert not str(error.value).endswith(("None", " "))


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in BAD_VALUES.items() for v in values], ids=repr)
def test_wrong_values_in_a_config(tmp_path: Path, key: str, value: Any) -> None:
    path = with_config(tmp_path, config_with(**{key: value}))
    with pytest.raises(CheckpointError, match=f"{key} in its config must be"):
        load_ghn(path)


@pytest.mark.parametrize("suffix", ["zip", "legacy", "joblib", "safetensors"])
def test_no_text_of_a_file_steers_a_terminal(tmp_path: Path, suffix: str) -> None:
    """Neither in the error nor in the traceback of what caused it."""
    evil, path = "x\x1b]0;owned\x07\x9b31m", tmp_path / "evil\x1b[31m.pt"
    if suffix == "safetensors":
        save_with(path, {"config": f"{{{evil}"})
    elif suffix == "joblib":
        write(path, f"\x80\x04cos\n{evil}\n".encode())
    else:
        torch_file(path, config={**SMALL, evil: evil}, state_dict={**WEIGHTS, evil: torch.ones(1)})
    with pytest.raises(CheckpointError) as error:
        load_ghn(path)
    shown = "".join(traceback.format_exception(error.value))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_damaged_files_give_one_kind_of_error(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Changed bytes where the formats keep their structure: read, or refused, never another exception."""
    draw = random.Random(0)
    files = [torch_file(tmp_path / P), saved(tmp_path / S)]
    for path in files:
        whole = path.read_bytes()
        ends = [*range(200), *range(len(whole) - 200, len(whole))]
        refused = 0
        for _ in range(60):
            changed = bytearray(whole)
            for _ in range(3):
                changed[draw.choice(ends)] = draw.randrange(256)
            path.write_bytes(changed)
            try:
                load_ghn(path)
            except CheckpointError:
                refused += 1
        assert refused > 10
    record_property("tried", 60 * len(files))


# Fetching


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the server of the released checkpoints has, here."""
    return torch_file(tmp_path_factory.mktemp("served") / "x.pt").read_bytes()


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving(content) as server:
        monkeypatch.setenv("TIMM_GHN_ENDPOINT", server.url)
        monkeypatch.setitem(KNOWN, "ghn2", replace(KNOWN["ghn2"], blob=git_blob_id(write(tmp_path / "blob", content))))
        yield server


def kept(tmp_path: Path) -> list[str]:
    """Files in the home, without locks."""
    return sorted(p.name for p in (tmp_path / "home").glob("*") if p.suffix != ".lock")


def test_git_blob_id(tmp_path: Path) -> None:
    assert git_blob_id(write(tmp_path / "x", b"hello\n")) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_fetch(server: FileServer, tmp_path: Path) -> None:
    assert not is_cached("ghn2")
    path = fetch("ghn2-orth?seed=1")
    assert server.requests == [("GET", "/ghn2_imagenet.pt", None)]
    assert kept(tmp_path) == [path.name]  # no .pt, no .part
    assert path.name.startswith("ghn2-") and path.suffix == ".safetensors"
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    assert metadata["origin"] == KNOWN["ghn2"].origin
    assert metadata["license"] == "mit"
    assert "2110.13100" in metadata["paper"]
    before = listing(tmp_path)
    assert fetch("ghn2") == path
    for source in ("ghn2", "ghn2-orth", Source("ghn2", seed=3)):
        assert same(load_ghn(source), small())
    assert is_cached("ghn2")
    assert len(server.requests) == 1
    assert listing(tmp_path) == before


def test_a_kept_file_needs_no_writable_home(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch("ghn2")
    for file in (tmp_path / "home").glob("*.lock"):
        file.unlink()
    (tmp_path / "home").chmod(0o555)

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")  # what everyone but root gets

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    try:
        assert fetch("ghn2") == path
        assert same(load_ghn("ghn2"), small())
        assert kept(tmp_path) == [path.name]
    finally:
        (tmp_path / "home").chmod(0o755)


def test_a_home_that_cannot_be_written(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "file", b"")
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(CheckpointError, match=r"ghn2 cannot be kept in .*home .*set TIMM_GHN_HOME"):
        fetch("ghn2")
    assert server.requests == []


def test_a_full_disk(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> str:
        write(path, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_ghn", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fetch("ghn2")
    assert kept(tmp_path) == []


def test_a_disk_that_fills_up_while_it_downloads(server: FileServer, tmp_path: Path) -> None:
    """What would take the room goes; what was there stays."""
    (tmp_path / "home").mkdir()
    write(tmp_path / "home" / "other", b"mine")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*Make room there"):
            fetch("ghn2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(tmp_path) == ["other"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [204, 200])
def test_an_answer_with_nothing_in_it(server: FileServer, tmp_path: Path, status: int) -> None:
    server.content, server.status = b"", status if status != 200 else 0
    with pytest.raises(CheckpointError, match=r"answered 204 No Content, without a file|ended after 0 bytes"):
        fetch("ghn2")
    assert kept(tmp_path) == []


def test_other_content_is_removed(server: FileServer, tmp_path: Path) -> None:
    server.content = b"<html>Please log in</html>"
    with pytest.raises(
        CheckpointError, match=r"not ghn2_imagenet\.pt .*git blob id.*26 bytes that begin with b'<html>"
    ):
        fetch("ghn2")
    assert kept(tmp_path) == []
    assert len(server.gets()) == 1


def test_a_verified_file_that_is_no_ghn(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = pickle.dumps(RunsCode(tmp_path / "ran"))
    blob = git_blob_id(write(tmp_path / "blob", server.content))
    monkeypatch.setitem(KNOWN, "ghn2", replace(KNOWN["ghn2"], blob=blob))
    with pytest.raises(CheckpointError, match="not admitted"):
        fetch("ghn2")
    assert kept(tmp_path) == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_http_errors(server: FileServer, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(CheckpointError, match=f"ghn2: .*answered {status}.*file:PATH"):
        fetch("ghn2")
    assert kept(tmp_path) == []
    assert len(server.requests) == 1


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ghn2: .*could not be downloaded.*refused.*TIMM_GHN_ENDPOINT"):
        fetch("ghn2")
    assert kept(tmp_path) == []


def test_a_server_that_says_nothing(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.gate = threading.Event()
    server.cut = [2]  # one byte, then silence
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="timed out"):
        fetch("ghn2")
    assert time.monotonic() - start < 5


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [damage, lambda path: cut(path, 0.5), lambda path: write(path, b"")])
def test_an_altered_file_is_fetched_again(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], Any]
) -> None:
    path = fetch("ghn2")
    harm(path)
    with caplog.at_level(logging.WARNING):
        assert same(load_ghn("ghn2"), small())
    assert "was altered" in caplog.text
    assert kept(tmp_path) == [path.name]
    assert len(server.gets()) == 2
    server.status = 503
    harm(path)
    with pytest.raises(CheckpointError, match="503"):
        load_ghn("ghn2")


def test_a_newer_release_is_not_mistaken_for_what_is_kept(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("ghn2")
    monkeypatch.setitem(KNOWN, "ghn2", replace(KNOWN["ghn2"], blob="0" * 40))
    assert not is_cached("ghn2")
    with pytest.raises(CheckpointError, match="blob"):
        fetch("ghn2")


def test_progress_bars(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("ghn2")
    assert capsys.readouterr() == ("", "")  # stderr is no terminal
    next((tmp_path / "home").glob("*.safetensors")).unlink()
    fetch("ghn2", progress=True)
    assert "ghn2_imagenet.pt: 100%" in capsys.readouterr().err


def test_eight_threads_fetch_one_file(server: FileServer, tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch("ghn2"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(paths) == 8
    assert len(server.gets()) == 1
    assert kept(tmp_path) == [paths[0].name]


def test_a_connection_that_breaks(server: FileServer, tmp_path: Path) -> None:
    server.cut = [50_000]
    with pytest.raises(CheckpointError, match=r"could not be downloaded .*50000.*Try again"):
        fetch("ghn2")
    assert kept(tmp_path) == []
    assert same(load_ghn("ghn2"), small())


def test_killed_in_the_middle_of_a_download(server: FileServer, tmp_path: Path, content: bytes) -> None:
    server.gate = threading.Event()  # the second half does not come

    def arrived() -> int:
        return sum(p.stat().st_size for p in (tmp_path / "home").rglob("*.pt"))

    arguments = (server.url, str(tmp_path / "home"), KNOWN["ghn2"].blob)
    process = context.Process(target=fetch_from, args=arguments, daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while not arrived() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join(30)
    assert process.exitcode == -9 and 0 < arrived() <= len(content) // 2
    server.gate.set()
    server.gate = None
    assert same(load_ghn("ghn2"), small())
    assert len(kept(tmp_path)) == 1


def test_who_waits_says_for_which_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("timm_ghn_init.utils.files.QUIET", 0.1)
    (tmp_path / "home").mkdir()
    held, thread = FileLock(tmp_path / "home" / "ghn2.lock"), threading.Thread(target=lambda: fetch("ghn2"))
    with held:
        thread.start()
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    thread.join(30)
    assert f"which fetches ghn2 and holds {tmp_path / 'home' / 'ghn2.lock'}" in caplog.text
    assert is_cached("ghn2")


# GHN-3, from the Hub


def released(ghn: GHN) -> dict[str, torch.Tensor]:
    """A state dict with the names of the released files."""
    return {
        name.removeprefix("gnn.0.") if any(e in name for e in GRAPH_EMBEDDINGS) else name: t
        for name, t in ghn.state_dict().items()
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `hf_hub_download` returns or raises, by file name."""
    files: dict[str, Any] = {}

    def hf_hub_download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "SamsungSAILMontreal/ghn3"
        files.setdefault("asked", []).append(filename)
        if isinstance(files[filename], Exception):
            raise files[filename]
        return str(files[filename])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    return files


@pytest.mark.parametrize("name", ["ghn3-t", "ghn3-s", "ghn3-l", "ghn3-xl"])
def test_ghn3_from_the_hub(tmp_path: Path, hub: dict[str, Any], name: str) -> None:
    ghn = small("ghn3")
    file = hub[KNOWN[name].file] = joblib_file(tmp_path / "hub.pt", released(ghn))
    before = file.read_bytes()
    assert same(load_ghn(name), ghn)
    (path,) = (tmp_path / "home").glob("*.safetensors")
    with safe_open(path, framework="pt") as f:
        assert json.loads(f.metadata()["config"])["hypernet"] == "graphormer"
        assert "gnn.0.input_dist_embed.weight" in f.keys()  # noqa: SIM118
        assert f.metadata()["origin"] == f"hf-hub:SamsungSAILMontreal/ghn3/{KNOWN[name].file}"
    load_ghn(f"{name}-orth")
    assert hub["asked"] == [KNOWN[name].file]
    assert file.read_bytes() == before  # it belongs to the Hub's own cache


def test_a_hub_that_cannot_be_reached(tmp_path: Path, hub: dict[str, Any]) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["ghn3tm8.pt"] = LocalEntryNotFoundError("cannot find the requested files in the local cache")
    with pytest.raises(
        CheckpointError, match=r"ghn3-t: ghn3tm8\.pt cannot be downloaded .*(local cache|no network).*file:PATH"
    ):
        load_ghn("ghn3-t")
    assert kept(tmp_path) == []


@pytest.mark.parametrize("wrong", ["cut", "code", "nan"])
def test_a_wrong_file_from_the_hub(tmp_path: Path, hub: dict[str, Any], wrong: str) -> None:
    state: dict[str, Any] = released(small("ghn3"))
    if wrong == "code":
        state["x"] = RunsCode(tmp_path / "ran")
    if wrong == "nan":
        state["ln.bias"] = torch.full((8,), float("nan"))
    hub["ghn3tm8.pt"] = joblib_file(tmp_path / "hub.pt", state)
    if wrong == "cut":
        cut(tmp_path / "hub.pt", 0.9)
    with pytest.raises(CheckpointError, match=r"hub\.pt: .*(ends early|damaged|not admitted|ln\.bias holds NaN)"):
        load_ghn("ghn3-t")
    assert kept(tmp_path) == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
def test_converting_and_loading_take_one_copy_at_most(tmp_path: Path) -> None:
    """Beside the file, whose pages the system may drop. Of 53 MB, 34 are in the largest tensor."""
    config = {**CONFIGS["ghn3"], "hid": 64, "max_shape": (128, 128, 16, 16), "num_classes": 1000}
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in GHN(**config).state_dict().items()}
    file = joblib_file(tmp_path / "hub.pt", {name: torch.full(shape, 0.5) for name, shape in shapes.items()})
    largest = max(torch.Size(shape).numel() for shape in shapes.values()) * 4
    assert largest > 2**25 - 1
    convert, load = aside(peaks_of_memory, file, saved(tmp_path / "small.safetensors"), tmp_path / "home")
    size, slack = file.stat().st_size, 2**23
    assert convert < 2 * size + largest + slack
    assert load < 2 * size + slack


# The default GHN


def test_only_ghn_is_resolved() -> None:
    source = Source("ghn1", orth=True, seed=3)
    assert resolve_default(source) is source
    assert resolve_default("file:x.pt") == Source("file:x.pt")


def test_default_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", "ghn3_t")
    assert resolve_default("ghn-orth?seed=3") == Source("ghn3-t", orth=True, seed=3)
    path = saved(tmp_path / S)
    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{path}")
    assert resolve_default("ghn") == Source(f"file:{path}")
    assert same(load_ghn("ghn"), small())
    assert fetch("ghn") == path
    for named in ("ghn2-orth", "ghn2?seed=1", "nonsense"):
        monkeypatch.setenv("TIMM_GHN_DEFAULT", named)
        with pytest.raises(ValueError, match="TIMM_GHN_DEFAULT="):
            resolve_default("ghn")


@pytest.mark.parametrize("environment", ["", "ghn"])
def test_default_is_the_official_one(server: FileServer, monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", environment)
    assert resolve_default("ghn-orth") == Source("ghn2", orth=True)
    server.status = 503  # and needs no network any more
    assert resolve_default("ghn-orth") == Source("ghn2", orth=True)
    assert same(load_ghn("ghn"), small())
    assert len(server.requests) == 1


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package ships a GHN, for once."""
    path = saved(tmp_path / "shipped.safetensors", small("ghn1"))
    ghn = replace(KNOWN[sources.SHIPPED], local=str(tmp_path), file=path.name)
    monkeypatch.setitem(KNOWN, sources.SHIPPED, ghn)
    return path


def test_default_without_network_is_the_shipped_one(
    server: FileServer, shipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 503
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert resolve_default("ghn-orth?layer=3") == Source(sources.SHIPPED, orth=True, layer=3)
            assert same(load_ghn("ghn"), small("ghn1"))
    assert len(server.requests) == 1  # nobody waits a second time
    (warning,) = caplog.records
    assert "503" in warning.getMessage() and sources.SHIPPED in warning.getMessage()
    server.status = 0
    with pytest.raises(CheckpointError):  # the official one by name is still the official one
        server.status = 503
        fetch("ghn2")
    server.status = 0
    fetch("ghn2")
    assert resolve_default("ghn") == Source("ghn2")  # it has come in the meantime


def test_default_with_neither(server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = replace(KNOWN[sources.SHIPPED], local=str(tmp_path / "nowhere"))
    monkeypatch.setitem(KNOWN, sources.SHIPPED, absent)
    server.status = 503
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"503.*ships no GHN.*timm-ghn-init fetch --source ghn2.*TIMM_GHN_DEFAULT"
        ):
            load_ghn("ghn-orth")
    assert len(server.requests) == 1
    with pytest.raises(CheckpointError, match=f"{sources.SHIPPED}: this installation has no"):
        load_ghn(sources.SHIPPED)
    assert not is_cached(sources.SHIPPED)


def test_unknown_names() -> None:
    for name in ("ghn9", "nonsense", "file:x.onnx"):
        with pytest.raises(ValueError, match=r"Sources|must end"):
            load_ghn(name)
    with pytest.raises(ValueError, match="ghn9"):
        fetch("ghn9")
    with pytest.raises(CheckpointError, match=r"ghn2_imagenet\.pt: no such file"):
        load_ghn("ghn2_imagenet.pt")


def test_no_home_folder(shipped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("TIMM_GHN_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the system does not know
    with pytest.raises(OSError, match="no home folder"):
        checkpoints.home()
    assert not is_cached("ghn2")
    with pytest.raises(CheckpointError, match=r"ghn2 cannot be kept in any folder .*set TIMM_GHN_HOME"):
        fetch("ghn2")
    for _ in range(2):
        assert same(load_ghn("ghn"), small("ghn1"))
    (warning,) = caplog.records
    assert "no home folder" in warning.getMessage()


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_HOME", "~/x")
    assert checkpoints.home() == Path("~/x").expanduser()
    monkeypatch.delenv("TIMM_GHN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert checkpoints.home() == Path("/somewhere/timm_ghn_init")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert checkpoints.home() == Path("~/.cache/timm_ghn_init").expanduser()


def test_the_hub_where_there_is_no_network(monkeypatch: Any, tmp_path: Path, caplog: Any) -> None:
    """One line, at once: huggingface_hub does not try again and again."""
    import socket

    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    asked: list[Any] = []
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: asked.append(args))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=r"ghn3tm8\.pt .*\(no network: .* is not found\)"):
        fetch("ghn3-t")
    assert not asked and not caplog.records

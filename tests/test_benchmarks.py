"""The speed benchmark runs and writes what it promises, on the smallest models. How fast anything is, is not tested."""

import importlib
import json
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from timm_models import skip_if_values_are_read

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STAGES = {"trace", "embed", "decode + write", "graph + prediction", "post-process", "total"}
FLOORS = {"forward on meta", "fill_", "bare QR", "noise + QR", "create_model", "create_model with GHN"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("bench_speed")


def run(bench: ModuleType, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    data, text = folder / "speed.json", folder / "speed.md"
    bench.main([*arguments, "--quick", "--no-peer", "--json", str(data), "--markdown", str(text)])
    return json.loads(data.read_text()), text.read_text()


def test_table(bench: ModuleType, tmp_path: Path, ghn_file: Path) -> None:
    arguments = ("--models", "test_vit", "--parts", "predict", "post", "create", "--source", f"file:{ghn_file}")
    document, text = run(bench, tmp_path, *arguments)
    record = document["models"][0]
    assert (record["model"], record["device"], record["params"]) == ("test_vit", "cpu", 371240)
    assert record["seconds"].keys() >= STAGES | FLOORS
    for figure in (*record["seconds"].values(), *record["ratios"].values()):
        assert 0 < figure["min"] <= figure["median"] <= figure["max"] < math.inf
    assert record["ratios"].keys() == {
        "trace / forward on meta",
        "decode + write / fill_",
        "post-process / bare QR",
        "post-process / noise + QR",
        "create_model with GHN / without",
        "create_model with GHN-orth / without",
        "create_model with GHN-orth / bare QR + prediction",
    }
    seconds = {figure: s["median"] for figure, s in record["seconds"].items()}
    assert seconds["total"] > seconds["post-process"]
    assert "| test_vit | 0.4 M | 86 |" in text
    assert "post-process / bare QR |" in text
    assert "Milliseconds" not in text  # of a CPU, which say more about the machine than about the package


def test_sweep_fits_growth(bench: ModuleType, tmp_path: Path, ghn_file: Path) -> None:
    chains = ("chain:1", "chain:2", "chain:4", "chain:8")
    document, text = run(bench, tmp_path, "--sweep", "nodes", "--models", *chains, "--source", f"file:{ghn_file}")
    sweep = document["sweeps"][0]
    nodes = [r["nodes"] for r in sweep["models"]]
    assert nodes == [nodes[0] + 5 * (blocks - 1) for blocks in (1, 2, 4, 8)]
    assert sweep["growth"].keys() == {"trace", "embed", "decode + write"}
    assert "Exponent of growth with the nodes" in text
    first, last = sweep["models"][0]["seconds"]["trace"], sweep["models"][-1]["seconds"]["trace"]
    row = next(line for line in text.splitlines() if line.startswith("| chain:8 |"))
    assert row.split("|")[4].strip() == f"{last['median'] / first['median']:.2f}"


def test_exponent(bench: ModuleType) -> None:
    assert bench.exponent([(n, 3e-6 * n**1.5) for n in (50, 100, 700, 3000)]) == pytest.approx(1.5)


def test_contenders_take_turns(bench: ModuleType) -> None:
    turns: list[str] = []

    def contender(name: str) -> dict[str, float]:
        turns.append(name)
        return {name: float(len(turns))}

    runs = bench.take_turns([lambda: contender("a"), lambda: contender("b")], repeats=2)
    assert turns == ["a", "b"] * 3
    assert runs == {"a": [3.0, 5.0], "b": [4.0, 6.0]}  # the first round does not count


def test_ratios_are_taken_within_a_repetition(bench: ModuleType) -> None:
    ratios = bench.ratios({"decode + write": [1.0, 8.0, 3.0], "fill_": [1.0, 2.0, 1.0], "total": [1.0, 1.0, 1.0]})
    assert ratios.keys() == {"decode + write / fill_"}
    assert ratios["decode + write / fill_"]["runs"] == [1.0, 4.0, 3.0]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_peak_memory_sees_what_is_allocated(bench: ModuleType) -> None:
    assert bench._restart_peak() == "VmHWM"
    before = bench._resident(True)
    with mmap.mmap(-1, 64 << 20) as memory:  # 64 MB, gone at once; an allocator may have as much left over
        memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    assert 60e6 < bench._peak(True) - before < 100e6


def test_import_is_measured_apart_from_timm(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []  # one process is enough here

    def once(*args: Any, **options: Any) -> Any:
        done.append(done[0] if done else subprocess_run(*args, **options))
        return done[0]

    subprocess_run = subprocess.run
    monkeypatch.setattr(bench.subprocess, "run", once)
    found = bench.measure_import(repeats=1)
    assert 0 < found["timm_ghn_init"]["median"] < found["timm"]["median"]
    assert found["modules"] > 0
    assert found["not yet"] == [] and len(done) == 2


def test_sharded(tmp_path: Path, ghn_file: Path) -> None:
    """What the table on paper says is sent is what two ranks really send."""
    text, model = tmp_path / "sharded.md", "vit_tiny_patch16_224"
    command = [sys.executable, BENCHMARKS / "bench_sharded.py", "--models", model, "--worlds", "2", "--repeat", "1"]
    command += ["--paper", model, "--ranks", "2", "--tflops", "1", "--source", f"file:{ghn_file}-orth"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--markdown", text], capture_output=True, text=True, timeout=240, env=environment
    )
    skip_if_values_are_read(result.stderr)
    assert result.returncode == 0, result.stderr
    rows = [[c.strip() for c in line.strip("| ").split("|")] for line in text.read_text().splitlines() if "|" in line]
    measured = next(dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == model)
    paper = dict(zip(rows[3], rows[5], strict=True))
    sent = float(measured["sent, MB"])
    assert sent > 1 and float(paper["send, GB"]) * 1e3 == pytest.approx(sent, abs=0.06)
    assert float(paper["own parameters, GB"]) * 1e3 == pytest.approx(float(measured["own parameters, MB"]), rel=0.02)

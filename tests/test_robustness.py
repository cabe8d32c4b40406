"""The page that counts what was tried names tests that there are, and those of the table that it is made from."""

import ast
import importlib
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def robustness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("robustness")


def test_every_test_is_there(robustness: ModuleType) -> None:
    named = [name for row in robustness.ROWS for name in row.names()]
    assert len(named) == len(set(named))
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        assert name in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}, f"{file}::{name}"


def test_the_page_is_of_this_table(robustness: ModuleType) -> None:
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    for row in robustness.ROWS:
        assert f"| {row.kind} | {row.what} |" in text
        assert f"| {row.shown()} |" in text


def test_counts(robustness: ModuleType) -> None:
    """What failed was tried and did not hold."""
    counts = defaultdict(Counter)
    counts["test_fuzz", "test_hostile_files"].update(tried=900, held=600)
    text = robustness.page(counts)
    assert "| security | 900 | 600 |" in text
    assert "(fuzzing) | 900 | 600 |" in text
    assert "262,144 instructions" in text

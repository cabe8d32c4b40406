"""The tutorial and the README: their code runs without a network and prints what is shown under it."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tutorial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """An empty folder to work in, on a machine whose network fails."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIMM_GHN_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("tutorial")


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_pages_print_what_they_show(tutorial: ModuleType, page: str) -> None:
    """Slow blocks are run by `python benchmarks/tutorial.py`, which CI does."""
    assert "\n".join(tutorial.check(ROOT / page, slow=False)) == ""


def test_every_output_is_compared_but_for_times(tutorial: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 0.5\n```\n\n```python\nprint(x, '0.2 s')\n```\n\n```text\n0.5 0.1 s\n```\n")
    assert tutorial.check(page) == []
    page.write_text(page.read_text().replace("0.5 0.1", "0.6 0.1"))
    assert len(tutorial.check(page)) == 1
    tutorial.check(page, update=True)
    assert page.read_text().endswith("```text\n0.5 0.2 s\n```\n")


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_numbers_of_the_readme_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks" / "results" / "transfer.md").read_text()
    rows = re.findall(r"^\| (\w+), (\d+) (\w+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 3
    for network, labels, data, cells in rows:
        pattern = rf"\| {data} \| {network} \| {labels} \| \d+ \| {re.escape(cells)} \|"
        assert re.search(pattern, results.replace("*", "")), (network, labels, data)

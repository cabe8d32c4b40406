"""The pages for newcomers: their code runs, in its order, and prints what stands below it."""

import doctest
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from timm_ghn_init.cli import main
from timm_ghn_init.sources import SHIPPED

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# "..." in a page stands for anything, and so does the number of blanks, which follows from the widest cell.
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: str) -> list[tuple[str, str]]:
    return [(language, code) for language, code in FENCE.findall(page)]


def run(language: str, code: str, names: dict[str, Any]) -> None:
    if language == "python":
        exec(code, names)
        return
    assert language == "sh"
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "timm-ghn-init"
        assert main(arguments) == 0


def without_measurements(text: str) -> str:
    """Seconds, accuracies and correlations differ from machine to machine."""
    return re.sub(r"\d+\.\d+", "#", text)


def check(printed: str, page: str) -> None:
    want, got = without_measurements(page), without_measurements(printed)
    assert doctest.OutputChecker().check_output(want, got, SAME), f"printed:\n{printed}\nthe page says:\n{page}"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network, and an empty folder to work in."""
    monkeypatch.setenv("TIMM_GHN_DEFAULT", SHIPPED)
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_tutorial(shipped: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    printed = None
    for language, code in blocks((ROOT / "docs" / "tutorial.md").read_text()):
        if language == "text":
            assert printed is not None, f"two outputs, or one before any code:\n{code}"
            check(printed, code)
            printed = None
        else:
            run(language, code, names)
            printed = capsys.readouterr().out


def test_readme(shipped: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks((ROOT / "README.md").read_text())
    (code,) = (code for language, code in found if language == "python")
    (output,) = (code for language, code in found if language == "text")
    run("python", code, {})
    check(capsys.readouterr().out, output)


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).is_file()] == []

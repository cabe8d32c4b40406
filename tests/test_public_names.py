"""The names that other work builds on."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import timm
import torch
from torch import nn

import timm_ghn_init

PACKAGE = Path(timm_ghn_init.__file__).parent
FUNCTIONS = {
    "init_model": ["model", "source", "ghn", "input_size", "seed", "device", "progress"],
    "trace": ["model", "input_size"],
    "load_ghn": ["name_or_path", "device"],
    "postprocess": ["model", "layer", "beta", "orthogonal", "seed"],
    "push_model": ["model", "repo_id", "report", "options", "seed", "private", "create_pr", "revision", "token"],
    "list_sources": [],
    "register": [],
    "unregister": [],
}


EXAMPLES = [
    f"timm_ghn_init.{name}"
    for name in (
        *("trace", "load_ghn", "save_ghn", "postprocess", "InitReport", "list_sources", "Source", "parse_source"),
        *("recipe.postprocessing.list_layers", "sharded.blocks.blocks_of"),
    )
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(timm_ghn_init, name)).parameters)
    assert parameters[: len(FUNCTIONS[name])] == FUNCTIONS[name]


def test_everything_announced_is_there() -> None:
    for name in timm_ghn_init.__all__:
        assert getattr(timm_ghn_init, name) is not None
        assert name in dir(timm_ghn_init)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = timm_ghn_init.no_such_name


def test_the_reference_shows_paths_to_import_from() -> None:
    """Each heading of the API pages can be imported, and no public name is missing."""
    pages = Path(__file__).parents[1] / "docs" / "api"
    text = "\n".join(page.read_text() for page in pages.glob("*.md"))
    shown = [
        heading or path for path, heading in re.findall(r"^::: (\S+)(?:\n +options: {heading: (\S+),)?", text, re.M)
    ]
    assert len(shown) == len(set(shown)) > 40
    for path in shown:
        assert resolve_name(path).__doc__, path
    assert {f"timm_ghn_init.{name}" for name in timm_ghn_init.__all__} - set(shown) == {"timm_ghn_init.__version__"}


def test_examples_of_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(timm_ghn_init, name) for name in timm_ghn_init.__all__} | {
        "timm": timm,
        "torch": torch,
        "nn": nn,
    }
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for path in EXAMPLES:
        (test,) = doctest.DocTestFinder(recurse=False).find(resolve_name(path), path, globs=dict(names))
        assert test.examples, path
        test.globs[path.rpartition(".")[2]] = resolve_name(path)
        runner.run(test)
    assert runner.summarize().failed == 0


def test_import_is_light() -> None:
    """No plotting, Hub or SciPy code, and none of the parts, until they are needed; then each name is still itself.

    The short paths of the parts of `lab` are the same modules as the full ones.
    """
    code = """
import importlib, sys, timm
before = set(sys.modules)
import timm_ghn_init
new = set(sys.modules) - before
assert not new & {"scipy", "matplotlib", "huggingface_hub", "tqdm", "filelock", "safetensors"}, new
assert not [m for m in new if m.split(".")[:2] in (["timm_ghn_init", p] for p in ("ghn", "graph", "cli", "draw"))], new
import timm_ghn_init.initialize
assert callable(timm_ghn_init.postprocess) and callable(timm_ghn_init.trace) and callable(timm_ghn_init.init_model)
for name in ("finetune", "analysis.difference", "training.loop", "images.batches", "draw"):
    short, full = (importlib.import_module(f"timm_ghn_init{path}.{name}") for path in ("", ".lab"))
    assert short is full and full.__spec__.name == full.__name__ == f"timm_ghn_init.lab.{name}", name
"""
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_type_checkers_see_the_names_that_there_are() -> None:
    """A name that is loaded late is imported for them, and nothing takes a misspelt one for one of these."""
    tree = ast.parse(inspect.getsource(timm_ghn_init))
    for_checkers, at_run_time = (
        [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == test]
        for test in ("TYPE_CHECKING", "not TYPE_CHECKING")
    )
    imported = {name.name for branch in for_checkers for node in branch.body for name in node.names}  # type: ignore[attr-defined]
    assert imported == set(timm_ghn_init._LAZY)
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    assert [node.name for branch in at_run_time for node in branch.body] == ["__getattr__"]  # type: ignore[attr-defined]


def test_dir_shows_the_public_names() -> None:
    assert dir(timm_ghn_init) == sorted(timm_ghn_init.__all__)


ENTRY = re.compile(r"\*{0,2}[\w., *]+: ?")
SECTION = re.compile(r"^ *(?:Args|Raises|Attributes):\n((?:.+\n?)+)", re.MULTILINE)


def test_every_entry_of_a_docstring_section_has_a_name() -> None:
    """Griffe, which builds the API reference, warns about a free line under "Raises:", and `--strict` refuses it."""
    free, seen = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for section in SECTION.findall(ast.get_docstring(node) or ""):
                lines = section.splitlines()
                indent = len(lines[0]) - len(lines[0].lstrip())
                entries = [line.strip() for line in lines if len(line) - len(line.lstrip()) == indent]
                seen += len(entries)
                free += [(path.name, entry) for entry in entries if not ENTRY.match(entry)]
    assert seen > 100 and not free

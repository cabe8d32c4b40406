"""The rooms of the package and their order: data flows one way, and nothing lower imports anything higher."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import timm_ghn_init

PACKAGE = Path(timm_ghn_init.__file__).parent

# From the ground up. A room may import from its own floor and from those below.
FLOORS = (
    "version",
    "utils",  # what all others use
    "registry",  # which initialisations there are
    "sources report",  # what a source string says, what a report holds
    "graph",  # model -> primitive graph
    "ghn",  # graph -> embeddings -> tensors
    "checkpoints weights own_init",
    "recipe",  # Section 3 of the paper
    "sharded",  # where values lie that nobody has whole
    "initialize",  # the front door
    "integration",  # how the sources get into timm and into programs
    "lab",  # training, fine-tuning, analysis, images, pictures of graphs
    "cli",
    "__init__ __main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def modules() -> dict[str, ast.Module]:
    """By their path below the package: "sources", "graph.trace", "graph.__init__"."""
    files = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, anywhere in it: at once, lazily, or for its types alone."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (module for alias in node.names if (module := own(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            place = ["timm_ghn_init", *name.split(".")][: -node.level] if node.level else []
            full = ".".join([*place, *filter(None, [node.module])])
            yield from (m for alias in node.names if (m := own(f"{full}.{alias.name}") or own(full)))


def own(full: str) -> str | None:
    """The module that a dotted name stands for; None if it is another package's, or none."""
    package, _, name = full.partition(".")
    if package != PACKAGE.name:
        return None
    return next((m for m in (name, f"{name}.__init__".lstrip(".")) if m in MODULES), None)


ARROWS = {name: set(imports(name)) - {name} for name in MODULES}


def test_imports_are_seen() -> None:
    assert {"sources", "graph.__init__", "recipe.place"} <= ARROWS["initialize"]
    assert "sharded.place" in ARROWS["initialize"]  # inside a function
    assert "recipe.postprocessing" in ARROWS["__init__"]  # for its type
    assert "lab.training.networks" in ARROWS["lab.training.loop"]


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_the_map_of_the_rooms_has_it(room: str) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert room.startswith("__") or any(f"`{room}`" in line or f"`{room}/`" in line for line in table)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_what_is_higher(name: str) -> None:
    room = name.split(".")[0]
    assert room in FLOOR, f"{room} has no floor yet"
    higher = [other for other in ARROWS[name] if FLOOR[other.split(".")[0]] > FLOOR[room]]
    assert not higher, f"{name} imports {higher}"


def test_no_circle() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith(("recipe.", "sharded."))])
def test_sources_are_resolved_at_the_door(name: str) -> None:
    names = {node.id for node in ast.walk(MODULES[name]) if isinstance(node, ast.Name)}
    assert not names & {"parse_source", "resolve_default", "load_ghn", "fetch"}

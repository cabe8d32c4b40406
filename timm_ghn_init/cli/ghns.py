"""`list` and `fetch`: the hypernetworks."""

import argparse
from typing import NamedTuple

from ..sources import BASELINES, DEFAULT, KNOWN, SUFFIXES, list_sources
from .arguments import AGAIN, Command, add_needed_source
from .messages import table
from .results import show


def add(command: Command) -> None:
    command("list", list_known)
    sub = command("fetch", fetch, go_on=AGAIN)
    add_needed_source(sub, "which GHN, see list")


def list_known(args: argparse.Namespace) -> int:
    """Print the sources."""
    from ..checkpoints.load import is_cached

    rows = [_Row(DEFAULT, "the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships")]
    names = dict.fromkeys(source.name for source in list_sources())
    for known in (KNOWN[name] for name in names if name in KNOWN):
        rows.append(_Row(known.name, known.description, is_cached(known.name), known.license, f"arXiv:{known.arxiv}"))
    rows.append(_Row("file:PATH", f"a file of your own, {', '.join(SUFFIXES)}"))
    rows += [_Row(b.name, b.description, paper=f"arXiv:{b.arxiv}") for b in BASELINES.values()]
    show(args, [row._asdict() for row in rows], lambda: _as_text(rows))
    return 0


class _Row(NamedTuple):
    source: str
    description: str
    cached: bool | None = None
    licence: str | None = None
    paper: str | None = None


def _as_text(rows: list[_Row]) -> str:
    said = {True: "yes", False: "no", None: ""}
    cells = [(r.source, said[r.cached], r.licence or "", r.paper or "", r.description) for r in rows]
    return (
        f"{table(('source', 'cached', 'licence', 'paper', 'description'), cells)}\n\n"
        "Each GHN also with post-processing (ghn2-orth); all with options (ghn2-orth?layer=94&seed=1, orth?layer=37)."
    )


def fetch(args: argparse.Namespace) -> int:
    """Download a GHN, if it is not here yet, and print its path."""
    from ..checkpoints import load as checkpoints

    path = checkpoints.fetch(args.source)
    show(args, {"path": path}, str(path))
    return 0

"""`list` and `fetch`: the sources, and the checkpoints of GHNs."""

import argparse
from typing import Any

from ..sources import DEFAULT, KNOWN, SUFFIXES, list_sources
from .arguments import AGAIN, command, needed_source
from .messages import table
from .results import show


@command("list")
def list_known(args: argparse.Namespace) -> int:
    """List the sources, and which GHNs are on this machine."""
    from ..checkpoints.load import is_cached

    def row(
        source: str, description: str, cached: bool | None = None, licence: str | None = None, arxiv: str = ""
    ) -> dict[str, Any]:
        paper = f"arXiv:{arxiv}" if arxiv else None
        return {"source": source, "description": description, "cached": cached, "licence": licence, "paper": paper}

    names = dict.fromkeys(source.name for source in list_sources())
    ghns = [KNOWN[name] for name in names if name in KNOWN]
    rows = [
        row(DEFAULT, "the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships"),
        *(row(ghn.name, ghn.description, is_cached(ghn.name), ghn.license, ghn.arxiv) for ghn in ghns),
        row("file:PATH", f"a file of your own, {', '.join(SUFFIXES)}"),
        *(row(f.name, f.description, arxiv=f.arxiv) for source in list_sources() if (f := source.initialisation)),
    ]
    show(args, rows, lambda: _as_text(rows))
    return 0


def _as_text(rows: list[dict[str, Any]]) -> str:
    columns = ("source", "cached", "licence", "paper", "description")
    return (
        f"{table(columns, [[row[c] for c in columns] for row in rows])}\n\n"
        "Each GHN also with post-processing (ghn2-orth); all with options (ghn2-orth?layer=94&seed=1, orth?layer=37)\n"
        "and composed (ghn2-orth+mimetic: values of the right one replace those of the left one)."
    )


@command("fetch --source ghn2", needed_source("a GHN, see `list`"), resume_hint=AGAIN)
def fetch(args: argparse.Namespace) -> int:
    """Download the checkpoint of a GHN unless it is on this machine, and print its path."""
    from ..checkpoints import load as checkpoints

    path = checkpoints.fetch(args.source)
    show(args, {"path": path}, str(path))
    return 0

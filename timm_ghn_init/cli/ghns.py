"""`list` and `fetch`: the hypernetworks."""

import argparse

from ..sources import BASELINES, DEFAULT, KNOWN, SUFFIXES, list_sources
from .arguments import AGAIN, Command
from .messages import mistakes, table
from .models import read_source


def add(command: Command) -> None:
    command("list", list_known)
    sub = command("fetch", fetch, go_on=AGAIN)
    sub.add_argument("name", metavar="NAME", help="see list")


def list_known(args: argparse.Namespace) -> int:
    """Print the sources."""
    from ..checkpoints.load import is_cached

    names = dict.fromkeys(source.name for source in list_sources())
    rows = [(DEFAULT, "", "", "", "the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships")]
    for known in (KNOWN[name] for name in names if name in KNOWN):
        cached = "yes" if is_cached(known.name) else "no"
        rows.append((known.name, cached, known.license, f"arXiv:{known.arxiv}", known.description))
    rows.append(("file:PATH", "", "", "", f"a file of your own, {', '.join(SUFFIXES)}"))
    rows += [(b.name, "", "", f"arXiv:{b.arxiv}", b.description) for b in BASELINES.values()]
    print(table(("source", "cached", "licence", "paper", "description"), rows))
    print(
        "\nEach GHN also with post-processing (ghn2-orth); all with options (ghn2-orth?layer=94&seed=1, orth?layer=37)."
    )
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Download a GHN, if it is not here yet, and print its path."""
    from ..checkpoints import load as checkpoints

    with mistakes(ValueError):  # a source without a GHN
        print(checkpoints.fetch(read_source(args.name)))
    return 0

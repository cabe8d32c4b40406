"""The common parts of all pictures: matplotlib's settings, in pictures.mplstyle, and figures as the bytes of a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.text import Told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#1f2933", "#66707a", "#ffffff"
TIMES = "\N{MULTIPLICATION SIGN}"
_NO_DATES = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class NoMatplotlib(Told, ImportError):
    """matplotlib is not installed."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for pictures; they are drawn and saved inside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlib(
            "Pictures need matplotlib, which is not installed. "
            "Install the extra [plot], for instance pip install '.[plot]' in a checkout."
        ) from error
    with matplotlib.rc_context(fname=str(Path(__file__).with_suffix(".mplstyle"))):
        yield


def rendered(figure: Figure, suffix: str) -> bytes:
    """A figure as a file; equal figures give equal bytes.

    Args:
        figure: what to save.
        suffix: ".svg", ".png" or ".pdf".
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], metadata=_NO_DATES[suffix])
    return buffer.getvalue()

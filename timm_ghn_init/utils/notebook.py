"""Objects in a notebook: a line or two, and the rest folded away."""

from collections.abc import Iterable, Sequence
from html import escape

from .text import clean


def folded(text: str, summary: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML of some lines of text, and of a table that opens when its summary is clicked."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    lines = "<br>".join(_cell(line) for line in text.splitlines())
    return (
        f"<div>{lines}<details><summary>{_cell(summary)}</summary>"
        f'<table style="text-align:left"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details></div>'
    )


def _cell(value: object) -> str:
    """Names come from models and files, and may hold anything."""
    return escape(clean(value))

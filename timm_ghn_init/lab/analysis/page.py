"""A report on fine-tuning runs as one page of HTML that needs nothing else: no network, no script, no font.

page.html.jinja and page.css define its look, this module its content. All text from files goes through Jinja2's
autoescape. Figures are matplotlib's SVG with its colours replaced by variables of the page, so that they follow the
reader's light or dark scheme.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ...utils.text import clean
from ...version import __version__
from ..finetune.results import percent
from .figures import (
    FAINT,
    GRID,
    INK,
    PEAK,
    SERIES,
    Line,
    curves,
    deviation,
    distribution,
    lines,
    panel,
    rendered,
    same_scale,
    style,
)
from .runs import Experiment, Row
from .runs import curves as run_curves

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

CURVES = {"train_accuracy": "Training", "validation_accuracy": "Validation"}
COLUMNS = ("test %", "validation %", "seeds", "hyper-parameters")
_DARK_SERIES = ("#a3a3a3", "#5ab4f0", "#ff8f4d", "#35c79c", "#e39ac9", "#e3c24a")
# The page's variables: value in a light and in a dark scheme.
_VARIABLES = {
    "paper": ("#ffffff", "#14181d"),
    "ink": (INK, "#e6eaee"),
    "faint": (FAINT, "#9aa5b1"),
    "grid": (GRID, "#333c46"),
    **{f"s{i}": pair for i, pair in enumerate(zip(SERIES, _DARK_SERIES, strict=True))},
}


def page(experiments: Sequence[Experiment], correlations: Sequence[Mapping[str, Any]] = (), left_out: int = 0) -> str:
    """The report, as HTML.

    Args:
        experiments: from `timm_ghn_init.lab.analysis.experiments`.
        correlations: results of `compare`, one for each architecture.
        left_out: number of lines of the results file that are not shown.

    Raises:
        ImportError: matplotlib or Jinja2 is not installed.

    Example:
        >>> found, left_out = experiments(read(Path("runs.jsonl")))  # doctest: +SKIP
        >>> Path("report.html").write_text(page(found, left_out=left_out))  # doctest: +SKIP
    """
    looks = lines(  # an initialisation looks the same all over the page
        [row.label for e in experiments for row in e.rows]
        + [row["init"] for data in correlations for row in data["inits"]]
    )
    runs = [run for e in experiments for row in e.rows for run in row.runs]
    title = "Fine-tuning: " + ", ".join(dict.fromkeys(e.arch for e in experiments)) if experiments else "Correlations"
    with style():
        return _template().render(
            title=title,
            css=_css(),
            dates=_dates(runs),
            left_out=left_out,
            looks={label: _look(line) for label, line in looks.items()},
            columns=COLUMNS,
            experiments=[_experiment(e, i, looks) for i, e in enumerate(experiments)],
            correlations=[_correlations(data, i, looks) for i, data in enumerate(correlations)],
            peak=PEAK,
            commands=Counter(_command(run.get("command") or []) for run in runs).items(),
            machines=Counter(_pairs(run.get("machine")) + "; " + _pairs(run.get("versions")) for run in runs).items(),
            version=__version__,
        )


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def legible(value: Any) -> Any:
        return value if isinstance(value, Markup) else clean(str(value))

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=legible, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("page.html.jinja"))


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def _experiment(experiment: Experiment, number: int, looks: Mapping[str, Line]) -> dict[str, Any]:
    best, chance = experiment.best, experiment.chance
    most = max(len(row.runs) for row in experiment.rows)
    first = experiment.rows[0].runs[0]
    return {
        "arch": experiment.arch,
        "data": experiment.data,
        "labels": experiment.labels,
        "tested": experiment.tested,
        "chance": None if chance is None else f"{100 * chance:.3g}",
        "has_best": best is not None,
        "stem": ", ".join(f"{n} {change}" for n, change in (first.get("stem") or {}).items()) or "as it is",
        "rows": [{"label": row.label, "best": row is best, "cells": _cells(row, most)} for row in experiment.rows],
        "pictures": _learning(experiment, number, looks),
    }


def _cells(row: Row, most: int) -> tuple[str, ...]:
    return percent(row.test), percent(row.validation), _seeds(row, most), _settings(row)


def _seeds(row: Row, most: int) -> str:
    """The number of runs, and how many are missing or have diverged."""
    n, diverged = len(row.runs), sum(bool(run.get("diverged")) for run in row.runs)
    missing = f"{n} of {most}: not complete" if n < most else str(n)
    return missing + (f" ({diverged} diverged)" if diverged else "")


def _learning(experiment: Experiment, number: int, looks: Mapping[str, Line]) -> "list[Markup]":
    """Learning curves, all on the same scale."""
    drawn = []
    for name, title in CURVES.items():
        series = [run_curves(row, name) for row in experiment.rows]
        if any(curve.mean for curve in series):
            figure, axes = panel()
            curves(axes, series, looks, title, experiment.chance)
            drawn.append((figure, axes, title))
    same_scale(*(axes for _, axes, _ in drawn))
    return [_svg(figure, f"e{number}c{i}", f"{t} accuracy by epoch") for i, (figure, _, t) in enumerate(drawn)]


_SHOWN = {
    "opt": "",
    "epochs": " epochs",
    "lr": "lr ",
    "weight_decay": "wd ",
    "batch_size": "batch ",
    "image_size": " px",
}


def _settings(row: Row) -> str:
    """The hyper-parameters of the paper's Table 2, each with its name before it or its unit after it."""
    t = row.trial
    parts = [f"{w}{t[n]}" if w.endswith(" ") else f"{t[n]}{w}" for n, w in _SHOWN.items() if n in t]
    return ", ".join(parts)


# -- correlations ------------------------------------------------------------------------------------------------------


def _correlations(data: Mapping[str, Any], number: int, looks: Mapping[str, Line]) -> dict[str, Any]:
    panels = []
    for layer in data["selected"]:
        figure, axes = panel()
        distribution(axes, data, layer, looks)
        panels.append(_svg(figure, f"d{number}l{layer}", f"Distribution of correlations in layer {layer}"))
    figure, axes = panel((8.6, 2.9))
    deviation(axes, data, looks)
    return {
        "arch": data["arch"],
        "labels": [row["init"] for row in data["inits"]],
        "pictures": panels,
        "last": _svg(figure, f"d{number}", "Standard deviation of the correlations in each layer"),
    }


# -- provenance --------------------------------------------------------------------------------------------------------


def _dates(runs: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last day of the runs; "" if unknown."""
    days = sorted(run["finished"][:10] for run in runs if run.get("finished"))
    return "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _command(argv: Sequence[str]) -> str:
    program = ["python", "-m", "timm_ghn_init"] if argv[:1] == ["__main__.py"] else list(argv[:1])
    return shlex.join([*program, *argv[1:]]) or "unknown"


def _pairs(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (mapping or {}).items()) or "unknown"


# -- pictures and looks ------------------------------------------------------------------------------------------------


def _svg(figure: "Figure", salt: str, label: str) -> "Markup":
    """A figure as part of the page: matplotlib's SVG with colours as variables and ids of its own."""
    from markupsafe import Markup, escape

    text = rendered(figure, ".svg", salt).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<(g|text) id="[^"]*"', r"<\1", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    opening = (
        f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = opening + text[text.index(">") + 1 :]
    for name, (light, _) in _VARIABLES.items():
        text = text.replace(light, f"var(--{name})")
    return Markup(text)


def _look(line: Line) -> dict[str, str]:
    dashes = " ".join(f"{2.5 * part:g}" for part in line.dash) or "none"
    return {"variable": f"s{SERIES.index(line.colour)}", "dashes": dashes}


def _css() -> "Markup":
    from markupsafe import Markup

    light, dark = (";".join(f"--{name}:{pair[scheme]}" for name, pair in _VARIABLES.items()) for scheme in (0, 1))
    return Markup(f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_text('page.css')}")

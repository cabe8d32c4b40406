"""A report on fine-tuning runs as one page of HTML that needs nothing else: no network, no script, no font.

All text from files goes through `_e`; pictures are matplotlib's SVG with its colours replaced by variables of the page,
so that they follow the reader's light or dark scheme.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..finetune.results import percent
from ..text import clean
from ..version import __version__
from .figures import FAINT, GRID, INK, SERIES, Line, curves, deviation, distribution, lines, panel, rendered, style
from .runs import Experiment, Row
from .runs import curves as run_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {"train_accuracy": "Training", "validation_accuracy": "Validation"}
_DARK_SERIES = ("#5ab4f0", "#ff8f4d", "#35c79c", "#e39ac9", "#e3c24a", "#b9c1c9")
# The page's variables: value in a light and in a dark scheme.
_VARIABLES = {
    "paper": ("#ffffff", "#14181d"),
    "ink": (INK, "#e6eaee"),
    "faint": (FAINT, "#9aa5b1"),
    "grid": (GRID, "#333c46"),
    **{f"s{i}": pair for i, pair in enumerate(zip(SERIES, _DARK_SERIES, strict=True))},
}


def page(experiments: Sequence[Experiment], correlations: Sequence[Mapping[str, Any]] = (), left_out: int = 0) -> str:
    """The report.

    Args:
        experiments: see `timm_ghn_init.analysis.runs.experiments`.
        correlations: what `compare` has measured, one for each architecture.
        left_out: lines of the results file that are not shown.

    Raises:
        ImportError: matplotlib is not installed.
    """
    looks = lines(  # an initialisation looks the same all over the page
        [row.label for e in experiments for row in e.rows]
        + [row["init"] for data in correlations for row in data["inits"]]
    )
    with style():
        sections = [_experiment(e, i, looks) for i, e in enumerate(experiments)]
        sections += [_correlations(data, i, looks) for i, data in enumerate(correlations)]
    note = f"<p>{left_out} lines of the file are no sound runs and were left out.</p>" if left_out else ""
    runs = [run for e in experiments for row in e.rows for run in row.runs]
    title = "Fine-tuning: " + ", ".join(dict.fromkeys(e.arch for e in experiments)) if experiments else "Correlations"
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing may be fetched, and nothing run, whatever the page holds.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_e(title)}</title><style>{_css()}</style></head><body><main>",
            f"<h1>{_e(title)}</h1>{note}",
            *sections,
            _commands(runs) if runs else "",
            f"<footer>timm-ghn-init {_e(__version__)}</footer></main></body></html>\n",
        )
    )


def _e(text: object) -> str:
    """Text from outside as text, whatever it holds."""
    return escape(clean(str(text)))


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def _experiment(experiment: Experiment, number: int, looks: Mapping[str, Line]) -> str:
    panels = []
    for i, (name, title) in enumerate(CURVES.items()):
        series = [run_curves(row, name) for row in experiment.rows]
        if any(curve.mean for curve in series):
            figure, axes = panel()
            curves(axes, series, looks, title)
            panels.append(_svg(figure, f"e{number}c{i}", f"{title} accuracy by epoch"))
    first = experiment.rows[0].runs[0]
    stem = ", ".join(f"{n} {change}" for n, change in (first.get("stem") or {}).items()) or "as it is"
    return (
        f"<section><h2>{_e(experiment.arch)} on {_e(experiment.data)}, {experiment.labels} labels</h2>"
        f"<p>Accuracy after the last epoch, mean ± standard deviation over seeds. Stem: {_e(stem)}.</p>"
        f"{_table(experiment, looks)}{_legend([row.label for row in experiment.rows], looks)}"
        f"<div class=panels>{''.join(panels)}</div>"
        "<p class=faint>Lines are means over seeds, bands the range of the seeds.</p></section>"
    )


_COLUMNS = ("test %", "validation %", "seeds", "hyper-parameters")


def _table(experiment: Experiment, looks: Mapping[str, Line]) -> str:
    best = max((row.test[0] for row in experiment.rows if row.test[0] is not None), default=None)
    body = []
    for row in experiment.rows:
        score = percent(row.test)
        diverged = sum(bool(run.get("diverged")) for run in row.runs)
        cells = (
            f"<b>{score}</b>" if row.test[0] == best else score,
            percent(row.validation),
            f"{len(row.runs)}{f' ({diverged} diverged)' if diverged else ''}",
            _e(_settings(row)),
        )
        named = "".join(f'<td data-h="{h}">{cell}</td>' for h, cell in zip(_COLUMNS, cells, strict=True))
        body.append(f"<tr><th scope=row>{_swatch(looks[row.label])} {_e(row.label)}</th>{named}</tr>")
    header = "".join(f"<th scope=col>{h}</th>" for h in ("initialisation", *_COLUMNS))
    return f"<div class=wide><table><thead><tr>{header}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


_SHOWN = {
    "opt": "",
    "epochs": " epochs",
    "lr": "lr ",
    "weight_decay": "wd ",
    "batch_size": "batch ",
    "image_size": " px",
}


def _settings(row: Row) -> str:
    """The hyper-parameters of the paper's Table 2; the unit stands after a number, the name before it."""
    t = row.trial
    parts = [f"{w}{t[n]}" if w.endswith(" ") else f"{t[n]}{w}" for n, w in _SHOWN.items() if n in t]
    return ", ".join(parts)


# -- correlations ------------------------------------------------------------------------------------------------------


def _correlations(data: Mapping[str, Any], number: int, looks: Mapping[str, Line]) -> str:
    panels = []
    for layer in data["selected"]:
        figure, axes = panel()
        distribution(axes, data, layer, looks)
        panels.append(_svg(figure, f"d{number}l{layer}", f"Distribution of correlations in layer {layer}"))
    figure, axes = panel((8.6, 2.9))
    deviation(axes, data, looks)
    last = _svg(figure, f"d{number}", "Standard deviation of the correlations in each layer")
    return (
        f"<section><h2>Correlation between the channels of {_e(data['arch'])}</h2>"
        "<p>Pearson's correlation between the weights of each two output channels of a layer, before any training: "
        "the nearer to 0, the more independent they are.</p>"
        f"{_legend([row['init'] for row in data['inits']], looks)}"
        f"<div class=panels>{''.join(panels)}</div><div class=wide>{last}</div></section>"
    )


# -- how it came about -------------------------------------------------------------------------------------------------


def _commands(runs: Sequence[Mapping[str, Any]]) -> str:
    commands = Counter(_command(run.get("command") or []) for run in runs)
    machines = Counter(_pairs(run.get("machine")) + "; " + _pairs(run.get("versions")) for run in runs)
    blocks = [f"<pre>{_e(command)}</pre><p class=faint>{n} runs</p>" for command, n in commands.items()]
    where = "".join(f"<li>{_e(machine)}: {n} runs</li>" for machine, n in machines.items())
    return f"<section><h2>Commands</h2>{''.join(blocks)}<h3>Machines and versions</h3><ul>{where}</ul></section>"


def _command(argv: Sequence[str]) -> str:
    program = ["python", "-m", "timm_ghn_init"] if argv[:1] == ["__main__.py"] else list(argv[:1])
    return shlex.join([*program, *argv[1:]]) or "unknown"


def _pairs(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (mapping or {}).items()) or "unknown"


# -- pictures and looks ------------------------------------------------------------------------------------------------


def _svg(figure: "Figure", salt: str, label: str) -> str:
    """matplotlib's SVG without what a page has no use for, its colours as variables, its ids its own."""
    text = rendered(figure, ".svg", salt).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<(g|text) id="[^"]*"', r"<\1", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    opening = (
        f'<svg viewBox="{view[1]}" role="img" aria-label="{_e(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = opening + text[text.index(">") + 1 :]
    for name, (light, _) in _VARIABLES.items():
        text = text.replace(light, f"var(--{name})")
    return text


def _swatch(look: Line) -> str:
    colour, dashes = f"var(--s{SERIES.index(look.colour)})", " ".join(f"{2.5 * part:g}" for part in look.dash)
    return (
        f'<svg class=swatch viewBox="0 0 32 8" aria-hidden=true><path d="M0 4H32" stroke="{colour}" '
        f'stroke-width="2.5" stroke-dasharray="{dashes or "none"}"/></svg>'
    )


def _legend(labels: Sequence[str], looks: Mapping[str, Line]) -> str:
    items = "".join(f"<li>{_swatch(looks[label])} {_e(label)}</li>" for label in labels)
    return f"<ul class=legend>{items}</ul>"


def _css() -> str:
    light, dark = (";".join(f"--{name}:{pair[scheme]}" for name, pair in _VARIABLES.items()) for scheme in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_CSS}"


_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1200px;margin:0 auto;padding:1.5rem 1rem 3rem}
h1,h2,h3,th,li,p,footer{overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 1rem}
h2{font-size:1.2rem;margin:2.5rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--grid)}
h3{font-size:1rem}
p,ul{max-width:70ch}
.faint,footer{color:var(--faint);font-size:.875rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;min-width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .75rem .4rem 0;text-align:left;border-bottom:1px solid var(--grid)}
th{font-weight:600}
thead th{color:var(--faint);font-size:.875rem}
td{white-space:nowrap}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;max-width:none}
.swatch{width:32px;height:8px;vertical-align:middle}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
.panels svg{width:100%;max-width:640px;height:auto;display:block}
.wide>svg{width:100%;min-width:560px;height:auto;display:block}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--grid);border-radius:4px;padding:.75rem}
@media(max-width:600px){
thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--grid)}
th,td{display:block;border:0;padding:0;white-space:normal}
td:not(:last-child){display:inline-block;margin-right:1rem}
td::before{content:attr(data-h)" ";color:var(--faint)}
}
""".strip()

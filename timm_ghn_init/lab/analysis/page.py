"""A report on fine-tuning runs as one page of HTML that needs nothing else: no network, no script, no font.

page.html.jinja and page.css define its look, this module its content. All text from files goes through Jinja2's
autoescape. Figures are pictures inside the page; in a dark scheme the page inverts their lightness.
"""

import base64
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.text import clean
from ...version import __version__
from ..finetune import Trial
from ..finetune.results import hyper_parameters, percent
from ..pictures import rendered, style
from .figures import PEAK, correlation_figure, learning_figure
from .runs import Experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    runs = [run for e in experiments for row in e.rows for run in row.runs]
    title = "Fine-tuning: " + ", ".join(dict.fromkeys(e.arch for e in experiments)) if experiments else "Correlations"
    with style():
        return _template().render(
            title=title,
            days=sorted({run["finished"][:10] for run in runs if run.get("finished")}),
            left_out=left_out,
            experiments=[(e, _image(learning_figure(e))) for e in experiments],
            correlations=[(data["arch"], _image(correlation_figure(data))) for data in correlations],
            peak=PEAK,
            commands=Counter(_command(run.get("command") or []) for run in runs).items(),
            machines=Counter(_pairs(run.get("machine")) + "; " + _pairs(run.get("versions")) for run in runs).items(),
            version=__version__,
        )


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "hyper_parameters": lambda t: hyper_parameters(asdict(Trial(**t)))}
    return environment.get_template("page.html.jinja")


def _image(figure: "Figure | None") -> str:
    """A figure as the address of an image; "" for none."""
    if figure is None:
        return ""
    figure.patch.set_alpha(0)  # the page is behind it
    return f"data:image/svg+xml;base64,{base64.b64encode(rendered(figure, '.svg')).decode()}"


def _command(argv: Sequence[str]) -> str:
    program = ["python", "-m", "timm_ghn_init"] if argv[:1] == ["__main__.py"] else list(argv[:1])
    return shlex.join([*program, *argv[1:]]) or "unknown"


def _pairs(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (mapping or {}).items()) or "unknown"

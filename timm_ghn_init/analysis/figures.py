"""Pictures of what is measured, by matplotlib: each panel is a function that draws into the axes it is given."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#1f2933", "#66707a", "#d9dee3", "#ffffff"
# Lines of a picture. Apart in hue and lightness for colour-blind readers, and each 3 : 1 or more against white.
SERIES = ("#0072b2", "#d55e00", "#00805c", "#a8508a", "#8a6d00", "#4d4d4d")
# Of dashes and gaps, in line widths; () is a solid line.
DASHES = ((), (5.0, 1.5), (6.0, 1.5, 1.2, 1.5), (1.5, 1.2), (7.0, 1.5, 1.5, 1.5, 1.5, 1.5), (9.0, 3.0))
_MARKERS = "osD^vPXh"  # a star is what is given
_MOST_GROUPS = 8  # of a scatter plot; all others share one grey
STYLE: Any = {  # matplotlib names the keys' type only in new versions
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


class Line(NamedTuple):
    """How a series is drawn: its colour, and one of `DASHES`."""

    colour: str
    dash: tuple[float, ...]

    @property
    def style(self) -> Any:
        return (0, self.dash) if self.dash else "-"


class Curve(NamedTuple):
    """One quantity by epoch: mean, least and most over the seeds; None where no run got that far."""

    label: str
    mean: Sequence[float | None]
    least: Sequence[float | None]
    most: Sequence[float | None]


def lines(labels: Iterable[str]) -> dict[str, Line]:
    """A look for each label, in their order."""
    looks = {}
    for i, label in enumerate(dict.fromkeys(labels)):
        dash = DASHES[(i + i // len(SERIES)) % len(DASHES)]  # where colours begin anew, others
        looks[label] = Line(SERIES[i % len(SERIES)], dash)
    return looks


# -- panels ------------------------------------------------------------------------------------------------------------


def distribution(axes: Axes, data: Mapping[str, Any], layer: int, looks: Mapping[str, Line]) -> None:
    """Densities of the correlations in one layer, a line for each initialisation."""
    bins = data["bins"]
    centres = [-1 + (i + 0.5) * 2 / bins for i in range(bins)]
    highest = 0.0
    for row in data["inits"]:
        counts = row["histogram"][layer - 1]
        if counts is None:
            continue
        density = [c / max(1, sum(counts)) * bins / 2 for c in counts]
        highest = max(highest, *density)
        look = looks[row["init"]]
        axes.plot(centres, density, color=look.colour, ls=look.style)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), ylim=(0, 1.6 * max(highest, 1)))
    axes.set(xlabel="Pearson's correlation", ylabel="density (log scale)")
    info = data["layers"][layer - 1]
    shape = "\N{MULTIPLICATION SIGN}".join(map(str, info["shape"]))
    axes.set_title(_short(f"layer {layer}: {info['name']}, {shape}"))


def deviation(axes: Axes, data: Mapping[str, Any], looks: Mapping[str, Line]) -> None:
    """Standard deviation of the correlations in each layer, a line for each initialisation."""
    for row in data["inits"]:
        known = [(info["layer"], std) for info, std in zip(data["layers"], row["std"], strict=True) if std is not None]
        look = looks[row["init"]]
        x, y = zip(*known, strict=True) if known else ((), ())
        axes.plot(x, y, color=look.colour, ls=look.style, marker="o", ms=2.5, label=clean(row["init"]))
    axes.set(xlabel="layer, in the order of the network", ylabel="std of the correlations")
    axes.set_ylim(bottom=0)
    _whole_numbers(axes)
    axes.set_title("All layers")


def curves(axes: Axes, series: Sequence[Curve], looks: Mapping[str, Line], title: str) -> None:
    """Accuracies by epoch: the mean over seeds as a line, the range of the seeds as a band."""
    for curve in series:
        look = looks[curve.label]
        known = [
            (epoch, 100 * mean, 100 * low, 100 * high)
            for epoch, (mean, low, high) in enumerate(zip(curve.mean, curve.least, curve.most, strict=True), 1)
            if mean is not None and low is not None and high is not None
        ]
        if known:
            x, mean, low, high = zip(*known, strict=True)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
            axes.plot(x, mean, color=look.colour, ls=look.style, label=curve.label, marker="o" if len(x) == 1 else None)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    _whole_numbers(axes)
    axes.set_title(title)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))


def scatter(axes: Axes, data: Mapping[str, Any], value_name: str | None = None) -> None:
    """Embeddings on their first two principal components; given architectures are pointed out by name."""
    points, share = data["points"], data["variance"]
    if value_name is None:
        _by_group(axes, points)
    else:
        _by_value(axes, points, value_name)
    middle = (min(p["x"] for p in points) + max(p["x"] for p in points)) / 2
    for p in (p for p in points if p["given"]):
        side = -1 if p["x"] > middle else 1  # so that the name stays inside
        axes.scatter(p["x"], p["y"], marker="*", s=150, c=SERIES[1], edgecolors=INK, linewidths=0.8, zorder=3)
        name = axes.annotate(clean(p["name"]), (p["x"], p["y"]), (7 * side, 5), textcoords="offset points", zorder=4)
        name.set(ha="left" if side > 0 else "right", weight="bold")
    axes.set(
        xlabel=f"first principal component ({share[0]:.0%} of the variance)",
        ylabel=f"second principal component ({share[1]:.0%})",
    )
    axes.margins(0.12)


def _by_group(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for p in points:
        if not p["given"]:
            groups.setdefault(p["group"], []).append(p)
    largest = sorted(groups, key=lambda g: -len(groups[g]))
    named = largest if len(largest) <= _MOST_GROUPS else largest[: _MOST_GROUPS - 1]
    for i, group in enumerate(named):
        label = f"{clean(group)} ({len(groups[group])})"
        _dots(axes, groups[group], c=SERIES[i % len(SERIES)], marker=_MARKERS[i % len(_MARKERS)], label=label)
    others = [p for g in largest if g not in named for p in groups[g]]
    _dots(axes, others, c="#b8bec6", marker=".", zorder=1, label=f"{len(largest) - len(named)} others ({len(others)})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _by_value(axes: Axes, points: Sequence[Mapping[str, Any]], name: str) -> None:
    reference = [p for p in points if not p["given"]]
    _dots(axes, [p for p in reference if p["value"] is None], c="none", marker="o", label="unknown")
    known = [p for p in reference if p["value"] is not None]
    shown = _dots(axes, known, c=[p["value"] for p in known], cmap="cividis", marker="o")
    if shown is not None:
        assert axes.figure is not None
        axes.figure.colorbar(shown, ax=axes).set_label(clean(name))


def _dots(axes: Axes, points: Sequence[Mapping[str, Any]], **style: Any) -> Any:
    if not points:
        return None
    return axes.scatter(
        [p["x"] for p in points], [p["y"] for p in points], s=26, edgecolors=INK, linewidths=0.3, alpha=0.9, **style
    )


def _short(text: str, most: int = 48) -> str:
    text = clean(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


# -- pictures ----------------------------------------------------------------------------------------------------------


def correlation_figure(data: Mapping[str, Any]) -> Figure:
    """Figure 2 of the paper: distributions of selected layers above, the deviation in all layers below."""
    from matplotlib.figure import Figure

    selected, looks = data["selected"], lines(row["init"] for row in data["inits"])
    columns = min(2, max(1, len(selected)))
    rows = -(-len(selected) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.6 * rows + 3.2), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[1.0] * rows, 1.1])
    for i, layer in enumerate(selected):
        distribution(figure.add_subplot(grid[i // columns, i % columns]), data, layer, looks)
    last = figure.add_subplot(grid[rows, :])
    deviation(last, data, looks)
    figure.suptitle(clean(f"Correlation between the channels of {data['arch']}"), ha="left", x=0.01, size=11)
    handles, labels = last.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))))
    return figure


def embedding_figure(data: Mapping[str, Any], value_name: str | None = None) -> Figure:
    """Figure 5 of the paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained", facecolor=PAPER)
    scatter(figure.subplots(), data, value_name)
    return figure


def layer_figure(data: Mapping[str, Any]) -> Figure:
    """Accuracy over the first layer L that is post-processed, a line for each beta and round of a tuning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in data["curve"]:
        groups.setdefault(f"{point['epochs']} epochs, beta {point['beta']:g}", []).append(point)
    looks = lines(groups)
    for label, points in groups.items():
        x, y = [p["layer"] for p in points], [100 * p["accuracy"] for p in points]
        axes.plot(x, y, color=looks[label].colour, ls=looks[label].style, marker="o", ms=3.5, label=label)
    axes.set(xlim=(0.5, data["layers"] + 0.5), xlabel=f"first layer that is post-processed, of {data['layers']}")
    axes.set_ylabel("accuracy on validation images (%)")
    _whole_numbers(axes)
    axes.set_title(_short(f"{data['arch']}, {data['data']}: {data['source']}", 80))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def panel(size: tuple[float, float] = (4.2, 2.9)) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    return figure, figure.subplots()


@contextmanager
def style() -> Iterator[None]:
    """Everything is drawn and saved inside of it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            'Pictures are drawn by matplotlib, which is not installed: pip install "timm-ghn-init[plot]".'
        ) from error
    with matplotlib.rc_context(STYLE):
        yield


def rendered(figure: Figure, suffix: str, salt: str = "timm-ghn-init") -> bytes:
    """A picture as .svg or .png; the same bytes for the same picture."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(buffer, format=suffix.lstrip("."), dpi=160, metadata=metadata)
    return buffer.getvalue()

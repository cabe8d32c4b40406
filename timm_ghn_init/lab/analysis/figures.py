"""Figures of measurements, by matplotlib: each panel is a function that draws into the axes it is given."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ...sources import parse_source
from ...utils.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#1f2933", "#66707a", "#d9dee3", "#ffffff"
# Lengths of dashes and gaps in line widths; () is a solid line.
DASHES = ((), (5.0, 1.5), (6.0, 1.5, 1.2, 1.5), (1.5, 1.2), (7.0, 1.5, 1.5, 1.5, 1.5, 1.5), (9.0, 3.0))
_SHAPES = "osD^vPX"  # of groups in a scatter plot; stars are what is given
# Colours of the largest groups; all others share a grey.
_GROUPS = ("#0072b2", "#d55e00", "#00805c", "#a8508a", "#8a6d00", "#5ab4f0", "#c7a400")
_OTHERS = "#b8bec6"
_STARS = ("#000000", "#e8003a", "#6a00ff", "#00e0c0")
_STAR_SHAPES = ("*", "p", "h")  # for more of them than there are colours
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
    """The look of a series: its colour, "#rrggbb", and one of `DASHES`."""

    colour: str
    dash: tuple[float, ...]

    @property
    def style(self) -> Any:
        return (0, self.dash) if self.dash else "-"

    @property
    def width(self) -> float:
        """In points. A prediction is wider, so that it is visible below its post-processed self where they coincide."""
        return 3.4 if self == PALETTE["ghn"] else 1.6


# An initialisation looks the same in all figures. Colours differ in hue and lightness, for colour-blind readers, and
# have a contrast of at least 3 : 1 against white; grey is the baseline of all comparisons.
PALETTE = {
    "rand": Line("#767676", DASHES[0]),
    "orth": Line("#0072b2", DASHES[1]),
    "ghn": Line("#d55e00", DASHES[0]),
    "ghn-orth": Line("#00805c", DASHES[2]),
    "pretrained": Line("#a8508a", DASHES[3]),
    "timm": Line("#8a6d00", DASHES[4]),
}
SERIES = tuple(line.colour for line in PALETTE.values())


class Curve(NamedTuple):
    """One quantity by epoch: mean, least and most over the seeds; None for epochs that no run reached."""

    label: str
    mean: Sequence[float | None]
    least: Sequence[float | None]
    most: Sequence[float | None]


def lines(labels: Iterable[str]) -> dict[str, Line]:
    """The looks of labels, by label: that of the kind of initialisation, or a free one if another label has that.

    Args:
        labels: initialisations, each optionally followed by ", " and what distinguishes it ("rand, lr 0.1").
    """
    looks: dict[str, Line] = {}
    for i, label in enumerate(dict.fromkeys(labels)):
        wanted = PALETTE.get(_kind(label)) or list(PALETTE.values())[i % len(PALETTE)]
        colour, dash = SERIES.index(wanted.colour), DASHES.index(wanted.dash)
        others = (
            Line(SERIES[(colour + c) % len(SERIES)], DASHES[(dash + d) % len(DASHES)])
            for c in range(len(SERIES))
            for d in range(len(DASHES))
        )
        looks[label] = next((line for line in others if line not in looks.values()), wanted)
    return looks


def _kind(label: str) -> str:
    """The key of `PALETTE` for an initialisation, which may be followed by ", " and what else tells it from others."""
    name = label.partition(", ")[0]
    try:
        source = parse_source(name)
    except ValueError:
        return name
    return source.initialisation.name if source.initialisation else "ghn-orth" if source.orth else "ghn"


# -- panels ------------------------------------------------------------------------------------------------------------


def distribution(axes: Axes, data: Mapping[str, Any], layer: int, looks: Mapping[str, Line]) -> None:
    """Draw the distribution of the correlations in one layer, a line for each initialisation.

    Args:
        axes: where to draw.
        data: the result of `compare`.
        layer: number of the layer, from 1.
        looks: the result of `lines` for the initialisations.
    """
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
        axes.plot(centres, density, color=look.colour, ls=look.style, lw=look.width)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), ylim=(0, 1.6 * max(highest, 1)))
    axes.set(xlabel="correlation", ylabel="density (log scale)")
    info = data["layers"][layer - 1]
    shape = "\N{MULTIPLICATION SIGN}".join(map(str, info["shape"]))
    axes.set_title(_short(f"layer {layer}: {info['name']}, {shape}"))


def deviation(axes: Axes, data: Mapping[str, Any], looks: Mapping[str, Line]) -> None:
    """Draw the standard deviation of the correlations in each layer, a line for each initialisation, and mark L.

    Args: as of `distribution`.
    """
    for row in data["inits"]:
        _by_layer(axes, row["std"], looks[row["init"]], clean(row["init"]), 1)
    n = len(data["layers"])
    axes.set(xlabel="layer", ylabel="std of correlations", xlim=(0.5, n + 0.5))
    axes.set_ylim(0, 1.14 * axes.get_ylim()[1])  # with room for L
    axes.set_xticks(_from_one(n))
    _mark_first_layers(axes, data["inits"], looks)
    axes.set_title("All layers")


def _from_one(n: int) -> list[int]:
    """About ten tick positions from 1 to n: 1 and round numbers."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, n) if n / s <= 12)
    return [1, *(i for i in range(step, n + 1, step) if i > 1)]


def _mark_first_layers(axes: Axes, inits: Sequence[Mapping[str, Any]], looks: Mapping[str, Line]) -> None:
    """Mark L, the first post-processed layer, of each initialisation for which it is not 1."""
    found: dict[int, str] = {}
    for row in inits:
        if (row.get("layer") or 1) > 1:
            found.setdefault(row["layer"], looks[row["init"]].colour)
    for layer, colour in found.items():
        axes.axvline(layer - 0.5, color=colour, lw=1, ls=(0, (2, 2)), zorder=0)
        axes.annotate(
            f"L = {layer}", (layer - 0.5, 1), (-3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="right", va="top", color=colour,
        )  # fmt: skip


def curves(axes: Axes, series: Sequence[Curve], looks: Mapping[str, Line], title: str, chance: float | None) -> None:
    """Draw accuracies by epoch: the mean over seeds as a line, their range as a band.

    Args:
        axes: where to draw.
        series: accuracies, 0 to 1; see `runs.curves`.
        looks: the result of `lines` for the labels of the series.
        title: of the panel.
        chance: the accuracy of guessing, drawn as a line; None for no line.
    """
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
            marker = "o" if len(x) == 1 else None
            axes.plot(x, mean, color=look.colour, ls=look.style, label=curve.label, marker=marker)
    if chance is not None:
        axes.axhline(100 * chance, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            "chance", (1, 100 * chance), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", color=FAINT,
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    _whole_numbers(axes)
    axes.set_title(title)


def same_scale(*panels: Axes) -> None:
    """Give panels common limits that show all of them."""
    for limits in ("xlim", "ylim") if panels else ():
        bounds = [getattr(axes, f"get_{limits}")() for axes in panels]
        low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
        for axes in panels:
            axes.set(**{limits: (low, high)})


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))


def scatter(axes: Axes, data: Mapping[str, Any], value_name: str | None = None) -> None:
    """Draw embeddings on their first two principal components; given architectures are stars, named in the legend.

    Args:
        axes: where to draw.
        data: the result of `place`.
        value_name: label of the colour scale if points are coloured by their "value"; None: by their "group".
    """
    points, share = data["points"], data["variance"]
    if value_name is None:
        _by_group(axes, points)
    else:
        _by_value(axes, points, value_name)
    stars = itertools.cycle(itertools.product(_STAR_SHAPES, _STARS))
    for p, (marker, colour) in zip((p for p in points if p["given"]), stars, strict=False):
        look: dict[str, Any] = {"c": colour, "marker": marker, "s": 170, "edgecolors": PAPER, "linewidths": 0.8}
        axes.scatter(p["x"], p["y"], zorder=3, label=clean(p["name"]), **look)
    axes.set(
        xlabel=f"first principal component ({share[0]:.0%} of the variance)",
        ylabel=f"second principal component ({share[1]:.0%})",
    )
    axes.margins(0.12)
    axes.set_title(_embedding_title(data))
    if value_name is None:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:  # the colour scale is on the right
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _embedding_title(data: Mapping[str, Any]) -> str:
    others = sum(not p["given"] for p in data["points"])
    ghn = f"of {data['ghn']}" if data.get("ghn") else "of a GHN"
    return _short(f"Graph embeddings {ghn}, among {others} architectures", 90)


def _by_group(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for p in points:
        if not p["given"]:
            groups.setdefault(p["group"], []).append(p)
    largest = sorted(groups, key=lambda g: -len(groups[g]))
    for group, colour, marker in zip(largest, _GROUPS, _SHAPES, strict=False):
        _dots(axes, groups[group], c=colour, marker=marker, label=f"{clean(group)} ({len(groups[group])})")
    rest = largest[len(_GROUPS) :]
    others = [p for g in rest for p in groups[g]]
    label = clean(rest[0]) if len(rest) == 1 else f"{len(rest)} others"
    _dots(axes, others, c=_OTHERS, marker=".", zorder=1, label=f"{label} ({len(others)})")


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
    """Figure 2 of arXiv 2207.10049: distributions in selected layers above, the deviation in all layers below.

    Args:
        data: the result of `compare`.

    Example:
        >>> with style():  # doctest: +SKIP
        ...     picture = rendered(correlation_figure(data), ".svg")
    """
    from matplotlib.figure import Figure

    selected, looks = data["selected"], lines(row["init"] for row in data["inits"])
    columns = min(2, max(1, len(selected)))
    rows = -(-len(selected) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.6 * rows + 3.5), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[1.0] * rows, 1.1])
    for i, layer in enumerate(selected):
        distribution(figure.add_subplot(grid[i // columns, i % columns]), data, layer, looks)
    last = figure.add_subplot(grid[rows, :])
    deviation(last, data, looks)
    figure.suptitle(clean(f"Correlation between the channels of {data['arch']}"), ha="left", x=0.01, size=11)
    handles, labels = last.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), title=PEAK, title_fontsize=8
    )
    return figure


PEAK = "A peak at 1 is pairs of equal channels: a GHN tiles its block of 64 channels in wider layers."


_SIGNALS = {  # field: title, unit, whether on a log scale
    "activation": ("Activation std", "standard deviation", True),
    "gradient": ("Gradient std", "standard deviation", True),
    "weight_gradient": ("Relative weight gradient", "gradient norm / weight norm", True),
    "dead": ("Dead units", "units (%)", False),
}


def signal_figure(data: Mapping[str, Any]) -> Figure:
    """Activations, gradients and dead units by layer, a line for each initialisation.

    Args:
        data: the result of `signals`, with the name of the images under "data".
    """
    from matplotlib.figure import Figure

    looks = lines(row["init"] for row in data["inits"])
    figure = Figure(figsize=(9.2, 6.4), layout="constrained", facecolor=PAPER)
    for axes, (field, (title, unit, log)) in zip(figure.subplots(2, 2).flat, _SIGNALS.items(), strict=True):
        for row in data["inits"]:
            values = [None if log and value == 0 else value for value in row[field]]  # branches that start at zero
            _by_layer(axes, values, looks[row["init"]], clean(row["init"]), 1 if log else 100)
        axes.set(title=title, xlabel="layer", ylabel=unit, xlim=(0.5, len(data["layers"]) + 0.5))
        axes.set_xticks(_from_one(len(data["layers"])))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            low, high = (math.log10(bound) for bound in axes.get_ylim())
            axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))  # at least two labels
        else:
            axes.set_ylim(0, 100)
    images = "\N{MULTIPLICATION SIGN}".join(map(str, data["images"]))
    title = f"{data['arch']} before training, on {data['data']} {images}"
    figure.suptitle(clean(title), ha="left", x=0.01, size=11)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))))
    return figure


def _by_layer(axes: Axes, values: Sequence[float | None], look: Line, label: str, scale: float) -> None:
    known = [(layer, scale * value) for layer, value in enumerate(values, 1) if value is not None]
    x, y = zip(*known, strict=True) if known else ((), ())
    axes.plot(x, y, color=look.colour, ls=look.style, lw=look.width, marker="o", ms=1.5 + look.width, label=label)


def embedding_figure(data: Mapping[str, Any], value_name: str | None = None) -> Figure:
    """Figure 5 of arXiv 2207.10049: architectures on the principal components of their graph embeddings.

    Args: as of `scatter`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained", facecolor=PAPER)
    scatter(figure.subplots(), data, value_name)
    return figure


def layer_figure(data: Mapping[str, Any]) -> Figure:
    """Accuracy by the first post-processed layer L, a line for each beta and round of `tune`.

    Args:
        data: "arch", "data", "source", "layers" (number) and "curve", see `Tuning.curve`.
    """
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
    axes.set(xlim=(0.5, data["layers"] + 0.5), xlabel=f"first post-processed layer (of {data['layers']})")
    axes.set_ylabel("validation accuracy (%)")
    _whole_numbers(axes)
    axes.set_title(_short(f"{data['arch']}, {data['data']}: {data['source']}", 80))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def panel(size: tuple[float, float] = (4.2, 2.9)) -> tuple[Figure, Axes]:
    """A figure with one panel; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    return figure, figure.subplots()


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for these figures; they are drawn and saved inside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib, which is not installed: pip install '.[plot]' in a checkout."
        ) from error
    with matplotlib.rc_context(STYLE):
        yield


def rendered(figure: Figure, suffix: str, salt: str = "timm-ghn-init") -> bytes:
    """A figure as a file; equal figures give equal bytes.

    Args:
        figure: what to save.
        suffix: ".svg" or ".png".
        salt: makes the ids of an SVG different from those of others on one page.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(buffer, format=suffix.lstrip("."), dpi=160, metadata=metadata)
    return buffer.getvalue()

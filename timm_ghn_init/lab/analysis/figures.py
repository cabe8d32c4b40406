"""Figures of measurements, by matplotlib. They are drawn inside `style`."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...sources import parse_source
from ...utils.text import clean
from ..pictures import FAINT, INK, PAPER, TIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .runs import Experiment

# Lengths of dashes and gaps in line widths; () is a solid line.
DASHES = ((), (5.0, 1.5), (6.0, 1.5, 1.2, 1.5), (1.5, 1.2), (7.0, 1.5, 1.5, 1.5, 1.5, 1.5), (9.0, 3.0))
# Colours and markers of the largest groups in a scatter plot; all others share a grey.
_GROUPS = ("#0072b2", "#d55e00", "#00805c", "#a8508a", "#8a6d00", "#5ab4f0", "#c7a400")
_MARKERS = "osD^vPX"
_OTHERS = "#b8bec6"
# Architectures that are pointed out: colours, and markers for more of them than there are colours.
_STARS = ("#000000", "#e8003a", "#6a00ff", "#00e0c0")
_STAR_MARKERS = "*ph"
PEAK = "A peak at 1 is pairs of equal channels: a GHN tiles its block of 64 channels in wider layers."
CURVES = {"train_accuracy": "Training", "validation_accuracy": "Validation"}
_SIGNALS = {  # field: title, unit, whether on a log scale
    "activation": ("Activation std", "standard deviation", True),
    "gradient": ("Gradient std", "standard deviation", True),
    "weight_gradient": ("Relative weight gradient", "gradient norm / weight norm", True),
    "dead": ("Dead units", "units (%)", False),
}


class Line(NamedTuple):
    """The look of a series: its colour, "#rrggbb", and one of `DASHES`."""

    colour: str
    dash: tuple[float, ...]

    @property
    def look(self) -> dict[str, Any]:
        """Colour, style and width. A prediction is wider, to show below its post-processed self where they coincide."""
        wide = self == PALETTE["ghn"]
        return {"color": self.colour, "ls": (0, self.dash) if self.dash else "-", "lw": 3.4 if wide else 1.6}


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


def lines(labels: Iterable[str]) -> dict[str, Line]:
    """The looks of labels, by label: those of the kind of initialisation, with other dashes if another label has them.

    Args:
        labels: initialisations, each optionally followed by ", " and what distinguishes it ("rand, lr 0.1").
    """
    looks: dict[str, Line] = {}
    used = Counter[str]()
    for i, label in enumerate(dict.fromkeys(labels)):
        colour, dash = PALETTE.get(_kind(label)) or list(PALETTE.values())[i % len(PALETTE)]
        looks[label] = Line(colour, DASHES[(DASHES.index(dash) + used[colour]) % len(DASHES)])
        used[colour] += 1
    return looks


def _kind(label: str) -> str:
    """The key of `PALETTE` for an initialisation, which may be followed by ", " and what else tells it from others."""
    name = label.partition(", ")[0]
    try:
        source = parse_source(name)
    except ValueError:
        return name
    return source.initialisation.name if source.initialisation else "ghn-orth" if source.orth else "ghn"


def correlation_figure(data: Mapping[str, Any]) -> Figure:
    """Figure 2 of arXiv 2207.10049: distributions in selected layers above, the deviation in all layers below.

    Args:
        data: the result of `compare`.

    Example:
        >>> with style():  # doctest: +SKIP
        ...     picture = rendered(correlation_figure(data), ".svg")
    """
    selected, looks = data["selected"], lines(row["init"] for row in data["inits"])
    columns = min(2, max(1, len(selected)))
    rows = -(-len(selected) // columns)
    figure = _figure(4.4 * columns, 2.6 * rows + 3.5, f"Correlation between the channels of {data['arch']}")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[1.0] * rows, 1.1])
    for i, layer in enumerate(selected):
        _distribution(figure.add_subplot(grid[i // columns, i % columns]), data, layer, looks)
    last = figure.add_subplot(grid[rows, :])
    for row in data["inits"]:
        _by_layer(last, row["std"], looks[row["init"]], row["init"])
    _layers(last, len(data["layers"]))
    last.set(title="All layers", ylabel="std of correlations", ylim=(0, 1.14 * last.get_ylim()[1]))  # with space for L
    for row in data["inits"]:
        if (row.get("layer") or 1) > 1:
            _mark_first_layer(last, row["layer"], looks[row["init"]].colour)
    _legend(figure, last, title=PEAK, title_fontsize=8)
    return figure


def _distribution(axes: Axes, data: Mapping[str, Any], layer: int, looks: Mapping[str, Line]) -> None:
    """The distribution of the correlations in one layer, a line for each initialisation."""
    bins, highest = data["bins"], 1.0
    for row in data["inits"]:
        counts = row["histogram"][layer - 1]
        if counts is not None:
            density = [c / max(1, sum(counts)) * bins / 2 for c in counts]
            highest = max(highest, *density)
            axes.plot([-1 + (i + 0.5) * 2 / bins for i in range(bins)], density, **looks[row["init"]].look)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), ylim=(0, 1.6 * highest))
    info = data["layers"][layer - 1]
    title = f"layer {layer}: {info['name']}, {TIMES.join(map(str, info['shape']))}"
    axes.set(xlabel="correlation", ylabel="density (log scale)", title=_short(title))


def _mark_first_layer(axes: Axes, layer: int, colour: str) -> None:
    """Mark L, the first post-processed layer."""
    axes.axvline(layer - 0.5, color=colour, lw=1, ls=(0, (2, 2)), zorder=0)
    near: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(f"L = {layer}", (layer - 0.5, 1), (-3, -2), ha="right", va="top", color=colour, **near)


def signal_figure(data: Mapping[str, Any]) -> Figure:
    """Activations, gradients and dead units by layer, a line for each initialisation.

    Args:
        data: the result of `signals`, with the name of the images under "data".
    """
    looks = lines(row["init"] for row in data["inits"])
    images = TIMES.join(map(str, data["images"]))
    figure = _figure(9.2, 6.4, f"{data['arch']} before training, on {data['data']} {images}")
    for axes, (field, (title, unit, log)) in zip(figure.subplots(2, 2).flat, _SIGNALS.items(), strict=True):
        for row in data["inits"]:
            values = [None if log and value == 0 else value for value in row[field]]  # branches that start at zero
            _by_layer(axes, values, looks[row["init"]], row["init"], 1 if log else 100)
        _layers(axes, len(data["layers"]))
        axes.set(title=title, ylabel=unit)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            low, high = (math.log10(bound) for bound in axes.get_ylim())
            axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))  # at least two labels
        else:
            axes.set_ylim(0, 100)
    _legend(figure, axes)
    return figure


def learning_figure(experiment: Experiment) -> Figure | None:
    """Accuracies by epoch: the mean over seeds as a line, their range as a band. None if no run has any."""
    series = {name: [row.curve(name) for row in experiment.rows] for name in CURVES}
    shown = [name for name in CURVES if any(series[name])]
    if not shown:
        return None
    looks = lines(row.label for row in experiment.rows)
    figure = _figure(8.8, 3.6)
    for axes, name in zip(
        figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False).flat, shown, strict=True
    ):
        for row, epochs in zip(experiment.rows, series[name], strict=True):
            known = [(i, 100 * sum(v) / len(v), 100 * min(v), 100 * max(v)) for i, v in enumerate(epochs, 1) if v]
            x, mean, low, high = zip(*known, strict=True) if known else ((),) * 4
            line = looks[row.label]
            axes.fill_between(x, low, high, color=line.colour, alpha=0.15, lw=0)
            axes.plot(x, mean, label=clean(row.label), marker="o" if len(x) == 1 else None, **line.look)
        if experiment.chance is not None:
            _mark_chance(axes, 100 * experiment.chance)
        axes.set(title=CURVES[name], xlabel="epoch", ylabel="accuracy (%)")
        _whole_numbers(axes)
    _legend(figure, axes)
    return figure


def _mark_chance(axes: Axes, accuracy: float) -> None:
    axes.axhline(accuracy, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    near: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate("chance", (1, accuracy), (0, 2), ha="right", color=FAINT, **near)


def layer_figure(data: Mapping[str, Any]) -> Figure:
    """Accuracy by the first post-processed layer L, a line for each beta and round of `tune`.

    Args:
        data: "arch", "data", "source", "layers" (number) and "curve", see `Tuning.curve`.
    """
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    groups = defaultdict(list)
    for point in data["curve"]:
        groups[f"{point['epochs']} epochs, beta {point['beta']:g}"].append((point["layer"], 100 * point["accuracy"]))
    for label, line in lines(groups).items():
        axes.plot(*zip(*groups[label], strict=True), marker="o", ms=3.5, label=label, **line.look)
    axes.set(xlim=(0.5, data["layers"] + 0.5), xlabel=f"first post-processed layer (of {data['layers']})")
    axes.set(ylabel="validation accuracy (%)", title=_short(f"{data['arch']}, {data['data']}: {data['source']}", 80))
    _whole_numbers(axes)
    _legend(figure, axes)
    return figure


def embedding_figure(data: Mapping[str, Any], value_name: str | None = None) -> Figure:
    """Figure 5 of arXiv 2207.10049: architectures on the first two principal components of their graph embeddings.

    Given architectures are stars, named in the legend.

    Args:
        data: the result of `place`.
        value_name: label of the colour scale if points are coloured by their "value"; None: by their "group".
    """
    figure = _figure(7.2, 4.8)
    axes = figure.subplots()
    others, share = [p for p in data["points"] if not p["given"]], data["variance"]
    if value_name is None:
        _by_group(axes, others)
    else:
        _dots(axes, [p for p in others if p["value"] is None], c="none", marker="o", label="unknown")
        known = [p for p in others if p["value"] is not None]
        if known:
            dots = _dots(axes, known, c=[p["value"] for p in known], cmap="cividis", marker="o")
            figure.colorbar(dots, ax=axes).set_label(clean(value_name))
    stars = itertools.cycle(itertools.product(_STAR_MARKERS, _STARS))
    for p, (marker, colour) in zip((p for p in data["points"] if p["given"]), stars, strict=False):
        look: dict[str, Any] = {"c": colour, "marker": marker, "s": 170, "edgecolors": PAPER, "linewidths": 0.8}
        axes.scatter(p["x"], p["y"], zorder=3, label=clean(p["name"]), **look)
    axes.set(xlabel=f"first principal component ({share[0]:.0%} of the variance)")
    axes.set(ylabel=f"second principal component ({share[1]:.0%})")
    axes.margins(0.12)
    title = f"Graph embeddings of {data.get('ghn') or 'a GHN'}, among {len(others)} architectures"
    axes.set_title(_short(title, 90))
    if value_name is None:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:  # the colour scale is on the right
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return figure


def _by_group(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    groups = defaultdict(list)
    for p in points:
        groups[p["group"]].append(p)
    largest = sorted(groups, key=lambda g: -len(groups[g]))
    for group, colour, marker in zip(largest, _GROUPS, _MARKERS, strict=False):
        _dots(axes, groups[group], c=colour, marker=marker, label=f"{clean(group)} ({len(groups[group])})")
    rest = largest[len(_GROUPS) :]
    others = [p for g in rest for p in groups[g]]
    label = clean(rest[0]) if len(rest) == 1 else f"{len(rest)} others"
    _dots(axes, others, c=_OTHERS, marker=".", zorder=1, label=f"{label} ({len(others)})")


def _dots(axes: Axes, points: Sequence[Mapping[str, Any]], label: str = "", **look: Any) -> Any:
    at = [p["x"] for p in points], [p["y"] for p in points]
    return axes.scatter(*at, s=26, edgecolors=INK, linewidths=0.3, alpha=0.9, label=label if points else "", **look)


# -- what figures share ------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(clean(title), ha="left", x=0.01, size=11)
    return figure


def _legend(figure: Figure, axes: Axes, **options: Any) -> None:
    """The labels of one of its axes, below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(5 if max(map(len, labels), default=0) < 30 else 2, max(1, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **options)


def _by_layer(axes: Axes, values: Sequence[float | None], line: Line, label: str, scale: float = 1) -> None:
    known = [(layer, scale * value) for layer, value in enumerate(values, 1) if value is not None]
    x, y = zip(*known, strict=True) if known else ((), ())
    axes.plot(x, y, marker="o", ms=1.5 + line.look["lw"], label=clean(label), **line.look)


def _layers(axes: Axes, n: int) -> None:
    """An axis of layers from 1 to n, with about ten ticks: 1 and round numbers."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, n) if n / s <= 12)
    axes.set(xlabel="layer", xlim=(0.5, n + 0.5), xticks=sorted({1, *range(step, n + 1, step)}))


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))


def _short(text: str, most: int = 48) -> str:
    text = clean(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"

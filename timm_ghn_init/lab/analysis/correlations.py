"""How strongly the channels of a layer correlate (arXiv 2207.10049, Figure 2).

The weight of a layer, (K, C, H, W), is taken as K rows of C * H * W values, one for each output channel, as in the
paper's Section 3: r(w) is the K x K matrix of Pearson's correlations between rows. Only its K (K - 1) / 2 pairs of
different channels count: a channel's correlation with itself says nothing about the initialisation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...recipe.postprocessing import list_layers
from ...utils.checks import InputError
from ...utils.progress import over
from .inits import Create, check_inits, initialised

BINS = 100  # of the histogram, from -1 to 1
_BLOCK = 512  # rows of the correlation matrix that are computed at once


class Correlations(NamedTuple):
    """Pearson's correlations between the channels of one weight.

    Attributes:
        mean, std: of all pairs of different channels.
        histogram: number of pairs in each of `BINS` equal intervals from -1 to 1.
    """

    mean: float
    std: float
    histogram: list[int]


def channel_correlations(weight: Tensor) -> Correlations | None:
    """Correlations between the output channels of a weight.

    Args:
        weight: (K, ...), floating point and finite.

    Returns:
        The correlations; None for fewer than two channels, or fewer than three values in each (two values always
        correlate by -1 or 1). A channel of equal values has correlation 0 with all others.

    Example:
        >>> found = channel_correlations(torch.tensor([[1.0, 2, 3], [2, 4, 6], [3, 2, 1]]))
        >>> round(found.mean, 3), found.histogram[0], found.histogram[-1]
        (-0.333, 2, 1)
    """
    rows = weight.detach().reshape(len(weight), -1).float()
    n, values = rows.shape
    if n < 2 or values < 3:
        return None
    low, high = torch.aminmax(rows, dim=1)
    z = rows - rows.mean(dim=1, keepdim=True)
    for order in (math.inf, 2):  # by the largest entry first, or the squares could overflow or underflow
        z /= torch.linalg.vector_norm(z, order, dim=1, keepdim=True)
    z.masked_fill_((low == high)[:, None], 0)
    total = squares = 0.0
    histogram = torch.zeros(BINS, dtype=torch.float64)
    for start in range(0, n, _BLOCK):
        block = z[start : start + _BLOCK] @ z[start:].T
        pairs = block[torch.ones_like(block, dtype=torch.bool).triu_(1)].clamp_(-1, 1).cpu()
        histogram += torch.histc(pairs, BINS, -1, 1).double()
        total += pairs.sum(dtype=torch.float64).item()
        squares += pairs.double().square().sum().item()
    count = n * (n - 1) / 2
    mean = total / count
    return Correlations(mean, math.sqrt(max(0.0, squares / count - mean**2)), [int(c) for c in histogram.tolist()])


def model_correlations(model: nn.Module) -> dict[str, Correlations | None]:
    """`channel_correlations` of every layer, by the name of its weight, in the order in which the paper's L counts."""
    return {name: channel_correlations(model.get_parameter(name)) for name, _ in list_layers(model)}


def compare(
    create: Create,
    inits: Sequence[str],
    *,
    name: str = "",
    seed: int = 0,
    layers: Sequence[int] = (),
    input_size: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Correlations between channels for one network and several initialisations, as in Figure 2 of arXiv 2207.10049.

    Args:
        create: builds the network; with timm's weights if its argument is true.
        inits: as in `initialised`.
        name: of the network.
        seed: as in `initialised`.
        layers: layers whose distribution is shown, counted from 1 as by `list_layers`. Default: four, evenly spaced,
            without the classifier.
        input_size: as in `trace`.
        progress: True: a bar; False: nothing. Default: after two seconds a bar in a terminal, elsewhere a line of the
            log each minute.

    Returns:
        For JSON: "kind", "arch", "seed", "bins", "selected" (layers), "layers" (number, name and shape of each) and
        "inits", a row for each with "init", "layer" (the first that was post-processed, or None), and lists by layer:
        "mean", "std" and "histogram" (None where `channel_correlations` gives none).

    Raises:
        ValueError: no such layer, or as `initialised`.
        CheckpointError: as `initialised`.

    Example:
        >>> data = compare(lambda pretrained: timm.create_model("resnet18"), ["rand", "orth"])  # doctest: +SKIP
        >>> data["inits"][0]["std"][:3]  # of the first three layers  # doctest: +SKIP
    """
    check_inits(list(inits))
    shown: list[dict[str, Any]] = []
    rows = []
    for init in over(dict.fromkeys(inits), "correlations", show=progress, unit="init"):
        made = initialised(create, init, seed=seed, input_size=input_size, progress=progress)
        measured = model_correlations(made.model)
        shown = shown or [
            {"layer": i, "name": n, "shape": list(made.model.get_parameter(n).shape)} for i, n in enumerate(measured, 1)
        ]
        _check_layers(layers, len(shown), name)
        row: dict[str, Any] = {"init": made.init, "layer": made.layer}
        for field in Correlations._fields:
            row[field] = [None if c is None else getattr(c, field) for c in measured.values()]
        rows.append(row)
    # The classifier is left to timm by most initialisations, and the paper's figure shows convolutions.
    possible = [i for i, std in enumerate(rows[0]["std"][:-1], 1) if std is not None]
    return {
        "kind": "correlations",
        "arch": name,
        "seed": int(seed),
        "bins": BINS,
        "selected": list(layers) or _spread(possible, 4),
        "layers": shown,
        "inits": rows,
    }


def _check_layers(layers: Sequence[int], n_layers: int, name: str) -> None:
    for layer in layers:
        if not 1 <= layer <= n_layers:
            raise InputError(f"{name} has no layer {layer}: give whole numbers from 1 to {n_layers}.")


def _spread(items: Sequence[int], n: int) -> list[int]:
    """The first, the last and others evenly between them, n at the most."""
    n = min(n, len(items))
    return [items[round(i * (len(items) - 1) / max(1, n - 1))] for i in range(n)]


def check_correlations(data: Any) -> None:
    """Raise unless data, for instance from a file, has the form that `compare` returns.

    Raises:
        ValueError: the message names the first entry that is wrong.
    """
    if not isinstance(data, dict) or data.get("kind") != "correlations":
        raise InputError("its kind is not correlations")
    layers: Any = data.get("layers")
    rules: dict[str, Callable[[Any], bool]] = {
        "arch": lambda v: isinstance(v, str),
        "bins": lambda v: type(v) is int and 0 < v <= 10_000,
        "layers": lambda v: isinstance(v, list) and all(_is_layer(info, i) for i, info in enumerate(v, 1)),
        "selected": lambda v: isinstance(v, list) and all(type(i) is int and 1 <= i <= len(layers) for i in v),
        "inits": lambda v: isinstance(v, list) and len(v) > 0 and all(_is_row(r, len(layers), data["bins"]) for r in v),
    }
    for name, is_right in rules.items():
        if not is_right(data.get(name)):
            raise InputError(f"its {name} cannot be read")


def _is_layer(value: Any, number: int) -> bool:
    return (
        isinstance(value, dict)
        and value.get("layer") == number
        and isinstance(value.get("name"), str)
        and isinstance(value.get("shape"), list)
        and all(type(size) is int for size in value["shape"])
    )


def _is_row(value: Any, n_layers: int, bins: int) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("init"), str)
        and (value.get("layer") is None or (type(value["layer"]) is int and 1 <= value["layer"] <= n_layers))
        and all(isinstance(value.get(f), list) and len(value[f]) == n_layers for f in ("std", "histogram"))
        and all(v is None or (type(v) in (int, float) and 0 <= v <= 1) for v in value["std"])
        and all(v is None or _is_histogram(v, bins) for v in value["histogram"])
    )


def _is_histogram(value: Any, bins: int) -> bool:
    return isinstance(value, list) and len(value) == bins and all(type(count) is int and count >= 0 for count in value)

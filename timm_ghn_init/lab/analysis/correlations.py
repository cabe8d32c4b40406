"""How strongly the channels of a layer correlate (arXiv 2207.10049, Figure 2).

The weight of a layer, (K, C, H, W), is taken as K rows of C * H * W values, one for each output channel, as in the
paper's Section 3: r(w) is the K x K matrix of Pearson's correlations between rows. Only its K (K - 1) / 2 pairs of
different channels count: a channel's correlation with itself says nothing about the initialisation.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...recipe.postprocessing import list_layers
from ...utils.checks import InputError, Kind, instance, number, or_none, whole
from ...utils.progress import over
from ..finetune.protocol import read_init
from .inits import Create, initialised

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
        progress: True: tqdm; False: nothing. Default: after two seconds tqdm in a terminal, elsewhere a log line each
            minute.

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
    for init in inits:
        read_init(init)
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
    for name, form in _FORM.items():
        if not _fits(data.get(name), form):
            raise InputError(f"its {name} cannot be read")
    n = len(data["layers"])
    if max(data["selected"], default=0) > n:
        raise InputError("its selected cannot be read")
    if not data["inits"]:
        raise InputError("its inits cannot be read")
    for row in data["inits"]:
        sizes = {len(counts) for counts in row["histogram"] if counts is not None}
        if (
            not len(row["std"]) == len(row["histogram"]) == n
            or not sizes <= {data["bins"]}
            or (row.get("layer") or 0) > n
        ):
            raise InputError("its inits cannot be read")


_TEXT = instance("text", str)
_FORM = {  # a list of one form stands for a list of any number of those
    "arch": _TEXT,
    "bins": whole(1, 10_000),
    "layers": [{"name": _TEXT, "shape": [whole()]}],
    "selected": [whole(1)],
    "inits": [
        {
            "init": _TEXT,
            "layer": or_none(whole(1)),
            "std": [or_none(number("0 to 1", lambda value: 0 <= value <= 1))],
            "histogram": [or_none(Kind("counts", lambda value: _fits(value, [whole()])))],
        }
    ],
}


def _fits(value: Any, form: Any) -> bool:
    """Whether a value has the form."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), part) for name, part in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    return bool(form.valid(value))

"""Signals in a network, before any training: one step forward and one step back, looked at by layer.

It shows why a network does not learn: activations or gradients that vanish or explode on their way, units that
answer to nothing, logits that do not depend on the image.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...recipe.postprocessing import list_layers
from ...utils.checks import InputError
from ...utils.progress import over
from ..finetune.protocol import read_init
from .inits import Create, initialised

FOLD = 1000.0  # a signal that becomes so many times smaller or larger vanishes or explodes
DEAD = 0.5  # share of dead units in a layer from which the verdict names it
UNMOVED = 0.05  # share of the logits' spread that is due to images below which the verdict names it
_STILL = 1e-5  # a unit is dead whose answers to all images spread by less, in units of the layer's spread
_ACTIVATION = re.compile("(leaky_)?relu6?|hardtanh|gelu|silu|hardswish|elu|mish|tanh|softplus")
_NEAR = 2  # layers on either side: of a block's branches one may be silent, as those that begin at zero


def signals(
    create: Create,
    inits: Sequence[str],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Follow one step forward and one back through an untrained network, under several initialisations.

    Args:
        create: builds the network; with timm's weights if its argument is true.
        inits: as in `initialised`.
        images: (N, C, H, W), normalised as the network expects them.
        labels: (N,) classes. Default: drawn at random.
        name: of the network.
        seed: as in `initialised`, and of the labels.
        progress: True: tqdm; False: nothing. Default: after two seconds tqdm in a terminal, elsewhere a log line each
            minute.

    Returns:
        For JSON: "kind", "arch", "seed", "images" (shape), "layers" (number and name of each weight, as `list_layers`
        counts them) and "inits", a row for each initialisation:

        * "init" and "verdict" (a sentence);
        * "logits" and "between": standard deviation of the logits of an image, and of a logit between images; None
          for a network without logits;
        * lists by layer: "activation" and "gradient" (standard deviations of the layer's output and of the loss's
          gradient by it), "gradient_norm" (of that gradient), "weight_gradient" (gradient norm / weight norm), "dead"
          (share of units, 0 to 1, whose activations are equal for all images); None if there is none or it is not
          finite;
        * "lost": the first layer, forwards and backwards, with values that are not finite; None if there is none.

    Raises:
        ValueError: as `initialised`, or no layer runs as a module.
        CheckpointError: as `initialised`.

    Example:
        >>> create = lambda pretrained: timm.create_model("resnet18")
        >>> data = signals(create, ["rand", "orth"], torch.randn(8, 3, 64, 64))  # doctest: +SKIP
        >>> data["inits"][0]["verdict"]  # doctest: +SKIP
    """
    for init in inits:
        read_init(init)
    rows, layers = [], []
    for init in over(dict.fromkeys(inits), "signals", show=progress, unit="init"):
        used = initialised(create, init, seed=seed, progress=progress)
        layers = [name for name, _ in list_layers(used.model)]
        row = follow(used.model, images, labels, seed)
        rows.append({"init": used.init, "verdict": verdict(row, layers), **row})
    return {
        "kind": "signals",
        "arch": name,
        "seed": int(seed),
        "images": list(images.shape),
        "layers": [{"layer": i, "name": n} for i, n in enumerate(layers, 1)],
        "inits": rows,
    }


def follow(model: nn.Module, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> dict[str, Any]:
    """One step forward and one back in training mode, but without dropout; the numbers of `signals`.

    The model's buffers and gradients are changed.

    Raises:
        ValueError: no layer was called as a module.
    """
    model.train()
    for module in model.modules():
        if "drop" in type(module).__name__.lower():  # also timm's DropPath and PatchDropout
            module.eval()
    record = _Record(model)
    with torch.enable_grad(), record.listening():
        output = model(images)
    if not any(record.seen["activation"]):
        raise InputError(
            f"{type(model).__name__}: none of its {len(record.modules)} layers was called as a module, so there are no "
            "signals to record. Call the layers themselves in forward, not functions with their weights."
        )
    logits = output if isinstance(output, Tensor) and output.dim() == 2 else None
    _loss(output, logits, labels, seed).backward()
    norms = [(w.grad.norm() / w.norm().clamp_min(1e-30)).item() if w.grad is not None else None for w in record.weights]
    spreads = (None, None) if logits is None else (logits.detach().float().std(dim=d).mean().item() for d in (1, 0))
    return {
        **dict(zip(("logits", "between"), map(_finite, spreads), strict=True)),
        **{name: [_finite(sum(v) / len(v)) if v else None for v in seen] for name, seen in record.seen.items()},
        "weight_gradient": [_finite(n) for n in norms],
        "lost": {way: first(record.lost(way), default=None) for way, first in (("activation", min), ("gradient", max))},
    }


def _loss(output: Any, logits: Tensor | None, labels: Tensor | None, seed: int) -> Tensor:
    """Cross-entropy; for a network without logits, the mean square of what it gives."""
    if logits is None:
        parts = output if isinstance(output, (list, tuple)) else [output]
        return sum((p.float().square().mean() for p in parts if isinstance(p, Tensor)), start=torch.zeros(()))
    if labels is None or int(labels.max()) >= logits.shape[1]:
        generator = torch.Generator().manual_seed(int(seed))
        labels = torch.randint(logits.shape[1], (len(logits),), generator=generator)
    return F.cross_entropy(logits.float(), labels.to(logits.device))


class _Record(TorchDispatchMode):
    """The signals through each layer. As a dispatch mode it sees activation functions, however a model calls them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = list_layers(model)
        self.modules = [module for _, module in layers]
        self.weights = [model.get_parameter(name) for name, _ in layers]
        names = ("activation", "gradient", "gradient_norm", "dead")
        self.seen: dict[str, list[list[float]]] = {name: [[] for _ in layers] for name in names}
        self.last: int | None = None  # the layer that has run last

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(i)) for i, module in enumerate(self.modules)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            self.last = layer
            self.seen["activation"][layer].append(output.detach().float().std().item())
            if output.requires_grad:
                output.register_hook(lambda gradient: self._back(layer, gradient.detach().float()))

        return hook

    def _back(self, layer: int, gradient: Tensor) -> None:
        self.seen["gradient"][layer].append(gradient.std().item())
        self.seen["gradient_norm"][layer].append(gradient.norm().item())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if _ACTIVATION.fullmatch(name) and self.last is not None and isinstance(result, Tensor):
            channels_first = self.weights[self.last].dim() > 2
            self.seen["dead"][self.last].append(
                _dead(result.detach(), 1 if channels_first and result.dim() > 1 else -1)
            )
        return result

    def lost(self, what: str) -> list[int]:
        """The layers in which a signal is not finite, from 1."""
        return [i for i, values in enumerate(self.seen[what], 1) if not all(map(math.isfinite, values))]


def _dead(x: Tensor, channel: int) -> float:
    """Share of the channels that are the same everywhere."""
    rows = x.float().movedim(channel, 0).flatten(1)
    spread = rows.std(dim=1)
    return (spread <= _STILL * rows.std()).float().mean().item()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# -- in words ----------------------------------------------------------------------------------------------------------


def verdict(row: dict[str, Any], layers: Sequence[str]) -> str:
    """The faults of the signals of one initialisation, or that nothing is, in a line."""
    found = [
        f"{what}s are not finite from {_place(layers[layer - 1])} {_ON[what]}"
        for what, layer in row["lost"].items()
        if layer is not None
    ]
    found += _way("activation", row["activation"], layers)
    found += _way("gradient", row["gradient_norm"][::-1], layers[::-1])
    dead, layer = max(
        ((s, name) for s, name in zip(row["dead"], layers, strict=True) if s is not None), default=(0, "")
    )
    if dead >= DEAD:
        found.append(f"{dead:.0%} of the units behind {layer.removesuffix('.weight')} are dead")
    spread, between = row["logits"], row["between"]
    if spread is not None and between is not None and between < UNMOVED * spread:
        found.append(f"logits hardly depend on the image ({between:.2g} of a spread of {spread:.2g})")
    return "; ".join(found) or _sound(row)


_ON = {"activation": "on", "gradient": "back to the input"}


def _way(what: str, values: Sequence[float | None], layers: Sequence[str]) -> Iterator[str]:
    """The layers from which a signal vanishes or explodes for good, in the order in which it passes the layers."""
    known = [(v, layer) for v, layer in zip(values, layers, strict=True) if v is not None]
    if not known:
        return
    sizes = _largest_near([v for v, _ in known])
    for how, beyond in (("vanish", lambda v: v < sizes[0] / FOLD), ("explode", lambda v: v > sizes[0] * FOLD)):
        start = len(sizes)
        while start and beyond(sizes[start - 1]):
            start -= 1
        if start < len(sizes):
            yield f"{what}s {how} from {_place(known[start][1])} {_ON[what]}"


def _largest_near(values: Sequence[float]) -> list[float]:
    return [max(values[max(0, i - _NEAR) : i + _NEAR + 1]) for i in range(len(values))]


def _sound(row: dict[str, Any]) -> str:
    parts = []
    for what, field, way in (("activations", "activation", 1), ("gradients", "gradient_norm", -1)):
        sizes = _largest_near([v for v in row[field] if v is not None][::way])
        parts.append(f"{what} end {sizes[-1] / max(sizes[0], 1e-30):.2g} times as large as they began")
    dead = [v for v in row["dead"] if v is not None]
    return ", ".join(parts) + (f", at most {max(dead):.0%} of a layer's units are dead" if dead else "")


def _place(layer: str) -> str:
    """The stage and block of a layer: "stages.2.blocks.1", "layer3.0"."""
    parts = layer.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[min(1, len(numbers) - 1)] + 1] if numbers else parts)

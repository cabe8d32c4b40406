"""GHN-orth: conditional noise and orthogonal re-initialisation of predicted parameters (paper, Section 3).

Predicted weights are tiles of one small block, so their channels are copies of each other. From layer L on, each
weight gets a little noise that breaks the symmetry, Eq. (1), and is replaced by its orthonormal factor, Eq. (2).
Everything is computed in float32, layer by layer, and cast to the parameter's dtype when it is written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import FLAG, number, whole
from ..threads import one_thread_each
from .orthogonal import orthogonalize_

# architecture -> (its number of layers, the layer L tuned by the paper's authors, in the numbering of `list_layers`)
_TUNED_LAYERS = {"resnet50": (54, 37), "convnext_base": (113, 94)}
_GUESS = 0.75  # of the layers
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_BETA = 1000.0  # noise of this scale is finite in every dtype
_BETA = number(f"from 0 to {_MAX_BETA:g}", lambda beta: 0 <= beta <= _MAX_BETA)
_MAX_WORKERS = 3  # each holds one float32 copy of its layer: memory stays within three times the largest layer
_NOISE_BLOCK = 1 << 18  # values drawn at once
_ALIGNMENT = 64  # bytes; at another one LAPACK may round differently
_CORRELATION_BLOCK = 256  # columns of the Gram matrix computed at once


class Processed(NamedTuple):
    """One post-processed weight."""

    layer: int  #: number of the layer, as in `list_layers`
    name: str  #: name of the parameter
    shape: tuple[int, ...]  #: shape of the parameter
    correlation_std: float  #: sigma(r(w)) of Eq. (1); the noise added had beta times this standard deviation


def list_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that the paper's L counts, the first of them being number 1.

    Args:
        model: Any module.

    Returns:
        (name of the weight, module) of every module that owns a parameter `weight` with at least two dimensions, in
        the order of `model.modules()`. The last one, the classifier, counts but is never post-processed. A weight
        that is computed from other parameters (`torch.nn.utils.parametrizations`) is not a parameter and not listed.
    """
    return [(name, module) for name, module, _ in _layers(model)]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # `named_parameters` takes ten times as long
        if weight is not None and (is_lazy(weight) or weight.dim() >= 2):
            yield f"{name}.weight".lstrip("."), module, weight


def auto_layer(architecture: str | None, n_layers: int, depth: float | None = None) -> int:
    """The layer L to start from when the user names none.

    Args:
        architecture: timm or torchvision name; a timm tag (`.fb_in1k`) is ignored. None where there is no name.
        n_layers: `len(list_layers(model))`.
        depth: the part of the layers to leave as they are, from 0 up to 1, as it was chosen for a GHN (`GHN.depth`).

    Returns:
        The first layer beyond `depth`. For a GHN without one, the paper's tuned value where there is one (resnet50: 37
        of 54 layers, convnext_base: 94 of 113), provided the model has the same number of layers. Otherwise the first
        of the last quarter of the layers, which is a guess: it lies near the tuned values (69% and 83% of the depth)
        and nobody has tuned it.
    """
    if depth is not None:
        return math.floor(depth * n_layers) + 1
    tuned_for, layer = _TUNED_LAYERS.get((architecture or "").partition(".")[0], (None, 0))
    return layer if tuned_for == n_layers else auto_layer(None, n_layers, _GUESS)


def check(
    model: nn.Module,
    layer: int,
    beta: float = 3e-5,
    *,
    overwritten: Collection[str] = (),
    look_at: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> None:
    """Raises whatever `postprocess` would raise, and writes nothing.

    Args:
        model: The model to post-process.
        layer: First layer to process.
        beta: Scale of the noise.
        overwritten: Names of the weights whose present values do not matter, because they are going to be written
            before the post-processing. They may be NaN.
        look_at: Gives what is there of a weight's values, in its dtype, e.g. its local shard.

    Raises:
        ValueError: As `postprocess`.
    """
    kind, n_layers = type(model).__name__, len(list_layers(model))
    if n_layers == 0:
        raise ValueError(f"{kind} has no layer to post-process: no module has a `weight` with at least 2 dimensions")
    if not whole(1, n_layers).valid(layer):
        raise ValueError(f"layer={layer!r} is not a layer of {kind}: give a whole number from 1 to {n_layers}")
    if not _BETA.valid(beta):
        raise ValueError(
            f"beta={beta!r}: the noise scale must be finite and not negative, and at most {_MAX_BETA:g}, where nothing "
            "but noise is left (the paper uses 3e-5)"
        )
    for _, name, weight in to_process(model, layer):
        problem = _problem(weight if is_lazy(weight) else look_at(weight), values_matter=name not in overwritten)
        if problem:
            raise ValueError(f"{kind}: {name} {problem}")


def postprocess(
    model: nn.Module,
    *,
    layer: int,
    beta: float = 3e-5,
    orthogonal: bool = True,
    seed: int = 0,
    names: Collection[str] | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> list[Processed]:
    """Post-processes the weights of layers `layer` and up, in place (paper, Section 3: GHN-orth).

    A weight (K, C, kh, kw) is taken as a (K, C*kh*kw) matrix, transposed if it has fewer rows than columns. To it is
    added noise, Eq. (1), of standard deviation beta * sigma, sigma being the standard deviation of all entries of the
    correlation matrix of its rows; then it is replaced by Q * sign(diag R) of its QR decomposition, Eq. (2). A
    constant row correlates with nothing, not even itself: its entries in the correlation matrix count as 0.

    The noise of a layer depends on `seed` and the parameter's name only, and the global random number generators are
    not touched. On the CPU every layer is computed by one thread, several layers at once, so that the result does not
    depend on the number of threads. On CUDA the noise is another draw, from the GPU's own generator.

    Args:
        model: Any module. Parameters keep their identity, dtype, device and `requires_grad`.
        layer: First layer to process, counted from 1 as in `list_layers`. `auto_layer` gives a default. The last
            layer (the classifier) is left as it is, and so is a weight shared with it or with a layer before `layer`.
        beta: Scale of the noise, up to 1000; 0 adds none.
        orthogonal: Whether to apply Eq. (2) after the noise.
        seed: Any integer. Same seed, same device: same bits.
        names: Only these of the weights. None: all.
        device: Where to compute. None: where the model is if that is a GPU, else on a GPU if there is one, else on the
            CPU.
        progress: Whether to show a progress bar. None: on a terminal, once two seconds have passed.

    Returns:
        What was changed, in the order of the layers.

    Raises:
        ValueError: `layer` is not one of the model's layers, `beta` is negative or above 1000, or a weight cannot be
            processed: on the meta device, not initialised yet, not floating point, or with NaN or infinite values.
            The model is then as it was.
    """
    check(model, layer, beta)
    FLAG.check("orthogonal", orthogonal)
    whole(-(2**63)).check("seed", seed)
    targets = [t for t in to_process(model, layer) if names is None or t.name in names]

    def process(target: _Target) -> Processed:
        number, name, weight = target
        where = _compute_device(weight, device)
        sigma = process_weight(weight, name, beta, orthogonal, seed, where)
        return Processed(number, name, tuple(weight.shape), sigma)

    targets.sort(key=lambda t: cost(t.weight), reverse=True)  # else the longest might end up alone
    on_cpu = all(_compute_device(weight, device).type == "cpu" for _, _, weight in targets)
    with _parallel_map(on_cpu) as map_, progress_bar(progress, len(targets)) as advance:
        done = []
        for result in map_(process, targets):
            done.append(result)
            advance()
    return sorted(done)


def correlation_std(matrix: Tensor) -> float:
    """sigma(r(w)) of Eq. (1): standard deviation of all entries of the correlation matrix of a matrix's rows.

    Equals `torch.corrcoef(matrix).std()`, diagonal included, without the (n, n) matrix C. Let the rows of Z be the
    matrix's rows, centred and of unit length, m their mean and W = Z - 1 m^T. Then C = Z Z^T less its mean |m|^2 is
    1 (W m)^T + (W m) 1^T + W W^T, three terms that are orthogonal because W's columns sum to 0, so that the squared
    deviations sum to 2 n |W m|^2 + |W^T W|_F^2, with nothing to cancel. Rows that repeat, as those of a tiled weight
    do, are taken once and weighted by how often they occur.

    Args:
        matrix: (n, c), of any floating-point dtype and finite.

    Returns:
        The unbiased standard deviation. Constant rows have correlation 0; a single row has 0.
    """
    n = len(matrix)
    if n < 2:
        return 0.0
    period = _row_period(matrix)
    z = matrix[:period].T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # (c, period)
    low, high = torch.aminmax(z, dim=0)
    z -= z.mean(dim=0)
    for order in (math.inf, 2):  # by the largest entry first, or the squares could overflow or underflow
        z /= torch.linalg.vector_norm(z, order, dim=0)
    z.masked_fill_(low == high, 0)  # asked of the raw values: rounding leaves a constant row a residue or NaN
    count = torch.arange(n - 1, n - 1 - period, -1, device=z.device).div(period, rounding_mode="floor").add(1).float()
    mean = (z @ count) / n
    z -= mean[:, None]
    z *= count.sqrt()
    squares = 2 * n * _sum_of_squares(mean @ z) + _gram_sum_of_squares(z if len(z) < period else z.T)
    return math.sqrt(squares / (n**2 - 1))


def _row_period(matrix: Tensor) -> int:
    """Smallest p for which row i + p equals row i everywhere; the number of rows where they do not repeat."""
    head = matrix[:, :32]
    repeats_of_first = (head == head[0]).all(dim=1).nonzero()[:2].flatten().tolist()
    period = repeats_of_first[-1]
    return period if period > 0 and torch.equal(matrix[period:], matrix[:-period]) else len(matrix)


def _sum_of_squares(x: Tensor) -> float:
    """Sum of squares, accumulated in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _gram_sum_of_squares(rows: Tensor) -> float:
    """|rows @ rows^T|_F^2 by blocks of its upper triangle: half the products, and never the whole Gram matrix."""
    total = 0.0
    for start in range(0, len(rows), _CORRELATION_BLOCK):
        block = rows[start : start + _CORRELATION_BLOCK]
        gram = block @ rows[start:].T
        total += 2 * _sum_of_squares(gram) - _sum_of_squares(gram[:, : len(block)])
    return total


def process_weight(weight: Tensor, name: str, beta: float, orthogonal: bool, seed: int, device: torch.device) -> float:
    """Eq. (1) and (2) on one weight, in place; returns sigma of Eq. (1)."""
    flat = weight.detach().reshape(len(weight), -1)
    wide = flat.shape[0] < flat.shape[1]
    matrix = (flat.T if wide else flat).to(device)
    sigma = correlation_std(matrix)
    columns = _float32_buffer(matrix.T)
    _add_noise_(columns, beta * sigma, seed, name)
    if orthogonal:
        orthogonalize_(columns)
    flat.copy_(columns if wide else columns.T)
    if flat.data_ptr() != weight.data_ptr():  # channels last, for one: the reshape above had to copy
        weight.detach().copy_(flat.view(weight.shape))
    return sigma


def _float32_buffer(x: Tensor) -> Tensor:
    """Contiguous float32 to work in: x itself where it already is that (and aligned)."""
    usable = x.dtype == torch.float32 and x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0
    return x.to(torch.float32, memory_format=torch.contiguous_format, copy=not usable)


def _add_noise_(x: Tensor, std: float, seed: int, name: str) -> None:
    """Adds N(0, std^2), drawn from a generator of its own. In blocks, which needs less memory and keeps to caches."""
    if std == 0:
        return
    generator = seeded_generator(seed, name, x.device)
    for block in x.view(-1).split(_NOISE_BLOCK):
        noise = torch.randn(block.shape, generator=generator, device=x.device, dtype=x.dtype)
        block.add_(noise, alpha=std)


def seeded_generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream of one parameter: it depends on the seed and the parameter's name only."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big"))


class _Target(NamedTuple):
    layer: int
    name: str
    weight: nn.Parameter


def to_process(model: nn.Module, layer: int) -> list[_Target]:
    """Weights of the layers from `layer` to the last but one, without those shared with a layer that must stay."""
    layers = [_Target(i, name, weight) for i, (name, _, weight) in enumerate(_layers(model), start=1)]
    seen = {id(target.weight) for target in layers[: layer - 1] + layers[-1:]}
    targets = []
    for target in layers[layer - 1 :]:
        if id(target.weight) not in seen and (is_lazy(target.weight) or target.weight.numel() > 0):
            seen.add(id(target.weight))
            targets.append(target)
    return targets


def cost(weight: Tensor) -> int:
    """Operations of a weight's QR decomposition, up to a factor."""
    k, rest = weight.shape[0], math.prod(weight.shape[1:])
    return k * rest * min(k, rest)


def _problem(weight: Tensor, values_matter: bool) -> str | None:
    """Why a weight cannot be processed, and the way out; None if it can."""
    if is_lazy(weight):
        return "has no shape yet: run one forward pass first"
    if weight.is_meta:
        return "is on the meta device: materialise the model first (`model.to_empty(device=...)`, then load or predict)"
    if weight.dtype not in _DTYPES:
        return f"is {weight.dtype}, not floating point: post-process first, quantise afterwards"
    if values_matter and weight.numel() and not all(math.isfinite(x) for x in torch.aminmax(weight.detach())):
        return "holds NaN or infinite values: load or predict sound parameters first"
    return None


def _compute_device(weight: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if weight.is_cuda:
        return weight.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _parallel_map(on_cpu: bool) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` without gradients; on the CPU, over several layers at once with one thread for each.

    That is faster than all threads on one layer after the other, and far less disturbed by other processes on the
    machine. LAPACK's results also change with its number of threads: one for each gives the same bits always.
    """
    if on_cpu:
        with one_thread_each(_MAX_WORKERS) as map_:
            yield map_
    else:
        with torch.no_grad():
            yield map


@contextmanager
def progress_bar(show: bool | None, total: int) -> Iterator[Callable[[], object]]:
    """Yields what to call after each layer."""
    if show is False:
        yield lambda: None
        return
    from tqdm import tqdm

    when = {"disable": None, "delay": 2.0} if show is None else {}
    with tqdm(total=total, desc="post-processing", unit="layer", leave=False, **when) as bar:
        yield bar.update

"""GHN-orth: conditional noise and orthogonal re-initialisation of predicted parameters (paper, Section 3).

Predicted weights are tiles of one small block, so their channels are copies of each other. From layer L on, each
weight gets a little noise that breaks the symmetry, Eq. (1), and is replaced by its orthonormal factor, Eq. (2).
Everything is computed in float32, layer by layer, and cast to the parameter's dtype when it is written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from ..utils.checks import FLAG, InputError, instance, is_finite, number, shown, whole
from ..utils.progress import Progress
from ..utils.threads import one_thread_each
from .assign import PredictionError, uninterrupted, unwritable, write_results
from .exact import exact
from .noise import add_noise_, correlation_std, correlation_stds, draw_noise
from .orthogonal import NO_PERIOD, cholesky_qr, orthogonalize_
from .parametrised import Computed, Parametrised, parametrised
from .wrappers import bare, name_inside

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MODULE = instance("a torch.nn.Module", nn.Module)
_MAX_BETA = 1000.0  # noise of this scale is finite in every dtype
_BETA = number(f"from 0 to {_MAX_BETA:g}", lambda beta: 0 <= beta <= _MAX_BETA)
_MAX_WORKERS = 3  # each holds one float32 copy of its layer: memory stays within three times the largest layer
_CHUNK = 1 << 24  # values in one batch on a GPU, if not of a single layer: 128 MB in float64, and as much for each step


class Processed(NamedTuple):
    """One post-processed weight."""

    layer: int  #: number of the layer, as in `list_layers`
    name: str  #: name of the parameter
    shape: tuple[int, ...]  #: shape of the parameter
    correlation_std: float  #: sigma(r(w)) of Eq. (1); the noise added had beta times this standard deviation


class Layer(NamedTuple):
    """One of the layers that the paper's L counts."""

    number: int  #: from 1 on
    name: str  #: name of the parameter that its weight is, or is computed from
    weight: nn.Parameter  #: that parameter
    module: nn.Module  #: whose weight it is
    stream: str  #: name of the weight itself inside the network, by which its noise is drawn
    by: Computed | None  #: what computes the weight, if something does
    scale: float = 1.0  #: by which the result is multiplied


class Equations(NamedTuple):
    """How weights are post-processed: Eq. (1) with beta and the seed of its noise, and whether Eq. (2) follows."""

    beta: float = 3e-5
    orthogonal: bool = True
    seed: int = 0


Read = Callable[[Layer, Tensor], object]  # writes what a layer's weight is to begin with into a tensor


def list_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that the paper's L counts, the first of them being number 1.

    Args:
        model: Any module.

    Returns:
        (name of the weight, module) of every module that has a `weight` with at least two dimensions, in the order of
        `model.modules()`. The last one, the classifier, counts but is never post-processed. If the weight is
        computed from other parameters (`torch.nn.utils.parametrizations`), the name is that of the last of them.

    Example:
        >>> [name for name, _ in list_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)))]
        ['0.weight', '2.weight']
    """
    return [(layer.name, layer.module) for layer in layers_of(model)]


def layers_of(model: nn.Module) -> list[Layer]:
    """As `list_layers`, with all that is known of them."""
    layers: list[Layer] = []
    computed = {id(p.module): p for p in parametrised(model) if p.attribute == "weight" and p.parameters}
    inside = name_inside(model)
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")  # `named_parameters` takes ten times as long
        name, by = f"{path}.weight".lstrip("."), computed.get(id(module))
        stream = inside(name)
        if by is not None:
            name, weight = list(by.parameters.items())[-1]
        if weight is not None and (is_lazy(weight) or weight.dim() >= 2):
            layers.append(Layer(len(layers) + 1, name, weight, module, stream, by))
    return layers


def check_options(model: nn.Module, layer: int, beta: float) -> None:
    """Raise a ValueError if `layer` is none of the model's, or `beta` no scale."""
    kind, n_layers = type(model).__name__, len(layers_of(model))
    if n_layers == 0:
        raise InputError(f"{kind} has no layer to post-process: no module has a `weight` with at least 2 dimensions")
    if not whole(1, n_layers).valid(layer):
        raise InputError(f"layer={layer!r} is not a layer of {kind}: give a whole number from 1 to {n_layers}")
    if not _BETA.valid(beta):
        raise InputError(
            f"beta={beta!r}: the noise scale must be finite and not negative, and at most {_MAX_BETA:g}, where nothing "
            "but noise is left (the paper uses 3e-5)"
        )


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

    Nothing is written before all layers have been computed: until then the results wait in memory, as large as the
    weights concerned. So whatever fails, the model is as it was.

    Args:
        model: Any module. Parameters keep their identity, dtype, device and `requires_grad`.
        layer: First layer to process, counted from 1 as in `list_layers`. `auto_layer` gives a default. The last
            layer (the classifier) is left as it is, and so is a weight shared with it or with a layer before `layer`.
        beta: Scale of the noise, up to 1000; 0 adds none.
        orthogonal: Whether to apply Eq. (2) after the noise.
        seed: Any integer. Same seed, same device: same bits.
        names: Only these of the weights. None: all. Names of other parameters have no effect.
        device: Device of the computation. None: the model's if that is a GPU, else a GPU if there is one, else CPU.
        progress: whether to show progress. None: in a terminal, after two seconds.

    Returns:
        The names of the changed parameters, in the order of the layers.

    Raises:
        ValueError: `layer` is not one of the model's layers, `beta` is negative or above 1000, or a weight cannot be
            processed: on the meta device, not initialised yet, not floating point, or with NaN or infinite values. A
            name that no parameter of the model has.
        RuntimeError: a result is not finite. After any of these errors the model is unchanged.

    Example:
        >>> model = timm.create_model("test_resnet")
        >>> done = postprocess(model, layer=5)
        >>> weight = model.get_parameter(done[0].name).flatten(1)
        >>> gram = weight @ weight.T if len(weight) < weight.shape[1] else weight.T @ weight
        >>> bool(torch.allclose(gram, torch.eye(len(gram)), atol=1e-5))
        True
    """
    _MODULE.check("model", model)
    FLAG.check("orthogonal", orthogonal)
    whole(-(2**63)).check("seed", seed)
    with bare(model) as (inner, given):
        results: dict[str, Tensor] = {}
        check_options(inner, layer, beta)
        for target in to_process(inner, layer):
            problem = unprocessable(target.weight) or _no_values(target.weight) or unwritable(target.weight)
            if problem:
                raise InputError(f"{type(inner).__name__}: {target.name} {problem}")
        unknown = set(names or ()) - {n for n, _ in model.named_parameters(remove_duplicate=False)}
        if unknown:
            raise InputError(f"{type(model).__name__} has no parameter {shown(min(unknown))}, which names= names.")
        targets = [t for t in to_process(inner, layer) if names is None or given.get(t.name, t.name) in names]
        on = compute_device(inner, device)

        def read(target: Layer, whole: Tensor) -> None:
            whole.copy_(
                getattr(target.module, target.by.attribute) if isinstance(target.by, Parametrised) else target.weight
            )

        with exact(on):
            sigmas = process(targets, Equations(beta, orthogonal, seed), on, read, results, progress)
        with uninterrupted():
            write_results(inner, results)
    return [Processed(t.number, given.get(t.name, t.name), tuple(t.weight.shape), sigmas[t.name]) for t in targets]


def process(
    layers: Collection[Layer],
    equations: Equations,
    device: torch.device,
    read: Read,
    results: dict[str, Tensor],
    progress: bool | None,
) -> dict[str, float]:
    """Eq. (1) and (2) on several weights, none of which is written to: `results` gets what is to be.

    Returns sigma of Eq. (1), by name. Raises a RuntimeError if a result is not finite.
    """

    def one(layer: Layer) -> tuple[str, float]:
        columns = _columns([layer], device, read)[0]
        sigma = process_weight(columns, layer.stream, *equations)
        values = columns.to(layer.weight.dtype)
        _keep(layer, values, is_finite(values), equations, results)
        return layer.name, sigma

    ordered = sorted(layers, key=lambda layer: cost(layer.weight), reverse=True)  # else the longest might end up alone
    with Progress("post-processing", len(ordered), show=progress, unit="layer") as bar:
        if device.type == "cpu":
            return dict(one_thread_each(one, ordered, _MAX_WORKERS, bar.step))
        with torch.no_grad():
            return _process_at_once(ordered, equations, device, read, results, bar)


def process_weight(columns: Tensor, stream: str, beta: float, orthogonal: bool, seed: int) -> float:
    """Eq. (1) and (2) on one weight on the CPU, in place; returns sigma of Eq. (1).

    It is a contiguous matrix (c, n), c <= n, transposed if the weight is tall. Its noise is drawn by the stream's name.
    """
    sigma = correlation_std(columns.T)
    add_noise_(columns, beta * sigma, seed, stream)
    if orthogonal:
        orthogonalize_(columns)
    return sigma


def _columns(layers: Sequence[Layer], device: torch.device, read: Read) -> Tensor:
    """Weights of one shape, (B, c, n), c <= n, in the layout in which Eq. (2) needs no copy."""
    shape = layers[0].weight.shape
    size = (len(layers), *sorted((shape[0], math.prod(shape[1:]))))
    columns = torch.empty(size, dtype=torch.float32, device=device)
    for layer, own in zip(layers, columns, strict=True):
        read(layer, _as_weight(own, shape))
    return columns


def _as_weight(columns: Tensor, shape: torch.Size) -> Tensor:
    return (columns.T if shape[0] >= math.prod(shape[1:]) else columns).unflatten(1, shape[1:])


def _keep(layer: Layer, columns: Tensor, finite: bool, equations: Equations, results: dict[str, Tensor]) -> None:
    """Put a result, in the dtype of its parameter, among those that are to be written."""
    if not finite:
        why = f"its values are too large for the arithmetic of {torch.float32}. Scale them down first"
        if equations.beta > 0:
            why = f"beta is too large for {layer.weight.dtype}. Take a smaller one (the paper uses 3e-5)"
        raise PredictionError(
            f"{layer.name} is not finite any more after post-processing: {why}. The model is as it was."
        )
    whole = _as_weight(columns if layer.scale == 1 else columns * layer.scale, layer.weight.shape)
    results |= {layer.name: whole} if layer.by is None else layer.by.inverse(whole.to(layer.weight.device))


# -- on a GPU ----------------------------------------------------------------------------------------------------------
#
# A small layer is over before the next kernel can be launched, and a look at a value, `float(x)`, waits for all that
# was launched before it. So layers of one shape are computed at once, and nothing depends on values before all results
# are there: only then is it known what Cholesky factors could not do, which is rare.


class Batch(NamedTuple):
    """Results for B weights, still on the device."""

    columns: Tensor  #: float32 (B, c, n)
    sigma: Tensor  #: of Eq. (1), (B,), float64
    good: Tensor  #: (B,), whether Eq. (2) could be done, if it had to be


def process_batch(
    columns: Tensor, streams: Sequence[str], beta: float, orthogonal: bool, seed: int, period: int = NO_PERIOD
) -> Batch:
    """As `process_weight`, on weights of one shape, without looking at any value and without writing to them.

    The period is that of `cholesky_qr`.
    """
    sigma = correlation_stds(columns)
    if beta > 0:
        drawn = [draw_noise(columns[0].numel(), seed, s, columns.device).view_as(columns[0]) for s in streams]
        columns = torch.addcmul(columns, torch.stack(drawn), (beta * sigma).to(columns.dtype)[:, None, None])
    if not orthogonal:
        return Batch(columns, sigma, torch.ones_like(sigma, dtype=torch.bool))
    q, good = cholesky_qr(columns, period)
    return Batch(q.to(torch.float32), sigma, good)


def orthogonal_alone(columns: Tensor) -> Tensor:
    """Eq. (2) on one (c, n) matrix that `process_batch` could not do, in place. It looks at values."""
    q, good = cholesky_qr(columns[None], shifted=True)
    return columns.copy_(q[0]) if bool(good) else orthogonalize_(columns)


def _process_at_once(
    layers: Sequence[Layer],
    equations: Equations,
    device: torch.device,
    read: Read,
    results: dict[str, Tensor],
    bar: Progress,
) -> dict[str, float]:
    done: list[tuple[Layer, Tensor]] = []
    looks: list[Tensor] = []
    for group in _batches(layers):
        weight = group[0].weight
        # Columns of a predicted weight repeat after a block of 64 x 64 channels, but for some GHN-3.
        period = 64 * (weight[0, 0].numel() if weight.shape[0] >= weight[0].numel() else 1)
        batch = process_batch(_columns(group, device, read), [layer.stream for layer in group], *equations, period)
        values = batch.columns.to(weight.dtype)
        looks.append(torch.stack((batch.sigma, batch.good.double(), values.isfinite().flatten(1).all(1).double())))
        done += zip(group, values, strict=True)
        for _ in group:
            bar.step()
    sigmas, good, finite = torch.cat(looks, 1).tolist()
    for (layer, values), was_good, is_sound in zip(done, good, finite, strict=True):
        if not was_good:  # only now, because `results` may have what `read` reads
            noisy = process_batch(
                _columns([layer], device, read), [layer.stream], equations.beta, False, equations.seed
            )
            values = orthogonal_alone(noisy.columns[0]).to(layer.weight.dtype)
            is_sound = is_finite(values)
        _keep(layer, values, bool(is_sound), equations, results)
    return {layer.name: sigma for (layer, _), sigma in zip(done, sigmas, strict=True)}


def _batches(layers: Iterable[Layer]) -> Iterator[list[Layer]]:
    """Layers that can be computed together without taking too much memory."""
    groups: dict[Any, list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.weight.shape, layer.weight.dtype].append(layer)
    for group in groups.values():
        most = max(1, _CHUNK // group[0].weight.numel())
        yield from (group[start : start + most] for start in range(0, len(group), most))


# -- which layers ------------------------------------------------------------------------------------------------------


def to_process(model: nn.Module, layer: int, kept: Collection[str] | None = None) -> list[Layer]:
    """The layers from `layer` on whose weights can be set, without those shared with a layer that must stay.

    Weights that are `kept` (default: that of the last layer) stay whatever their number.
    """
    layers = layers_of(model)
    kept = {found.name for found in layers[-1:]} if kept is None else kept
    seen = {id(found.weight) for found in layers if found.number < layer or found.name in kept}
    targets = []
    for target in layers[layer - 1 :]:
        settable = target.by is None or target.by.invertible
        if id(target.weight) not in seen and settable and (is_lazy(target.weight) or target.weight.numel() > 0):
            seen.add(id(target.weight))
            targets.append(target)
    return targets


def cost(weight: Tensor) -> int:
    """Operations of a weight's QR decomposition, up to a factor."""
    k, rest = weight.shape[0], math.prod(weight.shape[1:])
    return k * rest * min(k, rest)


def unprocessable(weight: Tensor) -> str | None:
    """Why a weight cannot be post-processed whatever its values are, and the way out; None if it can."""
    if is_lazy(weight):
        return "has no shape yet: run one forward pass first"
    if weight.dtype not in _DTYPES:
        return f"is {weight.dtype}, not floating point: post-process first, quantise afterwards"
    return None


def _no_values(weight: Tensor) -> str | None:
    if hasattr(weight, "device_mesh"):
        return "is sharded: name a source with -orth in `init_model`, or post-process the model before sharding it"
    if isinstance(weight, FakeTensor):
        return "is fake (FakeTensorMode): it has no values"
    if weight.is_meta:
        return "is on the meta device: materialise the model first (`model.to_empty(device=...)`, then load or predict)"
    if not is_finite(weight.detach()):
        return "holds NaN or infinite values: load or predict sound parameters first"
    return None


def compute_device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """CUDA where the model is there or one is present, else the CPU; with its index, so that devices compare equal."""
    if device is None:
        cuda = next((p.device for p in model.parameters() if p.is_cuda), None)
        device = cuda or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device

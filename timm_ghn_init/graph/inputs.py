"""Inputs of a model: those that the caller gives, or a guess from the model."""

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..utils.checks import InputError, shown
from ..utils.checks import whole as whole_number
from .nested import tensors_within

BATCH = 2
_SIDE = whole_number(1)
_MOST_VALUES = 2**40  # of an input; beyond them sizes overflow
# Sizes to try where a model says nothing of itself, by the number of dimensions of its first layer.
USUAL: dict[int, tuple[tuple[int, ...], ...]] = {
    0: ((),),
    1: ((1024,), (16000,), (224,)),
    2: tuple((s, s) for s in (224, 256, 299, 384, 32, 28)),
    3: ((16, 224, 224), (16, 112, 112), *((s, s, s) for s in (96, 64, 32))),
}
TOKENS = (16,)  # the length of a sequence of token ids
# Attributes of a model, or of its `config`, that tell sizes and channels.
_SIZES = ("img_size", "image_size", "input_size", "sample_size", "crop_size")
_CHANNELS = ("in_chans", "num_channels", "in_channels")
_NO_FEATURES = re.compile("mask|position")  # of a keyword whose values are neither an image nor tokens


class Placed(NamedTuple):
    """Arguments of a forward pass on a device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    features: list[Tensor]  # those tensors among them that hold features or tokens
    values: list[tuple[Tensor, Tensor]]  # of whole numbers


@dataclass(frozen=True)
class Inputs:
    """Arguments of a forward pass."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, device: str, drawn: bool = False) -> "Placed":
        """Copies of the arguments on a device. Nothing has values on "meta".

        Args:
            device: "meta" or "cpu".
            drawn: whether what has no values becomes random numbers instead of zeros.
        """
        generator = torch.Generator().manual_seed(0) if drawn else None
        memo: dict[int, Any] = {}
        features, values = [], []
        for name, tensor in self._tensors():
            memo[id(tensor)] = placed = _placed(tensor, device, generator)
            if tensor.dtype != torch.bool and not _NO_FEATURES.search(name):
                features.append(placed)
            if not tensor.is_floating_point():
                values.append((placed, _placed(tensor, "cpu")))
        args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)), memo)
        return Placed(args, kwargs, features, values)

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the first tensor that is no mask and no list of ids, without the batch's dimension."""
        tensors = list(self._tensors())
        name, tensor = next((found for found in tensors if found[1].is_floating_point()), tensors[0])
        return _without_batch(name, tensor)

    @property
    def grid(self) -> tuple[int, int] | None:
        """The positions of a sequence, None of anything else."""
        lengths = [t.shape[-1] for _, t in self._tensors() if t.dim() == (3 if t.is_floating_point() else 2)]
        return (lengths[0], 1) if lengths else None

    @property
    def batch(self) -> int | None:
        """How many images, or what else they are, go in; None for a list of them."""
        name, tensor = next(self._tensors())
        return len(tensor) if tensor.dim() > len(_without_batch(name, tensor)) else None

    def __str__(self) -> str:
        return ", ".join("x".join(map(str, _without_batch(name, t))) for name, t in self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for index, value in enumerate(self.args):
            yield from tensors_within(value, str(index))
        for key, value in self.kwargs.items():
            yield from tensors_within(value, key)


def _without_batch(name: str, tensor: Tensor) -> tuple[int, ...]:
    of_a_list = any(key.isdigit() for key in name.split(".")[1:])  # or of a list of dicts
    return tuple(tensor.shape if of_a_list else tensor.shape[1:])


def _placed(tensor: Tensor, device: str, generator: torch.Generator | None = None) -> Tensor:
    if device == "meta":
        return torch.empty_like(tensor, device="meta")
    if tensor.is_meta and tensor.is_floating_point() and generator is not None:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=device)
    if tensor.is_meta:
        return torch.zeros_like(tensor, device=device)
    return tensor.detach().to(device, copy=True)


def given(example_inputs: Any) -> Inputs:
    """The caller's own: a tuple of positional arguments, a mapping of keywords, or one argument."""
    if isinstance(example_inputs, Mapping):
        inputs = Inputs(kwargs=example_inputs)
    else:
        several = isinstance(example_inputs, tuple) and not isinstance(example_inputs, PackedSequence)
        inputs = Inputs(example_inputs if several else (example_inputs,))
    if not any(True for _ in inputs._tensors()):
        raise InputError(
            "example_inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments with a "
            f"tensor among them, not {type(example_inputs).__name__} without any."
        )
    return inputs


class Stem(NamedTuple):
    """The input of the first layer."""

    channels: int
    dims: int  # spatial ones
    tokens: bool = False


def attempts(
    model: nn.Module, input_size: int | Sequence[Any] | None, first_layer: Callable[[], nn.Module | None]
) -> Iterator[Inputs]:
    """Inputs to try, best first.

    Args:
        model: what it says of itself comes first, then a few usual sizes.
        input_size: as in `trace`.
        first_layer: of the attempt that has just failed, if that was where it failed. Its input is tried next.

    Raises:
        ValueError: `input_size` is not an int, (H, W), (C, H, W), (features,) or a list of those.
    """
    says = _Declared(model)
    if input_size is None and (recorded := _recorded(model)):
        yield says.call(list(recorded))
    stems = says.stems()
    tried: list[list[tuple[int, ...]]] = []
    for stem in stems:  # which may grow
        for shapes in says.shapes(stem) if input_size is None else _parse(input_size, stem):
            if shapes in tried:
                continue
            tried.append(shapes)
            dtype = torch.int64 if stem.tokens else says.dtype
            yield says.call([torch.empty((BATCH, *s), dtype=dtype, device="meta") for s in shapes])
            told = _stem_of(first_layer())
            if told is not None and told != stem:
                if told not in stems:
                    stems.insert(stems.index(stem) + 1, told)
                break


def _recorded(model: nn.Module) -> tuple[Tensor, ...]:
    """The inputs that an exported graph was recorded with: it takes nothing else."""
    nodes = model.graph.nodes if isinstance(model, torch.fx.GraphModule) else ()
    seen = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    shapes = [(tuple(t.shape), t.dtype) for t in seen if isinstance(t, Tensor)]
    if len(shapes) < len(seen) or not all(type(n) is int for shape, _ in shapes for n in shape):
        return ()
    return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in shapes)


def _stem_of(layer: nn.Module | None) -> Stem | None:
    if isinstance(layer, nn.Linear):
        return Stem(layer.in_features, 0)
    if isinstance(layer, nn.Embedding):
        return Stem(layer.num_embeddings, 0, tokens=True)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return Stem(layer.in_channels, len(layer.kernel_size))
    weight = attribute(layer, "weight")
    if isinstance(weight, Tensor) and weight.dim() > 2:
        return Stem(weight.shape[1] * (attribute(layer, "groups") or 1), weight.dim() - 2)
    return None


class _Declared:
    """A model's own description of its inputs: timm's traits and config, others' `config` and attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = unwrapping(model)
        self._sizes: list[Any] = []
        self._channels: list[Any] = []
        self._frames: list[Any] = []
        for m in self._layers:
            cfg, config, stem = (
                attribute(m, "pretrained_cfg") or {},
                attribute(m, "config"),
                attribute(m, "patch_embed"),
            )
            size = tuple(attribute(cfg, "input_size") or ())
            places = (m, config, attribute(config, "vision_config"), stem)
            self._sizes += [attribute(attribute(m, "_traits"), "img_size"), attribute(stem, "img_size"), size[1:]]
            self._sizes += [attribute(place, name) for place in places for name in _SIZES]
            self._channels += [attribute(m, "in_chans"), *size[:1]]
            self._channels += [attribute(place, name) for place in places for name in _CHANNELS]
            self._frames += [attribute(place, "num_frames") for place in places]
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def stems(self) -> list[Stem]:
        """With the channels that are declared, three, those of the convolution that was registered first, or one."""
        convolutions = (m for m in self._layers[0].modules() if isinstance(m, nn.modules.conv._ConvNd))
        first = _stem_of(next(convolutions, None)) or Stem(3, 2)
        channels = [c for c in (*self._channels, 3, first.channels, 1) if isinstance(c, int) and c > 0]
        return [Stem(c, first.dims) for c in dict.fromkeys(channels)]

    def shapes(self, stem: Stem) -> Iterator[list[tuple[int, ...]]]:
        if stem.tokens:
            yield [TOKENS]
            return
        declared = (extents for size in self._sizes for extents in self._extents(size, stem.dims))
        for extents in (*declared, *USUAL[stem.dims]):
            yield [(stem.channels, *extents)]

    def _extents(self, size: Any, dims: int) -> Iterator[tuple[int, ...]]:
        """The spatial extents that a declared size may mean."""
        if isinstance(size, int) and size > 0:
            size = (size,) * max(dims, 1)
            if dims == 3:
                yield from self._extents(size[1:], dims)
        if not isinstance(size, (tuple, list)) or not all(isinstance(s, int) and s > 0 for s in size):
            return
        if dims == 3 and len(size) == 2:
            yield from ((frames, *size) for frames in (*self._frames, 16) if isinstance(frames, int))
        elif dims and len(size) >= dims:
            yield tuple(size[-dims:])

    def call(self, tensors: list[Tensor]) -> Inputs:
        """Positional arguments, or keywords where the forward takes images by that only."""
        parameters = next(filter(None, map(_named_parameters, self._layers)), {})
        positional = [p.name for p in parameters.values() if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
        if "pixel_values" in parameters and positional[:1] != ["pixel_values"]:
            names = ["pixel_values"]
        elif parameters and not positional:
            names = sorted(parameters, key=lambda n: parameters[n].default is not inspect.Parameter.empty)
        else:
            return Inputs(tuple(tensors))
        return Inputs(kwargs=dict(zip(names, tensors, strict=False)))


def _named_parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Those of its forward, none where it passes on whatever it gets."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return dict(parameters) if named else {}


def unwrapping(model: nn.Module) -> list[nn.Module]:
    """A model, and what is inside if it has nothing of its own but one child: DataParallel, EMA, compiled models ..."""
    chain = [model]
    while len(model._modules) == 1 and not any(p is not None for p in model._parameters.values()):
        child = next(iter(model._modules.values()))
        if child is None or child in chain:
            break
        chain.append(model := child)
    return chain


def attribute(thing: Any, name: str) -> Any:
    """An attribute or an entry, None where there is none or where asking for it raises."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:
        return None


def _parse(size: int | Sequence[Any], stem: Stem) -> Iterator[list[tuple[int, ...]]]:
    if isinstance(size, Sequence) and size and all(isinstance(s, (tuple, list)) for s in size):
        yield [next(_parse(s, stem))[0] for s in size]
        return
    whole = not isinstance(size, Sequence)
    extents: tuple[Any, ...] = tuple(size) if isinstance(size, Sequence) else (size,) * max(stem.dims, 1)
    n = len(extents)
    if not all(map(_SIDE.valid, extents)) or not 0 < n < 5 or math.prod(extents) > _MOST_VALUES:
        raise InputError(
            f"input_size must be an int, (H, W), (C, H, W), (features,) or a list of those, not {shown(size)}."
        )
    spatial = stem.dims > 0 if whole else (n == 2 and stem.dims > 1) or n == stem.dims == 3
    if spatial:
        yield [(stem.channels, *extents)]
    if not spatial or (n == 3 and not whole):
        yield [extents]

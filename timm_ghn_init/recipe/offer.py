"""A source, and the values that it has for a model before anything is written.

A GHN's prediction is known by its graph and computed later. A function is run at once; its values wait until all are
there.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ghn import GHN
from ..graph import Graph
from ..own_init.stand_ins import named_tensors
from ..sources import Source
from ..utils.checks import InputError, is_finite, shown
from ..utils.own_draws import own_draws
from ..utils.text import Told, did_you_mean
from ..utils.threads import one_thread
from ..version import __version__
from ..weights.cache import remember
from ..weights.files import digest
from ..weights.key import arithmetic, ghn_digest

# (model, seed, its own keys) -> pairs of a parameter's name and its value, or why it has none.
Function = Callable[..., Iterable[tuple[str, Tensor | str]]]


@dataclass(frozen=True)
class Resolved:
    """A source, and what it stands for on this machine. Made once, at the front door."""

    asked: Source  #: as the user named it
    source: Source  #: really used: "ghn" resolved, without the keys that change nothing about the weights
    ghn: GHN | None  #: where it is to compute; None for a source with a function
    own: bool = False  #: whether the GHN is an object of the user's instead of what the source names
    cache: bool = False  #: whether finished weights are kept on disk
    org: str | None = None  #: in whose repositories on the Hub to look for them

    @property
    def function(self) -> Function:
        """What gives the values, if no GHN predicts them."""
        row = self.source.initialisation
        assert row is not None
        return partial(row.load(), **{**row.defaults, **dict(self.source.own)})

    @property
    def needs_graph(self) -> bool:
        return "graph" in inspect.signature(self.function).parameters

    @property
    def effective(self) -> bool:
        """Whether values are meant for the weights that layers compute with (see `register_source`)."""
        row = self.source.initialisation
        return row is None or row.effective or row.orthogonal

    @cached_property
    def digest(self) -> str:
        """As `ghn_digest`."""
        assert self.ghn is not None
        return ghn_digest(self.ghn, frozen=not self.own)


@dataclass
class Offer:
    """The values that a source has for a model."""

    roles: dict[str, str]  #: name -> role of each parameter that it has values for, as in `InitReport.predicted`
    skipped: dict[str, str]  #: the other parameters -> why not
    graph: Graph | None = None  #: of the model, where a GHN predicts
    cached: bool = False  #: whether the values of a function came from the cache

    def whole(self, name: str) -> bool:
        """Whether every value of a parameter is offered, not only some rows."""
        return self.graph is None or self.graph.targets[name].whole


def predicted(graph: Graph, num_classes: int, source: Source) -> Offer:
    """The prediction of a GHN: a classifier, for instance, of its own classes alone."""
    roles: dict[str, str] = {}
    skipped = dict(graph.skipped)
    for target in graph.targets.values():
        if not target.classifier:
            roles[target.param] = target.role
        elif not source.classifier:
            skipped[target.param] = "classifier, left alone by classifier=0"
        elif target.shape[0] != num_classes:
            skipped[target.param] = f"classifier of {target.shape[0]} classes, the GHN predicts {num_classes}"
        else:
            roles[target.param] = target.role
    return Offer(roles, skipped, graph)


def given(
    model: nn.Module,
    name: str,
    part: Resolved,
    seed: int,
    kept: Collection[str],
    results: dict[str, Tensor],
    graph: Graph | None = None,
) -> Offer:
    """Run the function of a source on one thread, and check each value that it gives; `results` gets those not `kept`.

    CPU random numbers without a generator start from the seed too.

    Raises:
        ValueError: the function fails, writes to the model, or gives a value that a parameter cannot have.
    """
    source = part.source
    parameters = dict(model.named_parameters())
    versions = {n: _version(p) for n, p in parameters.items()}
    by_id = {id(p): n for n, p in parameters.items()}
    names = {n: by_id[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    offer, seen = Offer({}, {}), set[str]()
    with one_thread(), own_draws(seed):
        pairs = _pairs(partial(part.function, graph=graph) if graph else part.function, model, name, source, seed)
        if part.cache:
            pairs, offer.cached = _remembered(pairs, model, source, seed)
        for given_name, value in pairs:
            problem = _problem(parameters, names, given_name, value, seen)
            if problem:
                raise InputError(f"{name}: {source} gives {problem} The model is unchanged.")
            own = names[given_name]
            if isinstance(value, str):
                offer.skipped[own] = value
            else:
                offer.roles[own] = ""
                if own not in kept:
                    results[own] = value.detach().cpu().clone()
            seen.add(own)
    changed = [n for n, p in parameters.items() if _version(p) != versions[n]]
    if changed:
        raise InputError(f"{name}: {source} has written to {changed[0]}. Its function must yield values instead.")
    offer.roles.update(_roles(model, offer.roles))
    offer.skipped.update((n, f"{source.name} has no value for it") for n in parameters if n not in seen)
    return offer


def _remembered(
    pairs: Iterator[tuple[str, Tensor | str]], model: nn.Module, source: Source, seed: int
) -> tuple[Iterator[tuple[str, Tensor | str]], bool]:
    """Pairs from the cache, or kept there, and whether they came from it."""
    row = source.initialisation
    assert row is not None
    values = digest({n: t for n, t in named_tensors(model).items() if not t.is_meta})
    key = hashlib.sha256(json.dumps([str(source), seed, row.digest, __version__, values]).encode()).hexdigest()

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = dict(pairs)
        tensors = {n: v for n, v in found.items() if isinstance(v, Tensor)}
        return tensors, {"reasons": {n: v for n, v in found.items() if isinstance(v, str)}}

    tensors, about, cached = remember(f"{key}-{arithmetic(torch.device('cpu'))}", make)
    return iter([*tensors.items(), *about["reasons"].items()]), cached


def _version(parameter: Tensor) -> int:
    """How often a parameter was written to, as far as PyTorch counts."""
    return 0 if parameter.is_inference() else parameter._version


def _pairs(
    function: Function, model: nn.Module, name: str, source: Source, seed: int
) -> Iterator[tuple[str, Tensor | str]]:
    """The pairs of a function, with an error that names it for whatever it raises."""
    try:
        for pair in function(model, seed):
            given_name, value = pair
            yield given_name, value
    except Told:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: the function of {source} failed: {type(error).__name__}: {error}. The model is unchanged."
        ) from error


def _problem(
    parameters: Mapping[str, Tensor], names: Mapping[str, str], name: object, value: object, seen: Collection[str]
) -> str | None:
    """The fault of a pair that a function has given; None if nothing is."""
    if not isinstance(name, str) or name not in names:
        return (
            f"a value for {shown(name)}, and the model has no parameter of that name.{did_you_mean(str(name), names)}"
        )
    if names[name] in seen:
        return f"two values for {name}."
    if isinstance(value, str):
        return None
    if not isinstance(value, Tensor):
        return f"{shown(value)} for {name}, which is no tensor."
    parameter = parameters[names[name]]
    if value.shape != parameter.shape:
        return f"a value of shape {tuple(value.shape)} for {name}, whose shape is {tuple(parameter.shape)}."
    if value.is_meta:
        return f"a value without memory (on the meta device) for {name}."
    if value.is_complex() and not parameter.is_complex():
        return f"a complex value for {name}, which is {parameter.dtype}."
    if not is_finite(value.to(parameter.dtype)):
        return f"NaN or infinity for {name} (in {parameter.dtype})."
    return None


def _roles(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """The role of each parameter, by its shape and the module that it belongs to."""
    roles = {}
    for name in names:
        path = name.rpartition(".")[0]
        parameter = model.get_parameter(name)
        weight = model.get_submodule(path)._parameters.get("weight")
        if parameter.dim() > 1 and (parameter.numel() > max(parameter.shape) or weight is parameter):
            roles[name] = "weight"
        else:
            roles[name] = "norm" if weight is not None and weight.dim() < 2 else "bias"
    return roles

"""The sources inside timm. The only file that hangs itself into timm; read it when a new timm breaks something.

timm looks up a few functions by name at call time. These are wrapped, in every loaded module that has them:

* `parse_model_name`: `create_model` asks it for what a name stands for. The wrapper takes off a tag that is one of our
  sources before timm does, which cuts it at a "?" (before 1.0.29) or refuses a path in it.
* `model_entrypoint`: gives `create_model` the function that builds the model. The wrapper recognises a source in
  `pretrained=`, `pretrained_cfg=` or the tag, and passes on a `pretrained_cfg` that names it.
* `resolve_pretrained_cfg`: `build_model_with_cfg` asks it what the model's weights are. The wrapper does the same for
  who calls an architecture's function directly, `timm.models.resnet50(pretrained="ghn2-orth")`.
* `load_pretrained`, `load_custom_pretrained`: load weights into the finished model. For a `pretrained_cfg` that names
  one of our sources the wrapper initialises the model instead.
* `is_model_pretrained`, `get_pretrained_cfg`, `list_models`: libraries ask them before they create a model. The
  wrappers know every tag that is a source; `list_models` lists those tags that a filter asks for.

Everything else, features_only, in_chans, num_classes, checkpoint_path and so on, is left to timm. The config of
such weights is made by `weights.timm_config`.
"""

import copy
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import nullcontext
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from ..own_init.deferred import DeferredInit, deferred_init
from ..report import InitReport
from ..sources import SUFFIXES, Source, is_source, list_sources, parse_source
from ..utils import ranks
from ..utils.checks import InputError
from ..utils.text import logger
from ..weights.timm_config import cfg_fields, source_cfg

_logger = logger(__name__)

# The fields of a `PretrainedCfg` that say where weights are.
_WEIGHTS = ("state_dict", "file", "url", "hf_hub_id")

_lock = threading.RLock()
_current = threading.local()  # .creation: the `create_model` call of this thread that is in progress, if it is ours


def register() -> None:
    """Make the sources known to timm, which is imported. Calling it again changes nothing."""
    with _lock:
        for home, name, wrap in _wrapped():
            original = getattr(home, name)
            if not hasattr(original, "_timm_ghn_init_original"):
                wrapper = functools.wraps(original)(wrap(original))
                wrapper._timm_ghn_init_original = original  # type: ignore[attr-defined]
                _replace(name, original, wrapper)


def unregister() -> None:
    """Put timm back as it was before `register`. Calling it again changes nothing."""
    with _lock:
        for home, name, _ in _wrapped():
            wrapper = getattr(home, name)
            if hasattr(wrapper, "_timm_ghn_init_original"):
                _replace(name, wrapper, wrapper._timm_ghn_init_original)


def unwrapped() -> list[str]:
    """The parts of timm that do not know the sources: nothing, after `register`."""
    found = ((f"{home.__name__}.{name}", getattr(home, name)) for home, name, _ in _wrapped())
    return [name for name, function in found if not hasattr(function, "_timm_ghn_init_original")]


def _wrapped() -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """A wrapped function: the module that defines it, its name, and what makes the wrapper."""
    from timm.models import _builder, _factory, _registry

    return (
        (_factory, "parse_model_name", _wrap_parse_model_name),
        (_registry, "model_entrypoint", _wrap_model_entrypoint),
        (_builder, "resolve_pretrained_cfg", _wrap_resolve_pretrained_cfg),
        (_builder, "load_pretrained", _wrap_load_pretrained),
        (_builder, "load_custom_pretrained", _wrap_load_pretrained),
        (_registry, "is_model_pretrained", _wrap_is_model_pretrained),
        (_registry, "get_pretrained_cfg", _wrap_get_pretrained_cfg),
        (_registry, "list_models", _wrap_list_models),
    )


def _replace(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put one function in the place of another in all modules that have it, also those that imported it by name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(name) is old:
            names[name] = new


def _wrap_parse_model_name(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_model_name(model_name: str) -> tuple[Any, str]:
        architecture, _, tag = model_name.partition(".")
        if ":" in architecture or not is_source(tag):  # "hf-hub:ORG/NAME" is a place, whatever follows
            return original(model_name)
        place, architecture = original(architecture)
        return place, f"{architecture}.{tag}"

    return parse_model_name


def _wrap_model_entrypoint(original: Callable[..., Any]) -> Callable[..., Any]:
    def model_entrypoint(model_name: str, *args: Any, **kwargs: Any) -> Callable[..., nn.Module]:
        name, _, tag = model_name.partition(".")
        create = original(name if is_source(tag) else model_name, *args, **kwargs)
        return _EntryPoint(create, name, tag if is_source(tag) else None)

    return model_entrypoint


class _EntryPoint:
    """timm's function `create` that builds the architecture `name`; with a source (`tag`), initialises it as well."""

    def __init__(self, create: Callable[..., nn.Module], name: str, tag: str | None) -> None:
        functools.update_wrapper(self, create)
        self.create, self.name, self.tag = create, name, tag

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        pretrained = args[0] if args else kwargs.get("pretrained")
        config = kwargs.get("pretrained_cfg") or self.tag
        source, config = _config_for(self.name, pretrained, config, kwargs.get("pretrained_cfg_overlay"))
        if source is None:
            return self.create(*args, **kwargs)
        kwargs = {**kwargs, "pretrained_cfg": config}
        if not pretrained:
            kwargs["pretrained_cfg_overlay"] = _unnamed(kwargs.get("pretrained_cfg_overlay"))
            return self.create(*args, **kwargs)
        kwargs.pop("pretrained", None)
        return _create(self.name, self.create, source, *args[1:], **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle names timm's own function, so that it can be read without this package."""
        if self.tag is None:
            return copy.copy, (self.create,)  # of a function: itself
        from timm.models import _registry

        return _registry.model_entrypoint, (f"{self.name}.{self.tag}",)


def _wrap_resolve_pretrained_cfg(original: Callable[..., Any]) -> Callable[..., Any]:
    def resolve_pretrained_cfg(variant: str, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None) -> Any:
        # Its callers, `build_model_with_cfg` first, do not pass on their own `pretrained`, which may name a source.
        pretrained = sys._getframe(1).f_locals.get("pretrained", True)
        _, config = _config_for(variant, pretrained, pretrained_cfg, pretrained_cfg_overlay)
        return original(variant, config, pretrained_cfg_overlay if pretrained else _unnamed(pretrained_cfg_overlay))

    return resolve_pretrained_cfg


def _config_for(name: str, pretrained: Any, config: Any, overlay: Any) -> tuple[Source | None, Any]:
    """The source that is asked for, if any, and the `pretrained_cfg` to build with.

    It names the source if that is going to be applied. Otherwise the weights are random, and a warning explains that.
    `config` and `overlay` are what timm was given as `pretrained_cfg` and `pretrained_cfg_overlay`.
    """
    _refuse_path(name, pretrained)
    source = _requested(name, pretrained, config, overlay)
    if source is None:
        return None, config
    base = None if is_source(config) else config
    if not pretrained:
        _logger.log(
            logging.WARNING if ranks.share()[0] == 0 else logging.DEBUG,
            "%s: %s was named but not applied, the weights are random. Pass pretrained=True as well, or call "
            "timm_ghn_init.init_model(model, %r). If a checkpoint is loaded next, nothing is wrong.",
            name,
            source,
            str(source),
        )
        return source, _unnamed(_base_cfg(name, base))
    _refuse_other_weights(name, source, "pretrained_cfg_overlay", overlay)
    # For a tag, and for a name that is a place, timm itself looks up the config, which only describes the data then.
    if not isinstance(base, str) and _field(base, "source") not in ("hf-hub", "local-dir"):
        _refuse_other_weights(name, source, "pretrained_cfg", base)
    return source, source_cfg(source, _base_cfg(name, base))


def _requested(name: str, pretrained: Any, config: Any, overlay: Any) -> Source | None:
    spelt = {
        "pretrained": pretrained,
        "the tag or pretrained_cfg": config if isinstance(config, (str, Source)) else _field(config, "source"),
        "pretrained_cfg_overlay": _field(overlay, "source"),
    }
    found = {place: parse_source(text) for place, text in spelt.items() if is_source(text)}
    if len(set(found.values())) > 1:
        raise InputError(f"{name}: {' and '.join(f'{place}={str(s)!r}' for place, s in found.items())} disagree.")
    return next(iter(found.values()), None)


def _refuse_path(name: str, pretrained: Any) -> None:
    """timm takes any text for a yes, and would load its own weights."""
    if isinstance(pretrained, (str, os.PathLike)) and not is_source(pretrained):
        path = os.fspath(pretrained)
        if isinstance(pretrained, os.PathLike) or os.path.basename(path) != path or path.endswith(SUFFIXES):
            raise InputError(
                f"{name}: pretrained={path!r} is a path. For the file of a GHN write pretrained='file:{path}'; for "
                "weights of this model write checkpoint_path= instead."
            )


def _unnamed(config: Any) -> Any:
    """A `PretrainedCfg`, or an overlay of one, that does not name the source that it may name."""
    if not is_source(_field(config, "source")):
        return config
    if isinstance(config, dict):
        return {key: value for key, value in config.items() if key not in cfg_fields(None)}
    return source_cfg(None, config)


def _refuse_other_weights(name: str, source: Source, place: str, config: Any) -> None:
    """Weights together with a source (timm's `--pretrained-path`, for one): which are meant?"""
    for key in _WEIGHTS:
        if _field(config, key):
            raise InputError(f"{name}: the weights of {key!r} in {place} and of {str(source)!r}: name only one.")


def _field(config: Any, key: str) -> Any:
    """The fields of a `PretrainedCfg`, or of a dict of them; None where there is neither."""
    return config.get(key) if isinstance(config, dict) else getattr(config, key, None)


def _base_cfg(model_name: str, given: Any) -> Any:
    """The `PretrainedCfg` that describes the architecture: input size, mean, std, names of its first and last layer."""
    from timm.models import PretrainedCfg, get_pretrained_cfg
    from timm.models._registry import get_deprecated_models

    if isinstance(given, PretrainedCfg):
        return given
    if isinstance(given, dict):
        return PretrainedCfg(**given)
    name = get_deprecated_models().get(model_name) or model_name
    if given:  # another tag: its data configuration, our weights
        name = f"{name.partition('.')[0]}.{given}"
    return get_pretrained_cfg(name) or PretrainedCfg(architecture=model_name)


class _Creation:
    """A `create_model` call that asks for one of our sources."""

    def __init__(self, source: Source, deferred: DeferredInit | None) -> None:
        self.source, self.deferred = source, deferred
        self.report: InitReport | None = None
        self.model: nn.Module | None = None

    def __call__(self, overwritten: Collection[Tensor]) -> None:
        """As `DeferredInit.settle`. A classifier that is not predicted is a new one each time."""
        if self.deferred is not None and self.model is not None:
            from ..graph.classifier import declared_classifier

            parameters = dict(self.model.named_parameters())
            heads = declared_classifier(self.model, parameters, None) or ()
            self.deferred.settle(overwritten, [parameters[n] for n in heads])

    def is_drawn(self, parameter: Tensor) -> bool:
        """As `DeferredInit.is_drawn`."""
        return self.deferred is not None and self.deferred.is_drawn(parameter)


def _create(model_name: str, create: Callable[..., nn.Module], source: Source, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a model and make sure that it was really initialised: never hand out other weights under this name."""
    # Values that the prediction will overwrite need not be drawn at random first.
    deferred = deferred_init(create, args, kwargs, source.seed_or(None))
    outer, creation = getattr(_current, "creation", None), _Creation(source, deferred)
    _current.creation = creation
    try:
        with creation.deferred or nullcontext():
            model = create(True, *args, **kwargs)
    finally:
        _current.creation = outer
    if creation.report is None:
        raise RuntimeError(
            f"{model_name} does not load weights the way timm's other models do, so {source} was not applied. "
            f"Create it without weights and call timm_ghn_init.init_model(model, {str(source)!r})."
        )
    if source.push:
        _push(model, creation.report, kwargs)
    _attach_report(model, creation)
    return model


def _attach_report(model: nn.Module, creation: _Creation) -> None:
    """Of `features_only`, which builds another module from the parts of the one that was initialised."""
    if creation.report is not None and creation.model is not None and creation.model is not model:
        names = {id(p): n for n, p in model.named_parameters()}
        renamed = {n: names.get(id(p)) for n, p in creation.model.named_parameters()}
        model.ghn_report = creation.report.renamed(renamed)  # type: ignore[assignment]


def _push(model: nn.Module, report: InitReport, kwargs: dict[str, Any]) -> None:
    from ..weights.push import push_predicted

    if kwargs.get("features_only"):
        _logger.warning("push=1: %s with features_only is not pushed, only whole models are.", report.model)
        return
    not_of_the_model = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype", "features_only")
    push_predicted(model, report, {k: v for k, v in kwargs.items() if k not in not_of_the_model})


def _wrap_load_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_pretrained(model: nn.Module, pretrained_cfg: dict[str, Any] | None = None, *args: Any, **kw: Any) -> Any:
        config = pretrained_cfg or getattr(model, "pretrained_cfg", None)
        text = config.get("source") if isinstance(config, dict) else None
        if not is_source(text):
            return original(model, pretrained_cfg, *args, **kw)
        assert config is not None and text is not None
        source = parse_source(text)
        _refuse_other_weights(config.get("architecture") or type(model).__name__, source, "pretrained_cfg", config)
        report = _initialise(model, source)
        config.update(cfg_fields(parse_source(report.source)))  # what was really used, "ghn" resolved
        return None

    return load_pretrained


def _initialise(model: nn.Module, source: Source) -> InitReport:
    from ..graph import model_name
    from ..initialize import initialise

    name = model_name(model)
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{name}: it is built on the meta device, where weights have no memory. Build it there without weights "
            f"(pretrained=False) and call timm_ghn_init.init_model(model, {str(source)!r}, device='cpu'), which gives "
            "it memory; or build it on another device."
        )
    creation = getattr(_current, "creation", None)
    if creation is None or creation.source != source:  # not by `create_model`, or a part of what it builds
        if source.push:
            _logger.warning("push=1 has no effect here: it needs timm.create_model, or init_model.")
        return initialise(model, source)
    creation.model = model
    if creation.deferred is not None:
        creation.deferred.close()  # the model is built; tracing it needs no values
    creation.report = initialise(model, source, settle=creation)
    return creation.report


def _wrap_is_model_pretrained(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_model_pretrained(model_name: str) -> bool:
        return original(model_name) or _tagged(model_name) is not None

    return is_model_pretrained


def _wrap_get_pretrained_cfg(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_pretrained_cfg(model_name: str, *args: Any, **kwargs: Any) -> Any:
        source = _tagged(model_name)
        if source is None:
            return original(model_name, *args, **kwargs)
        return source_cfg(source, original(model_name.partition(".")[0], *args, **kwargs))

    return get_pretrained_cfg


def _wrap_list_models(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def list_models(filter: Any = "", *args: Any, **kwargs: Any) -> list[str]:
        names = original(filter, *args, **kwargs)
        asked = [f for f in ([filter] if isinstance(filter, str) else filter or ()) if "." in f]
        tags = [str(source) for source in list_sources()]
        found: list[str] = []
        for pattern in asked:
            architecture, _, tag = pattern.partition(".")
            if tag.strip("*?"):  # "resnet18.*" is for timm's own
                plain = original(architecture, *args, **{**kwargs, "pretrained": False, "include_tags": False})
                found += [
                    f"{name}.{t}" for name in plain for t in tags if fnmatch(t, tag) and f"{name}.{t}" not in names
                ]
        return names + found

    return list_models


def _tagged(model_name: str) -> Source | None:
    """The source that is the tag of an architecture's name."""
    from timm.models import _registry

    architecture, _, tag = model_name.partition(".")
    if not is_source(tag) or _registry._model_pretrained_cfgs.get(architecture) is None:
        return None
    try:
        return parse_source(tag)
    except ValueError:
        return None

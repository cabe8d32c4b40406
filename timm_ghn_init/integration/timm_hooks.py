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

Everything else, features_only, in_chans, num_classes, checkpoint_path and so on, is left to timm. What timm is told of
such weights stands in `weights.timm_config`.
"""

import functools
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from ..own_init.deferred import DeferredInit, deferred_init
from ..report import InitReport
from ..sources import Source, is_source, parse_source
from ..utils.checks import InputError
from ..utils.text import logger
from ..weights.timm_config import cfg_fields, source_cfg

_logger = logger(__name__)

# Listed by `timm.list_models(pretrained=True)`. Every other source works as a tag as well without being listed.
LISTED_TAGS = ("ghn2", "ghn2-orth")

# Where weights are, in a `PretrainedCfg`.
_WEIGHTS = ("state_dict", "file", "url", "hf_hub_id")

_lock = threading.RLock()
_current = threading.local()  # .creation: the `create_model` call of this thread that is in progress, if it is ours


def register() -> None:
    """Make the sources known to timm, which is imported. Calling it again changes nothing."""
    from timm.models import _registry  # every architecture is registered by this import

    with _lock:
        for home, name, wrap in _wrapped():
            original = getattr(home, name)
            if not hasattr(original, "_timm_ghn_init_original"):
                wrapper = functools.wraps(original)(wrap(original))
                wrapper._timm_ghn_init_original = original  # type: ignore[attr-defined]
                _replace(name, original, wrapper)
        _list_tags(_registry)


def unregister() -> None:
    """Put timm back as it was before `register`. Calling it again changes nothing."""
    from timm.models import _registry

    with _lock:
        for home, name, _ in _wrapped():
            wrapper = getattr(home, name)
            if hasattr(wrapper, "_timm_ghn_init_original"):
                _replace(name, wrapper, wrapper._timm_ghn_init_original)
        _unlist_tags(_registry)


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

        @functools.wraps(create)
        def create_initialised(*args: Any, **kwargs: Any) -> nn.Module:
            pretrained = args[0] if args else kwargs.get("pretrained")
            config = kwargs.get("pretrained_cfg") or (tag if is_source(tag) else None)
            source, config = _config_for(name, pretrained, config, kwargs.get("pretrained_cfg_overlay"))
            if source is None:
                return create(*args, **kwargs)
            kwargs = {**kwargs, "pretrained_cfg": config}
            if not pretrained:
                return create(*args, **kwargs)
            kwargs.pop("pretrained", None)
            return _create(name, create, source, *args[1:], **kwargs)

        return create_initialised

    return model_entrypoint


def _wrap_resolve_pretrained_cfg(original: Callable[..., Any]) -> Callable[..., Any]:
    def resolve_pretrained_cfg(variant: str, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None) -> Any:
        # Its callers, `build_model_with_cfg` first, do not pass on their own `pretrained`, which may name a source.
        pretrained = sys._getframe(1).f_locals.get("pretrained")
        _, config = _config_for(variant, pretrained, pretrained_cfg, pretrained_cfg_overlay)
        return original(variant, config, pretrained_cfg_overlay)

    return resolve_pretrained_cfg


def _config_for(name: str, pretrained: Any, config: Any, overlay: Any) -> tuple[Source | None, Any]:
    """The source that is asked for, if any, and the `pretrained_cfg` to build with: one that names it.

    Args:
        name: of the architecture.
        pretrained, config, overlay: what timm was given as `pretrained`, `pretrained_cfg` and `pretrained_cfg_overlay`.

    Raises:
        ValueError: no such source; two that disagree, or other weights together with it.
    """
    source = _requested(name, pretrained, config, overlay)
    if source is None:
        return None, config
    base = None if is_source(config) else config
    if pretrained:
        _refuse_other_weights(name, source, "pretrained_cfg_overlay", overlay)
        # Of a tag, and of a name that is a place, timm itself looks up the config: it lends what describes the data.
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

    def settle(self, overwritten: list[nn.Parameter]) -> None:
        """As `DeferredInit.settle`."""
        if self.deferred is not None:
            self.deferred.settle(overwritten)


def _create(model_name: str, create: Callable[..., nn.Module], source: Source, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a model and make sure that it was really initialised: never hand out other weights under this name."""
    # What the prediction will overwrite need not be drawn at random first.
    outer, creation = getattr(_current, "creation", None), _Creation(source, deferred_init(create, args, kwargs))
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
    return model


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
    from ..initialize import initialise

    creation = getattr(_current, "creation", None)
    if creation is None or creation.source != source:  # not by `create_model`, or a part of what it builds
        if source.push:
            _logger.warning("push=1 has no effect here: it needs timm.create_model, or init_model.")
        return initialise(model, source)
    if creation.deferred is not None:
        creation.deferred.close()  # the model is built; tracing it needs no values
    creation.report = initialise(model, source, settle=creation.settle)
    return creation.report


def _list_tags(registry: Any) -> None:
    """Add our tags to what `timm.list_models(pretrained=True)` and `timm.get_pretrained_cfg` know."""
    fields = {tag: cfg_fields(parse_source(tag)) for tag in LISTED_TAGS}
    for name in registry._model_entrypoints.keys() - registry._deprecated_models.keys():
        base = registry._model_pretrained_cfgs.get(name)
        for tag, values in fields.items():
            tagged = f"{name}.{tag}"
            if base is None or tagged in registry._model_pretrained_cfgs:
                continue
            config = object.__new__(type(base))  # thousands of them: dataclasses.replace would take four times as long
            config.__dict__.update(base.__dict__ | values)
            registry._model_pretrained_cfgs[tagged] = config
            registry._model_with_tags[name].append(tagged)
            registry._model_has_pretrained.add(tagged)


def _unlist_tags(registry: Any) -> None:
    for tags in registry._model_with_tags.values():
        for tagged in [t for t in tags if t.partition(".")[2] in LISTED_TAGS]:
            tags.remove(tagged)
            registry._model_pretrained_cfgs.pop(tagged, None)
            registry._model_has_pretrained.discard(tagged)

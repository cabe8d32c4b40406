"""The sources inside timm. The only file that hangs itself into timm; read it when a new timm breaks something.

timm looks up two functions at call time, and both are wrapped:

* `timm.models._factory.model_entrypoint`: `create_model` asks it for the function that builds the model. The wrapper
  recognises a source in `pretrained=`, `pretrained_cfg=` or the tag, and passes on a `pretrained_cfg` that names it.
* `timm.models._builder.load_pretrained`: called where weights are loaded into the finished model. For a
  `pretrained_cfg` that names one of our sources the wrapper initialises the model instead.

Everything else, features_only, in_chans, num_classes, checkpoint_path and so on, is left to timm. What timm is told of
such weights stands in `weights.timm_config`.
"""

import copy
import functools
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from .own_init.deferred import DeferredInit
from .report import InitReport
from .sources import Source, is_source, parse_source
from .weights.timm_config import cfg_fields, source_cfg

_logger = logging.getLogger(__name__)

# Listed by `timm.list_models(pretrained=True)`. Every other source works as a tag as well without being listed.
LISTED_TAGS = ("ghn2", "ghn2-orth")

_lock = threading.RLock()
_current = threading.local()  # .creation: the `create_model` call of this thread that is in progress, if it is ours


def register() -> None:
    """Make the sources known to timm, which is imported. Calling it again changes nothing."""
    from timm.models import _builder, _factory, _registry  # every architecture is registered by this import

    with _lock:
        for module, name, wrap in (
            (_factory, "model_entrypoint", _wrap_model_entrypoint),
            (_builder, "load_pretrained", _wrap_load_pretrained),
        ):
            original = getattr(module, name)
            if not hasattr(original, "_timm_ghn_init_original"):
                wrapper = wrap(original)
                wrapper._timm_ghn_init_original = original  # type: ignore[attr-defined]
                setattr(module, name, wrapper)
        _list_tags(_registry)


def unregister() -> None:
    """Put timm back as it was before `register`. Calling it again changes nothing."""
    from timm.models import _builder, _factory, _registry

    with _lock:
        for module, name in ((_factory, "model_entrypoint"), (_builder, "load_pretrained")):
            original = getattr(getattr(module, name), "_timm_ghn_init_original", None)
            if original is not None:
                setattr(module, name, original)
        _unlist_tags(_registry)


def _wrap_model_entrypoint(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def model_entrypoint(model_name: str, *args: Any, **kwargs: Any) -> Callable[..., nn.Module]:
        create = original(model_name, *args, **kwargs)

        @functools.wraps(create)
        def create_initialised(pretrained: Any = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
            source, base = _requested(pretrained, pretrained_cfg)
            if source is None:
                return create(pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
            if pretrained:
                _refuse_other_weights(source, kwargs.get("pretrained_cfg_overlay"))
            config = source_cfg(source, _base_cfg(model_name, base))
            return _create(model_name, create, source, bool(pretrained), pretrained_cfg=config, **kwargs)

        return create_initialised

    return model_entrypoint


def _requested(pretrained: Any, pretrained_cfg: Any) -> tuple[Source | None, Any]:
    """The source that a `create_model` call names, if any, and the pretrained_cfg that it names beside it."""
    sources = [parse_source(text) for text in (pretrained, pretrained_cfg) if is_source(text)]
    if len(sources) == 2 and sources[0] != sources[1]:
        raise ValueError(f"pretrained={str(sources[0])!r} and the tag or pretrained_cfg {str(sources[1])!r} disagree.")
    base = None if is_source(pretrained_cfg) else pretrained_cfg
    return (sources[0] if sources else None), base


def _refuse_other_weights(source: Source, overlay: Any) -> None:
    """timm's `--pretrained-path` beside a source: which weights are meant?"""
    for key in ("state_dict", "file", "url", "hf_hub_id"):
        if (overlay or {}).get(key):
            raise ValueError(f"The weights of {key!r} in pretrained_cfg_overlay and of {str(source)!r}: name only one.")


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

    def __init__(self) -> None:
        self.deferred = DeferredInit()
        self.report: InitReport | None = None


def _create(
    model_name: str, create: Callable[..., nn.Module], source: Source, pretrained: bool, **kwargs: Any
) -> nn.Module:
    """Build a model and make sure that it was really initialised: never hand out other weights under this name."""
    if not pretrained:
        return create(pretrained=False, **kwargs)
    outer, creation = getattr(_current, "creation", None), _Creation()
    _current.creation = creation
    try:
        # What the prediction will overwrite need not be drawn at random first.
        with creation.deferred if DeferredInit.is_exact() else nullcontext():
            model = create(pretrained=True, **kwargs)
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
    from .weights.push import push_predicted

    if kwargs.get("features_only"):
        _logger.warning("push=1: %s with features_only is not pushed, only whole models are.", report.model)
        return
    not_of_the_model = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype", "features_only")
    push_predicted(model, report, {k: v for k, v in kwargs.items() if k not in not_of_the_model})


def _wrap_load_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_pretrained(model: nn.Module, pretrained_cfg: dict[str, Any] | None = None, *args: Any, **kw: Any) -> Any:
        config = pretrained_cfg or getattr(model, "pretrained_cfg", None)
        text = config.get("source") if isinstance(config, dict) else None
        if not is_source(text):
            return original(model, pretrained_cfg, *args, **kw)
        assert config is not None and text is not None
        report = _initialise(model, parse_source(text))
        config.update(cfg_fields(parse_source(report.source)))  # what was really used, "ghn" resolved
        return None

    return load_pretrained


def _initialise(model: nn.Module, source: Source) -> InitReport:
    from .initialize import initialise

    creation = getattr(_current, "creation", None)
    if creation is None:  # a pretrained_cfg of ours, passed on by hand
        if source.push:
            _logger.warning("push=1 has no effect here: it needs timm.create_model, or init_model.")
        return initialise(model, source)
    creation.deferred.close()  # the model is built; tracing it needs no values
    creation.report = initialise(model, source, settle=creation.deferred.settle)
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
            config = copy.copy(base)  # thousands of them: dataclasses.replace would take three times as long
            config.__dict__.update(values)
            registry._model_pretrained_cfgs[tagged] = config
            registry._model_with_tags[name].append(tagged)
            registry._model_has_pretrained.add(tagged)


def _unlist_tags(registry: Any) -> None:
    for tags in registry._model_with_tags.values():
        for tagged in [t for t in tags if t.partition(".")[2] in LISTED_TAGS]:
            tags.remove(tagged)
            registry._model_pretrained_cfgs.pop(tagged, None)
            registry._model_has_pretrained.discard(tagged)

"""Models that cannot be read or written: known before anything is touched, and refused with the way out."""

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..utils.checks import InputError


class _Kind(NamedTuple):
    """A kind of model that is refused, known by the classes of its modules, parameters and buffers."""

    classes: str  # a pattern for their full names, those of their bases included
    what: str
    way_out: str


_FSDP1 = _Kind(
    r"\.FullyShardedDataParallel$|\.FlatParameter$",
    "wrapped in FullyShardedDataParallel (FSDP1), which keeps parameters in flat pieces",
    "Initialise the model before wrapping it, or shard it with torch.distributed.fsdp.fully_shard (FSDP2).",
)
_ZERO3 = _Kind(
    r"^deepspeed\..*(Zero|Init)Param",
    "partitioned by DeepSpeed's ZeRO-3",
    "Initialise the model before deepspeed.initialize, outside deepspeed.zero.Init.",
)
_FAKE = _Kind(
    r"\.FakeTensor$",
    "made of fake tensors, which have no values",
    "Initialise the model outside of FakeTensorMode.",
)
_OFFLOADED = _Kind(
    "",
    "offloaded by accelerate, which fetches its weights in the forward pass",
    "Initialise the model before dispatching it, or take the hooks off: accelerate.hooks.remove_hook_from_submodules.",
)
_KINDS = (
    _Kind(
        r"^torch\.jit\.",
        "scripted or traced with torch.jit, and its Python code is gone",
        "Initialise the Python model, then script or trace that.",
    ),
    _Kind(
        r"^torch\.export\..*ExportedProgram$",
        "an exported program",
        "Initialise the model that it was exported from, then export that.",
    ),
    _Kind(
        r"\.UninitializedTensorMixin$",
        "lazy: its shapes are not known yet",
        "Run a forward pass first, with inputs of the size that the model is for.",
    ),
    _Kind(
        r"^torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.(?!.*\.FloatFunctional$|.*\.FXFloatFunctional$)"
        r"|^(bitsandbytes|torchao|optimum\.quanto|quanto|auto_gptq|gptqmodel|awq|hqq|compressed_tensors)\."
        r"|^(transformers|diffusers)\.(integrations|quantizers)\.(?!.*Mixin$)",
        "quantised",
        "Initialise the model in floating point, then quantise that.",
    ),
    _FSDP1,
    _ZERO3,
    _FAKE,
)
# Kinds that leave the classes as they are, and the attribute of a parameter that gives them away.
_ATTRIBUTES = {"_fsdp_flattened": _FSDP1, "ds_tensor": _ZERO3}


def refuse_unsupported(model: Any, name: str) -> None:
    """Raise where a model, or a part of it, is of a kind that cannot be traced. Nothing is touched.

    Raises:
        ValueError: a scripted, exported, lazy, quantised, offloaded, flatly sharded or fake model, in whole or in part.
        TypeError: no module at all.
    """
    classes: dict[type, _Kind | None] = {}
    for path, key, part in _parts(model):
        cls = type(part)
        if cls not in classes:
            classes[cls] = _kind_of(cls)
        kind = classes[cls] or _kind_by_attributes(part)
        if kind is not None:
            where = f"{path}.{key}".strip(".") or "the model"
            raise InputError(f"{name}: {where} is {kind.what}. {kind.way_out} Nothing was changed.")
    refuse_fake(classes, name)
    if not isinstance(model, nn.Module):
        raise TypeError(f"A model is a torch.nn.Module, not {type(model).__module__}.{type(model).__qualname__}.")


def refuse_fake(classes: Collection[type], name: str) -> None:
    """Raise where tensors are fake: they have no values, and can get none."""
    if FakeTensor in classes or any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()):
        raise InputError(
            f"{name}: tensors are fake. Initialise the model outside of FakeTensorMode. Nothing was changed."
        )


def _parts(model: Any) -> Iterator[tuple[str, str, Any]]:
    """The model, its modules and the tensors that they hold, each with the path of the module and the tensor's name."""
    yield "", "", model
    if isinstance(model, nn.Module):
        for path, module in model.named_modules():
            yield path, "", module
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items() if tensors else ():
                    if tensor is not None:
                        yield path, name, tensor


def _kind_of(cls: type) -> _Kind | None:
    names = "\n".join(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return next((kind for kind in _KINDS if re.search(kind.classes, names, re.MULTILINE)), None)


def _kind_by_attributes(part: Any) -> _Kind | None:
    """The kinds that leave all classes as they are."""
    own = getattr(part, "__dict__", None)
    if not own:
        return None
    hook = own.get("_hf_hook")
    if hook is not None and any(getattr(h, "offload", False) for h in getattr(hook, "hooks", (hook,))):
        return _OFFLOADED
    return next((kind for attribute, kind in _ATTRIBUTES.items() if attribute in own), None)

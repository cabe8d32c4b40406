"""The config in a GHN's file: checked, or read off the tensors where a file has none."""

import math
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..utils.checks import FLAG, InputError, Kind, one_of, whole

if TYPE_CHECKING:
    from torch import Tensor

_SIDE = whole(1, 4096)
_CONFIG: dict[str, Kind] = {
    "max_shape": Kind(
        "four whole numbers from 1 to 4096",
        lambda v: isinstance(v, list | tuple) and len(v) == 4 and all(map(_SIDE.valid, v)),
    ),
    "num_classes": whole(1, 10**6),
    "hypernet": one_of("gatedgnn", "mlp", "graphormer"),
    "decoder": one_of("conv", "mlp"),
    **dict.fromkeys(("weight_norm", "ve", "layernorm"), FLAG),
    "hid": whole(1, 2**14),
    **dict.fromkeys(("heads", "layers"), whole(1, 2**10)),
}
_REQUIRED = ("max_shape", "num_classes")
_NO_CONCERN = ("debug_level", "pretrained", "is_ghn2")  # of the reference's own, with no effect on a prediction


def checked_config(config: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `GHN` that the config of a file with these tensors holds.

    Raises:
        InputError: an entry is missing, unknown or has a value that it cannot have.
    """
    if not isinstance(config, dict):
        raise InputError(f"its config is no dictionary but {type(config).__name__}.")
    config = dict(config)
    if config.get("is_ghn2") is False:  # the reference's trainer says "gatedgnn" for GHN-3 as well
        config["hypernet"] = "graphormer"
    for name in _NO_CONCERN:
        config.pop(name, None)
    for name, value in config.items():
        if name not in _CONFIG:
            raise InputError(
                f"unknown entry {reprlib.repr(name)} in its config; known are {', '.join(_CONFIG)}. "
                "It may need a newer timm_ghn_init."
            )
        if not _CONFIG[name].valid(value):
            raise InputError(f"{name} in its config {_CONFIG[name].problem(value)}.")
    for name in _REQUIRED:
        if name not in config:
            raise InputError(f"its config lacks {name}.")
    multiple = math.lcm(4, config.get("heads", 1))
    if config.get("hid", multiple) % multiple:
        raise InputError(f"hid in its config must be a multiple of 4 and of heads, not {config['hid']}.")
    if 10 * config.get("layers", 0) > len(tensors):  # each has 11, and to build many takes a while
        raise InputError(f"its config says {config['layers']} layers, but it has {len(tensors)} tensors.")
    return config


def inferred_config(tensors: "Mapping[str, Tensor]") -> dict[str, Any]:
    """The config of a bare state dict: GHN-3 as released, or a GHN-2 in the same manner.

    Raises:
        InputError: tensors of a GHN are missing.
    """

    def rows(name: str) -> int:
        if name not in tensors or not tensors[name].shape:
            raise InputError(f"has neither a config nor {name}, so it is no GHN's checkpoint that is known.")
        return tensors[name].shape[0]

    rows("embed.weight")
    width = math.isqrt(rows("decoder.conv.2.weight"))
    kernel = 11 if rows("shape_enc.embed_spatial.weight") == 9 else 16
    config: dict[str, Any] = {
        "max_shape": (width, width, kernel, kernel),
        "num_classes": rows("decoder.class_layer_predictor.1.weight"),
        "hid": tensors["embed.weight"].shape[-1],
        "weight_norm": True,
        "layernorm": "ln.weight" in tensors,
    }
    if "gnn.gru.weight_ih" in tensors:
        return {**config, "ve": any(name.startswith("gnn.mlp_ve.") for name in tensors)}
    layers = sum(re.fullmatch(r"gnn\.\d+\.ln1\.weight", name) is not None for name in tensors)
    heads = rows("gnn.0.attn.proj_e.2.weight")
    return {**config, "hypernet": "graphormer", "ve": True, "heads": heads, "layers": layers}

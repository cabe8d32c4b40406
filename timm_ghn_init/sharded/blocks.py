"""Which modules of a model are sharded each on its own."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def shard_blocks(model: nn.Module, **options: Any) -> None:
    """Apply `fully_shard` to each of a model's `blocks_of`, then to the model.

    The options are those of `fully_shard`. Raises an ImportError if PyTorch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ImportError(f"create_sharded needs fully_shard, so PyTorch 2.6; this is {torch.__version__}.") from error
    for name in [*reversed(list(blocks_of(model))), ""]:  # from the inside out
        fully_shard(model.get_submodule(name), **options)


def blocks_of(model: nn.Module) -> Iterator[str]:
    """Names of the modules that are sharded, and gathered for a forward pass, each on its own.

    Those are the numbered groups of parameters that timm's own `group_matcher` names, as far as they are modules
    ("blocks.3", "stages.1.blocks.0"); without any, the elements of every outermost `nn.Sequential` or `nn.ModuleList`
    that have parameters.

    Example:
        >>> list(blocks_of(timm.create_model("test_vit")))[:2]
        ['blocks.0', 'blocks.1']
    """
    matcher = getattr(model, "group_matcher", None)
    groups = matcher(coarse=False) if callable(matcher) else {}
    patterns = [p for p in _patterns(list(groups.values())) if r"\d" in p] if isinstance(groups, dict) else []
    with_parameters = {n: m for n, m in model.named_modules() if n and next(m.parameters(), None) is not None}
    found = [n for n in with_parameters if any(_is_numbered(p, n) for p in patterns)]
    yield from found or _elements(model, with_parameters)


def _patterns(groups: Any) -> Iterator[str]:
    if isinstance(groups, str):
        yield groups
    elif isinstance(groups, (list, tuple)):
        for group in groups:
            yield from _patterns(group)


def _is_numbered(pattern: str, name: str) -> bool:
    match = re.fullmatch(pattern, name)
    return match is not None and any(g is not None and g.isdigit() for g in match.groups())


def _elements(model: nn.Module, with_parameters: Mapping[str, nn.Module]) -> Iterator[str]:
    outer: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and not any(name.startswith(o) for o in outer):
            outer.append(f"{name}." if name else "")
            names = [f"{outer[-1]}{child}" for child, _ in module.named_children()]
            yield from (n for n in names if n in with_parameters)

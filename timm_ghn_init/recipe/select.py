"""Weight selection: entries of a larger network of the same family (Xu et al., ICLR 2024, arXiv 2311.18823)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def select(model: nn.Module, seed: int, **keys: str) -> Iterator[tuple[str, Tensor | str]]:
    """Entries of a larger network of the same family.

    Layers are matched by name, so those of each stage come from the first ones of the teacher's stage. A classifier of
    other classes stays as it is.

    Args:
        model: the smaller network.
        seed: has no effect.
        keys: `from`, the teacher, a timm architecture with or without a tag, whose weights are loaded as timm loads
            them; `weights`, a file to take its weights from instead, which needs no network.

    Raises:
        ValueError: no teacher is named, or one of the model's parameters does not fit: it names the first.

    Example:
        >>> init_model(timm.create_model("vit_tiny_patch16_224"), "select?from=vit_small_patch16_224.augreg_in21k")
    """
    if "from" not in keys:
        raise ValueError("select needs a teacher: select?from=ARCH[.TAG], and &weights=PATH for a file of its weights")
    teacher = _teacher(keys["from"], keys.get("weights"))
    heads = _classifier(model)
    for name, p in model.named_parameters():
        larger = teacher.get(name)
        if name.startswith(heads) and larger is not None and larger.shape[:1] != p.shape[:1]:
            yield name, f"classifier of {p.shape[0]} classes, the teacher's has {larger.shape[0]}"
            continue
        problem = _problem(p, larger)
        if problem:
            raise ValueError(f"{keys['from']} does not fit: {name} {problem}")
        assert larger is not None
        yield name, entries(larger, p.shape)


def entries(large: Tensor, shape: torch.Size) -> Tensor:
    """Entries of a tensor at even distances: every n-th, where n is whole, else those nearest to equal distances.

    >>> entries(torch.arange(6), torch.Size([3]))
    tensor([0, 2, 4])
    >>> entries(torch.arange(5), torch.Size([3]))
    tensor([0, 2, 4])
    """
    for dim, (most, few) in enumerate(zip(large.shape, shape, strict=True)):
        if most != few:
            index = torch.arange(0, most, most // few) if most % few == 0 else _even(most, few)
            large = large.index_select(dim, index)
    return large


def _even(most: int, few: int) -> Tensor:
    return torch.linspace(0, most - 1, few, dtype=torch.float64).round().long()


def _problem(p: Tensor, larger: Tensor | None) -> str | None:
    """Why a parameter cannot be selected; None if it can."""
    if larger is None:
        return "is not in it"
    if larger.dim() != p.dim() or any(most < few for most, few in zip(larger.shape, p.shape, strict=True)):
        return f"has the shape {tuple(p.shape)}, the teacher's {tuple(larger.shape)}, which is not larger"
    return None


def _teacher(name: str, path: str | None) -> Mapping[str, Tensor]:
    """The teacher's weights."""
    import timm

    if path is not None:
        return timm.models.load_state_dict(path, device="cpu", weights_only=True)  # type: ignore[no-any-return]
    return timm.create_model(name, pretrained=True).state_dict()


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """The prefixes of the names of a timm model's classifier."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, dict) else None
    return tuple(f"{n}." for n in ([names] if isinstance(names, str) else names or []))

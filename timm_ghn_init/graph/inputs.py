"""What a model wants to be called with."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

DEFAULT = (3, 224, 224)
# Sizes to try where a model says nothing of itself and refuses 224.
FALLBACK = (224, 256, 299, 384, 32)


def example_sizes(model: nn.Module, input_size: int | Sequence[Any] | None) -> Iterator[list[tuple[int, ...]]]:
    """Input sizes to try, best first: one (C, H, W) per input of the model.

    Raises:
        ValueError: `input_size` is not an int, (H, W), (C, H, W) or a list of (C, H, W).
    """
    channels, declared = _declared(model)
    if input_size is not None:
        yield _parse(input_size, channels)
        return
    tried: list[tuple[int, ...]] = []
    for size in (*declared, *((s, s) for s in FALLBACK)):
        shape = (channels, *size)
        if shape not in tried:
            tried.append(shape)
            yield [shape]


def _declared(model: nn.Module) -> tuple[int, list[tuple[int, int]]]:
    """Channels and (H, W) that the model declares: timm's traits and config, torchvision's habits."""
    config = attribute(model, "pretrained_cfg") or attribute(model, "default_cfg")
    config = config if isinstance(config, dict) else {}
    traits = attribute(model, "_traits") or {}
    sizes: list[Any] = [traits.get("img_size")]
    sizes.append(attribute(attribute(model, "patch_embed"), "img_size"))
    sizes.append((config.get("input_size") or ())[-2:])
    sizes.append(attribute(model, "image_size"))
    # The first convolution is the truth about channels: `in_chans` changes it and leaves the config alone.
    first = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    channels = first.in_channels if first is not None else (config.get("input_size") or DEFAULT)[0]
    if in_chans := attribute(model, "in_chans"):
        channels = int(in_chans)
    return channels, [pair for size in sizes if (pair := _pair(size)) is not None]


def attribute(thing: Any, name: str) -> Any:
    """An attribute, None where there is none or where asking for it raises."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int) and size > 0:
        return (size, size)
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(s, int) for s in size):
        return (size[0], size[1])
    return None


def _parse(size: int | Sequence[Any], channels: int) -> list[tuple[int, ...]]:
    if isinstance(size, int):
        size = (size, size)
    size = tuple(size) if isinstance(size, Sequence) else (size,)
    if size and all(isinstance(s, (tuple, list)) for s in size):
        return [shape for s in size for shape in _parse(s, channels)]
    if not all(isinstance(s, int) and s > 0 for s in size) or len(size) not in (2, 3, 4):
        raise ValueError(f"input_size must be an int, (H, W), (C, H, W) or a list of (C, H, W), not {size!r}.")
    return [size if len(size) > 2 else (channels, *size)]

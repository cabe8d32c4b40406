"""`compare`: two files of weights or sources."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import MODEL_OPTIONS, RANDOM, command, opt
from .messages import UserError, one_line, table
from .results import show

if TYPE_CHECKING:
    from torch import Tensor

    from ..lab.analysis.difference import Difference

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


# Weights by name, and the names of those that were predicted; None if unknown.
_Weights = tuple["dict[str, Tensor]", frozenset[str] | None]


@command(
    "compare ghn2 ghn2-orth --arch resnet50",
    opt("first", "a file or folder of weights, a source, pretrained or timm", metavar="A"),
    opt("second", "the same", metavar="B"),
    opt("--arch", "architecture, for sources (default: that of a file of predict)", metavar="ARCH"),
    *MODEL_OPTIONS,
    RANDOM,
)
def compare(args: argparse.Namespace) -> int:
    """Compare two files of weights or sources, tensor by tensor; exit status 1 if they differ."""
    from ..lab.analysis.difference import differences, summary

    files = [_file(text) for text in (args.first, args.second)]
    about = next((a for path in files if path and (a := _about(path))), {})
    (first, set_first), (second, set_second) = (
        _read(path) if path else _initialised(text, args, about)
        for path, text in zip(files, (args.first, args.second), strict=True)
    )
    rows = differences(first, second)
    total = summary(rows)
    if set_first is not None and set_second is not None:
        total["predicted in A only"] = sorted(set_first - set_second)
        total["predicted in B only"] = sorted(set_second - set_first)
    show(args, {**total, "tensors": [row._asdict() for row in rows]}, lambda: _as_text(rows, total))
    return 0 if len(total["equal"]) == len(rows) else 1


def _file(text: str) -> Path | None:
    """The file that a text names; None for a source."""
    path = Path(text)
    if path.is_dir():
        path = path / "model.safetensors"  # as written by predict -o DIR/ and bake
    if path.suffix not in _SUFFIXES or text.startswith("file:"):
        return None
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    return path


def _about(path: Path) -> dict[str, Any]:
    """The metadata of a file that this package has written; {} for other files."""
    from ..weights.files import WeightsError, read_about

    try:
        return read_about(path)
    except WeightsError:
        return {}


def _read(path: Path) -> _Weights:
    """The tensors of a file; nothing in it is run."""
    import torch
    from safetensors.torch import load_file
    from timm.models import clean_state_dict

    from ..checkpoints.torch_files import read_torch

    try:
        tensors: Any = load_file(path) if path.suffix == ".safetensors" else read_torch(path)
        if isinstance(tensors, dict):  # as training scripts save them
            tensors = tensors.get("state_dict", tensors.get("model", tensors))
        if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
            raise ValueError(f"it holds {type(tensors).__name__}, and not only tensors")
        tensors = clean_state_dict(tensors)
    except Exception as error:  # each format, and each kind of damage, raises its own type
        reason = one_line(error)[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as weights, tensors by name: {reason}") from error
    predicted = _about(path).get("predicted")
    return tensors, None if predicted is None else frozenset(predicted)


def _initialised(init: str, args: argparse.Namespace, about: dict[str, Any]) -> _Weights:
    """The weights of a source, for the architecture of an option or of the other file."""
    from ..lab.analysis.inits import initialised
    from .models import with_weights

    arch = args.arch or about.get("architecture")
    if not isinstance(arch, str):
        raise UserError(f"{init}: for which architecture? Add --arch ARCH.")
    if args.arch is None and args.num_classes is None:
        args.num_classes = about.get("num_classes")
    args.arch = arch
    made = initialised(lambda pretrained: with_weights(args, pretrained), init, seed=args.seed)
    return made.model.state_dict(), made.predicted


_REMARKS = {
    "shape": "of another shape",
    "first": "in A only",
    "second": "in B only",
    "predicted in A only": "predicted in A only",
    "predicted in B only": "predicted in B only",
}


def _as_text(rows: "list[Difference]", total: dict[str, Any]) -> str:
    differing = [row for row in rows if not row.equal]
    lines = []
    if differing:
        header = ("tensor", "A", "B", "norm A", "norm B", "distance", "correlation")
        lines += [table(header, map(_cells, differing)), ""]
    lines.append(
        f"{len(total['equal'])} of {len(rows)} tensors are equal to the bit; the distance of all that both have is "
        f"{total['distance']:.3g} of the larger norm."
    )
    for name, remark in _REMARKS.items():
        if names := total.get(name):
            lines.append(f"{remark}: {len(names)} ({names[0]}{' ...' * (len(names) > 1)})")
    return "\n".join(lines)


def _cells(row: "Difference") -> tuple[str, ...]:
    shapes = ["-" if s is None else "x".join(map(str, s)) or "scalar" for s in row.shapes]
    numbers = [*row.norms, row.distance, row.correlation]
    return row.name, *shapes, *("-" if n is None else f"{n:.3g}" for n in numbers)

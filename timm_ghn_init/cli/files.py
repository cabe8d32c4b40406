"""Files and folders that a command writes."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import replacing, replacing_folder
from ..version import __version__
from .messages import UserError
from .results import plain, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def output_path(path: str, suffixes: tuple[str, ...], folder: bool = False) -> Path:
    """Check, before the work, that an output can be written.

    Args:
        path: as the user wrote it.
        suffixes: that a file may have.
        folder: whether it may be a folder instead, see `is_folder`.

    Raises:
        UserError: wrong suffix, missing folder, no permission.
    """
    output = Path(path)
    as_folder = folder and is_folder(path)
    if as_folder and output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, not a folder.")
    if not as_folder:
        if output.suffix.lower() not in suffixes:
            or_folder = ", or in / for a folder" if folder else ""
            raise UserError(f"{output}: the output must end in {' or '.join(suffixes)}{or_folder}.")
        if output.is_dir():
            raise UserError(f"{output}: is a folder.")
    parent = output if output.is_dir() else output.parent
    if not parent.is_dir():
        raise UserError(f"{output}: there is no folder {parent}.")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{output}: the folder {parent} cannot be written to.")
    return output


def is_folder(path: str) -> bool:
    """Whether a path is meant to be a folder: it ends in a slash."""
    return path.endswith(("/", os.sep))


@contextmanager
def writing(output: Path, folder: bool = False) -> Iterator[Path]:
    """A temporary file that becomes `output`, or a folder whose files move into it, at the end of the block."""
    try:
        with (replacing_folder if folder else replacing)(output) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error


def picture_path(args: argparse.Namespace) -> Path | None:
    """The output file, checked before the work; None for --json alone."""
    from ..lab.pictures import style

    if args.output is None:
        if args.json:
            return None
        raise UserError("-o FILE.svg (or .png, .json) is missing: name an output file, or add --json.")
    output = output_path(args.output, (".svg", ".png", ".json"))
    if output.suffix.lower() != ".json":
        with style():  # matplotlib is there
            pass
    return output


def present(
    args: argparse.Namespace,
    output: Path | None,
    data: dict[str, Any],
    figure: "Callable[[dict[str, Any]], Figure]",
    text: Callable[[dict[str, Any]], str],
) -> None:
    """Write the numbers and a picture of them, and show which files were written."""
    import timm
    import torch

    from ..lab.pictures import rendered, style

    data |= {"versions": {"timm_ghn_init": __version__, "timm": timm.__version__, "torch": torch.__version__}}
    contents: dict[Path, bytes] = {}
    if output is not None:
        contents[output.with_suffix(".json")] = json.dumps(plain(data), allow_nan=False).encode() + b"\n"
        if output.suffix.lower() != ".json":
            with style():
                contents[output] = rendered(figure(data), output.suffix.lower())
    for path, content in contents.items():
        with writing(path) as temporary:
            temporary.write_bytes(content)
    files = list(contents)
    show(args, {**data, "files": files}, lambda: "\n".join((*map(str, files), "", text(data))))

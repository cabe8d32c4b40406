"""Files and folders that a command writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.files import replacing, replacing_folder
from .messages import UserError


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
def writing(output: Path) -> Iterator[Path]:
    """A temporary file that becomes `output` when the block ends without an error."""
    with _write_errors(output), replacing(output) as temporary:
        yield temporary


@contextmanager
def writing_folder(output: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `output` when the block ends without an error."""
    with _write_errors(output), replacing_folder(output) as temporary:
        yield temporary


@contextmanager
def _write_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error

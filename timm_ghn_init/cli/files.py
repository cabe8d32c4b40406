"""Files and folders that a command writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.files import replacing, replacing_folder
from .messages import UserError


def output_path(path: str, suffixes: tuple[str, ...], folder: bool = False) -> Path:
    """A path that can be written, as far as can be seen before the work.

    Args:
        path: as the user wrote it.
        suffixes: of files.
        folder: whether it may be a folder instead, see `is_folder`.
    """
    output = Path(path)
    if folder and is_folder(path):
        if output.exists() and not output.is_dir():
            raise UserError(f"{output}: is a file, not a folder.")
        _check_writable(output if output.is_dir() else output.parent, output)
        return output
    if output.suffix.lower() not in suffixes:
        raise UserError(
            f"{output}: the output must end in {' or '.join(suffixes)}{', or in / for a folder' if folder else ''}."
        )
    if output.is_dir():
        raise UserError(f"{output}: is a folder.")
    _check_writable(output.parent, output)
    return output


def is_folder(path: str) -> bool:
    """Whether a path is meant to be a folder: it ends in a slash."""
    return path.endswith(("/", os.sep))


def _check_writable(folder: Path, output: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{output}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{output}: the folder {folder} cannot be written to.")


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A file to write that becomes `output` when it is complete."""
    with _write_errors(output), replacing(output) as temporary:
        yield temporary


@contextmanager
def writing_folder(output: Path) -> Iterator[Path]:
    """A folder to fill whose files become those of `output` when all of them are complete."""
    with _write_errors(output), replacing_folder(output) as temporary:
        yield temporary


@contextmanager
def _write_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error

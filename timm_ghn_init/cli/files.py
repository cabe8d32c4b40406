"""Files and folders that a command writes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    with _write_errors(output):
        try:
            yield temporary
            os.replace(temporary, output)
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def writing_folder(output: Path) -> Iterator[Path]:
    """A folder to fill whose files become those of `output` when all of them are complete."""
    within = output if output.is_dir() else output.parent  # on one file system with what it becomes
    temporary = within / f".{output.name}.{os.getpid()}.tmp"
    with _write_errors(output):
        try:
            temporary.mkdir()
            yield temporary
            if within != output:
                os.replace(temporary, output)
            else:
                for file in sorted(temporary.iterdir()):
                    os.replace(file, output / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _write_errors(output: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error

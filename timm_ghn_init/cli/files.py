"""Files that a command writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .messages import UserError


def output_path(path: str, suffixes: tuple[str, ...]) -> Path:
    """A path that can be written, as far as can be seen before the work."""
    output = Path(path)
    if output.suffix.lower() not in suffixes:
        raise UserError(f"{output}: the output must end in {' or '.join(suffixes)}.")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}.")
    if output.is_dir():
        raise UserError(f"{output}: is a folder.")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"{output}: the folder {output.parent} cannot be written to.")
    return output


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A file to write that becomes `output` when it is complete."""
    from safetensors import SafetensorError

    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()

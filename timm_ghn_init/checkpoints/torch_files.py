"""Read what `torch.save` wrote: archives, and the format before them."""

import re
import zipfile
from pathlib import Path
from typing import Any

from ..utils.checks import InputError
from ..utils.text import as_cause


def read_torch(path: Path) -> Any:
    """The saved object, on the CPU; tensors of an archive are mapped from the file.

    Raises:
        InputError: it is damaged, or holds other things than tensors and plain values; the message names one.
    """
    import torch

    _admit_numpy_scalars()
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except InputError:
        raise
    except Exception as error:  # damaged files raise all kinds
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            cause = str(error).split("\n")[0]
            raise InputError(f"damaged ({type(error).__name__}: {cause}). Download or export it again.") from as_cause(
                error
            )
        name = found[1].removeprefix("builtins.")
        raise InputError(
            f"a pickle that holds other things than tensors and plain values, which is never read: {name}. Save it "
            f"without them, or, if you trust whoever wrote it, torch.serialization.add_safe_globals([{name}])."
        ) from None


def _admit_numpy_scalars() -> None:
    """Let PyTorch read NumPy's numbers, such as the accuracy in a trainer's checkpoint. They run no code.

    The admission stays for the process: to take it back would take it from other threads in the middle of a file.
    """
    import numpy as np
    import torch

    numbers = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([scalar, np.dtype, *{type(np.dtype(number)) for number in numbers}])


def _check_archive(path: Path) -> None:
    """Raise if an archive is damaged, or packed by another program: PyTorch would read other values, silently."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise InputError("a packed archive, which is not read: save it again with torch.save.")
            if entry.CRC:  # PyTorch can be told to write none
                with archive.open(entry) as file:
                    while file.read(2**20):
                        pass

"""One GHN in one file: read from four formats and checked, written in one.

Read are safetensors (ours, with the config in the metadata), `torch.save`d checkpoints (ppuda's) and joblib pickles
(GHN-3's). No file runs code. Files without a config have it read off their tensors.
"""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.checks import InputError, is_finite
from ..utils.safetensors_files import write_tensors
from ..utils.text import Told, as_cause
from .config import checked_config, inferred_config
from .joblib_files import read_joblib
from .torch_files import read_torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..ghn import GHN

_MAX_BYTES = 2**34

# Names in released GHN-3 files -> names in the module.
_RENAMED = {
    f"{name}.weight": f"gnn.0.{name}.weight"
    for name in ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")
}
# What DataParallel and DDP, and torch.compile, put before the names of what they wrap.
_WRAPPERS = ("module.", "_orig_mod.")


class CheckpointError(Told, RuntimeError):
    """A GHN's file cannot be fetched, read or trusted. The message names the file, the cause and what to do."""


def read_ghn(path: Path, device: Any = "cpu") -> "GHN":
    """The GHN in a file, whichever format it has, after its config and tensors were checked against each other.

    It is in eval mode, float32, without gradients. The file is not used any more; the random state is left alone.

    Raises:
        CheckpointError: no such file, an unknown or damaged format, objects other than tensors and plain values in a
            pickle, an unknown or wrong value in the config, tensors that do not belong to it, NaN or inf.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}. Give the path of a GHN's checkpoint.")
    with _errors_name(path, "damaged"):
        contents = _read(path)
        tensors = _named(contents.tensors)
        ghn = _empty_ghn(contents, tensors)
        shapes = {name: tuple(t.shape) for name, t in ghn.state_dict().items()}
        _check_tensors(shapes, tensors)
    state = {}
    for name, shape in shapes.items():
        with _errors_name(path, f"{name} cannot be read"):
            state[name] = _value(tensors[name].detach(), name, shape, device)
    ghn.load_state_dict(state, assign=True)
    return ghn.eval().requires_grad_(False)


def write_ghn(path: Path, ghn: "GHN", metadata: Mapping[str, str]) -> None:
    """Write our format: safetensors, with the GHN's facts in the metadata. The file is half-written if this raises.

    Other entries of the metadata take precedence over those of `ghn.facts`, except for its config.

    Raises:
        CheckpointError: a tensor holds NaN or inf.
    """
    facts = ghn.facts.metadata()
    with _errors_name(path, "cannot be written"):
        state = {n: _value(t.detach(), n, tuple(t.shape), "cpu") for n, t in ghn.state_dict().items()}
    write_tensors(path, state, {**facts, **metadata, "config": facts["config"]})


# Reading


class _Contents(NamedTuple):
    """The content of a file, before anything in it is checked."""

    config: Any  # None where the file has none
    tensors: Any
    metadata: dict[str, str]


def _read(path: Path) -> _Contents:
    """By the first bytes; the suffix does not tell (GHN-3's joblib pickles are called .pt)."""
    with open(path, "rb") as f:
        head = f.read(16)
    if re.match(rb".{4}\0{4}\{", head, re.DOTALL):
        return _read_safetensors(path)
    reader = next((reader for magic, reader in _PICKLED.items() if re.match(magic, head)), None)
    if reader is None:
        raise InputError(
            f"neither a safetensors file nor a checkpoint of PyTorch or joblib (it begins with {head!r}). If it was "
            "downloaded, it may be an error page or a Git LFS pointer: download it again."
        )
    loaded = reader(path)
    if isinstance(loaded, dict) and "state_dict" in loaded:
        return _Contents(loaded.get("config"), loaded["state_dict"], {})
    return _Contents(None, loaded, {})


_PICKLED: dict[bytes, Callable[[Path], Any]] = {
    rb"PK\x03\x04|\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": read_torch,
    rb"\x80[\x02-\x05]|\x78[\x01\x5e\x9c\xda]|\x1f\x8b": read_joblib,
}


def _read_safetensors(path: Path) -> _Contents:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    text = metadata.get("config")
    try:
        return _Contents(None if text is None else json.loads(text), tensors, metadata)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config in its metadata is no JSON: {error}.") from None


# Checking


def _named(tensors: Any) -> "dict[str, Tensor]":
    """The tensors of a file by the names of a GHN's state dict."""
    import torch

    if not isinstance(tensors, dict) or not tensors:
        raise InputError(f"holds no state dict (it is {type(tensors).__name__}). Is it a GHN's checkpoint?")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"the entry {reprlib.repr(name)} is no tensor. Is it a GHN's state dict?")
    wrapped = 0  # characters that wrappers have put before all names
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p, wrapped) for name in tensors)), ""):
        wrapped += len(prefix)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = _RENAMED.get(name[wrapped:], name[wrapped:])
        if name in named:
            raise InputError(f"has {name} twice, under both of its names. Remove one.")
        named[name] = tensor
    return named


def _empty_ghn(contents: _Contents, tensors: "Mapping[str, Tensor]") -> "GHN":
    """A GHN with a file's facts, without memory for its tensors."""
    import torch

    from ..ghn import GHN, Facts

    config = inferred_config(tensors) if contents.config is None else contents.config
    config = checked_config(config, tensors)
    try:
        facts = Facts.read({**contents.metadata, "config": json.dumps(config)})
    except ValueError as error:
        raise InputError(str(error)) from None
    with torch.device("meta"):
        ghn = GHN.of(facts)
    size = sum(t.nbytes for t in ghn.state_dict().values())
    if size > _MAX_BYTES:
        raise InputError(f"claims to hold {size >> 30} GiB of tensors. No GHN is that large.")
    return ghn


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], tensors: "Mapping[str, Tensor]") -> None:
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or extra:
        both = ((missing, "missing"), (extra, "unknown"))
        parts = [f"{len(names)} {what} ({_some(names)})" for names, what in both if names]
        raise InputError(
            f"its tensors do not fit its config: {' and '.join(parts)}. Is it a GHN's checkpoint, and whole?"
        )
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        # A 1 x 1 convolution may be kept as the matrix that it is.
        if [n for n in found if n != 1] != [n for n in shape if n != 1]:
            raise InputError(
                f"{name} has the shape {found}, but the config asks for {shape}. "
                "The file mixes two GHNs: export it again."
            )


def _some(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _value(tensor: "Tensor", name: str, shape: tuple[int, ...], device: Any) -> "torch.Tensor":
    """A tensor in memory of its own, float32: nobody else's file or tensor, and aligned as PyTorch aligns all."""
    import torch

    if not tensor.is_floating_point():
        raise TypeError(f"it is {tensor.dtype}, not floating point")
    value = torch.empty(shape, dtype=torch.float32, device=device)
    value.copy_(tensor.reshape(shape))
    if not is_finite(value):
        raise InputError(f"{name} holds NaN or inf values. Use another checkpoint of this GHN.")
    return value


@contextmanager
def _errors_name(path: Path, what: str) -> Iterator[None]:
    """Whatever is raised about a file becomes a CheckpointError that names the file and the cause.

    All exceptions, because readers of damaged files raise all kinds: RuntimeError, EOFError, KeyError, struct.error ...
    """
    try:
        yield
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:
        cause = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: {what} ({type(error).__name__}: {cause}). Download or export it again."
        ) from as_cause(error)

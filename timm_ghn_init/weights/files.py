"""Finished weights as safetensors files that say in their metadata how they came about."""

import hashlib
import json
import platform
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.safetensors_files import as_bytes, write_tensors
from ..utils.text import Told, as_cause
from ..version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..report import InitReport

METADATA_KEY = "timm_ghn_init"


class WeightsError(Told, RuntimeError):
    """A file of weights is damaged, or not one of ours. The message names the file and the cause."""


def state_dict(model: "nn.Module") -> "dict[str, Tensor]":
    """All entries of a model as `plain` tensors: tied ones under each name, as strict loading wants them."""
    return plain(model.state_dict())


def plain(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors on CPU, contiguous, none sharing memory with another; copied only where they are not so already."""
    result: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        if t.untyped_storage().data_ptr() in storages or t.untyped_storage().nbytes() > t.nbytes:
            t = t.clone()
        storages.add(t.untyped_storage().data_ptr())
        result[name] = t
    return result


def digest(tensors: "Mapping[str, Tensor]") -> str:
    """sha256, in hex, over names, dtypes, shapes and values, whatever the order and the device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        add_to_digest(total, name, tensors[name].detach().cpu().contiguous())
    return total.hexdigest()


def add_to_digest(total: Any, name: str, tensor: "Tensor") -> None:
    """One more tensor, contiguous and on the CPU, for a `digest`; they come in the order of their names."""
    total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    total.update(as_bytes(tensor))


def metadata_of(about: Mapping[str, Any], digest: str) -> dict[str, str]:
    """The metadata of a file, as `save` writes them."""
    return {METADATA_KEY: json.dumps({**about, "digest": digest})}


def save(path: Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, Any]) -> str:
    """Write `plain` tensors, and plain values on how they came about; returns the `digest`, which is added to these.

    The same arguments give the same bytes. The file is half-written if this raises: a ValueError for a dtype that the
    format does not know, an OSError if it cannot be written.
    """
    found = digest(tensors)
    write_tensors(path, tensors, metadata_of(about, found))
    return found


def read(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Read and verify what `save` wrote. Nothing is unpickled, and a link is not followed.

    Returns:
        The tensors, which are views of the file as it is mapped into memory, and what `save` was told about them.

    Raises:
        WeightsError: not what `save` wrote.
        OSError: no such file, or one that cannot be read.
    """
    with _opened(path) as (file, about):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        if about.get("digest") != digest(tensors):
            raise ValueError("its tensors are not those that were written")
    return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file; its tensors are not read. Raises as `read` does."""
    with _opened(path) as (_, about):
        return about


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is a link, a folder or a device")
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            if not isinstance(about, dict):
                raise ValueError(f"its metadata have no {METADATA_KEY}")
            yield file, about
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged, or not a file of this package: {error}") from as_cause(error)


def provenance(
    architecture: str, model: "nn.Module", report: "InitReport", options: Mapping[str, Any], seed: int | None
) -> dict[str, Any]:
    """How the weights of a model came about; nothing that differs between two runs of one command.

    The options are those with which `create_model` built it. The seed is of everything that was random, timm's own
    initialisation included; None if it is not known.
    """
    import timm
    import torch

    from ..checkpoints.load import fetch, sha256
    from ..sources import parse_source

    source = parse_source(report.source)
    ghn = None if source.initialisation else {"name": source.name, "sha256": sha256(fetch(source))}
    if ghn and source.known:
        ghn |= {"origin": source.known.origin, "license": source.known.license, "paper": f"arXiv:{source.known.arxiv}"}
    return {
        "source": report.source,
        "ghn": ghn,
        "functions": {part.name: part.initialisation.digest for part in source.parts if part.initialisation},
        "architecture": architecture,
        "num_classes": getattr(model, "num_classes", None),
        "options": dict(options),
        "seed": seed,
        "coverage": report.coverage,
        "predicted": report.predicted,
        "skipped": report.skipped,
        "layer": report.layer,
        "postprocessed": report.postprocessed,
        "device": report.device,
        "versions": {
            "timm_ghn_init": __version__,
            "timm": timm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }

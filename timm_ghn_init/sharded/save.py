"""Sharded weights as one file, no rank ever holding more than one whole tensor."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..graph import model_name
from ..report import InitReport
from ..utils.checks import InputError
from ..utils.files import own_folder
from ..utils.safetensors_files import as_bytes, header
from ..utils.safetensors_files import layout as file_layout
from ..weights.files import add_to_digest, metadata_of, provenance
from .layout import check_layout
from .meeting import Meeting


def save_sharded(
    model: nn.Module,
    path: str | Path,
    report: InitReport | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    timeout: float | None = None,
) -> None:
    """Write a sharded model's state dict to one safetensors file, tensor by tensor. All ranks of the mesh must call it.

    The first rank of the mesh writes. Each rank holds one whole tensor at a time. The file is what
    `timm-ghn-init predict` writes, and timm's `--initial-checkpoint` or `load_state_dict` reads it. For checkpoints of
    a training run use `torch.distributed.checkpoint`.

    Args:
        model: with DTensors for parameters.
        path: should end in .safetensors. An older file there is replaced when the new one is complete.
        report: what `init_model` returned, for the provenance in the file's metadata.
        options: what `timm.create_model` was given, for the same.
        seed: of timm's own initialisation, for the same.
        timeout: seconds to wait for another rank before the first tensor and after the last. Default: 1800.

    Raises:
        OSError: the file cannot be written; then no part of it is left.
        ValueError: the model is sharded in part or in a way that is not supported, or a dtype that the format does
            not know.
        RuntimeError: another rank has failed, is gone or did not come.
    """
    name, path = model_name(model), Path(path)
    mesh = next((p.device_mesh for p in model.parameters() if isinstance(p, DTensor)), None)
    if mesh is None:
        raise InputError(f"{name} is not sharded: save its state dict.")
    with Meeting(name, mesh) as meeting, ExitStack() as stack:
        meeting.timeout = meeting.timeout if timeout is None else timeout
        check_layout(model, name, mesh)
        tensors = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
        writers: list[_Writer] = []

        def begin() -> None:
            if meeting.rank == 0:
                about = {} if report is None else provenance(name, model, report, options or {}, seed)
                writers.append(stack.enter_context(_writer(path, tensors, about)))

        meeting(f"opening {path}", begin)
        for key in sorted(tensors):
            tensor = tensors[key]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for write in writers:
                write(key, whole)
            del whole
        meeting(f"writing {path}", stack.close)


_Writer = Callable[[str, Tensor], None]


@contextmanager
def _writer(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Iterator[_Writer]:
    """Writes the tensors of a file in the order of their names; the file gets its name at the end of the block.

    The first error is raised only there, so that no rank is kept waiting for this one.
    """
    path = Path(os.path.realpath(path))  # a link stays
    entries, digest, errors = file_layout(tensors), hashlib.sha256(), list[Exception]()
    text, starts = header(entries, metadata_of(about, "0" * 64))  # the digest is known at the end
    with own_folder(path.parent) as folder:
        with open(folder / path.name, "wb") as file:
            file.write(text)

            def write(name: str, tensor: Tensor) -> None:
                try:
                    values = tensor.detach().cpu().contiguous()
                    add_to_digest(digest, name, values)
                    file.seek(starts[name])
                    file.write(as_bytes(values))
                except Exception as error:
                    errors.append(error)

            yield write
            if errors:
                raise errors[0]
            file.seek(0)
            file.write(header(entries, metadata_of(about, digest.hexdigest()))[0])
            file.flush()
            os.fsync(file.fileno())
        (folder / path.name).replace(path)

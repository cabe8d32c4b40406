"""Sharded weights as one file, no rank ever holding more than one whole tensor."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..graph import model_name
from ..report import InitReport
from ..utils.checks import InputError
from ..utils.files import own_folder
from ..utils.safetensors_files import as_bytes, header
from ..utils.safetensors_files import layout as file_layout
from ..weights.files import add_to_digest, metadata_of, provenance
from .layout import layout_of, mesh_of
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
    mesh = mesh_of(model)
    if mesh is None:
        raise InputError(f"{name} is not sharded: save its state dict.")
    with ExitStack() as stack:
        meeting = stack.enter_context(Meeting(name, mesh))
        meeting.timeout = meeting.timeout if timeout is None else timeout
        layout = layout_of(model, name)
        tensors = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
        writer = _Writer(path, tensors) if layout.rank == 0 else None

        def begin() -> None:
            if writer is not None:
                stack.callback(writer.clean_up)
                writer.begin({} if report is None else provenance(name, model, report, options or {}, seed))

        meeting(f"opening {path}", begin)
        for key in sorted(tensors):
            tensor = tensors[key]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if writer is not None:
                writer.add(key, whole)
            del whole
        meeting(f"writing {path}", lambda: None if writer is None else writer.finish())


class _Writer:
    """A file that grows by one tensor at a time.

    Errors are raised at the end, so that no rank is kept waiting for this one.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._path, self._stack = Path(os.path.realpath(path)), ExitStack()  # a link stays
        self._entries = file_layout(tensors)
        self._digest = hashlib.sha256()
        self._file: BinaryIO
        self._error: Exception | None = None

    def begin(self, about: Mapping[str, Any]) -> None:
        """Open a temporary file. Facts about the tensors go into its metadata."""
        self._about = about
        text, self._starts = self._header("0" * 64)  # the digest is known at the end
        self._temporary = self._stack.enter_context(own_folder(self._path.parent)) / self._path.name
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by `finish`)
        self._file.write(text)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor. They come in the order of their names."""

        def write() -> None:
            values = tensor.detach().cpu().contiguous()
            add_to_digest(self._digest, name, values)
            self._file.seek(self._starts[name])
            self._file.write(as_bytes(values))

        self._try(write)

    def finish(self) -> None:
        """Close the file and give it its name, or raise what went wrong."""
        text, _ = self._header(self._digest.hexdigest())
        self._try(lambda: self._file.seek(0))
        self._try(lambda: self._file.write(text))
        self._try(self._file.flush)
        self._try(lambda: os.fsync(self._file.fileno()))
        self._try(self._file.close)
        if self._error is None:
            self._try(lambda: self._temporary.replace(self._path))
        if self._error is not None:
            raise self._error

    def clean_up(self) -> None:
        """Leave nothing behind but the finished file."""
        self._stack.close()

    def _header(self, digest: str) -> tuple[bytes, dict[str, int]]:
        return header(self._entries, metadata_of(self._about, digest))

    def _try(self, step: Callable[[], object]) -> None:
        if self._error is None:
            try:
                step()
            except Exception as error:
                self._error = error

"""Whole weights between the ranks that hold parts of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .layout import Layout
from .share import communication_device


class _Transfer(NamedTuple):
    work: Any
    about: str  # for messages
    finish: Callable[[], object]


class Exchange:
    """Sends parts of weights from rank to rank, and waits for them later.

    All ranks must call the same methods in the same order.

    Args:
        layout: of the model.
        model: its name, for messages.
        timeout: seconds to wait for one part.
    """

    def __init__(self, layout: Layout, model: str, timeout: float) -> None:
        self._layout, self._model, self._timeout = layout, model, timeout
        self._device = communication_device(layout.mesh)
        self._group = layout.mesh.get_group() if layout.mesh.ndim == 1 else None  # of two dimensions: the whole job
        self._operations: list[tuple[dist.P2POp, str, Callable[[], object]]] = []

    def gather(self, parameters: Mapping[str, tuple[Tensor, int]]) -> Tensor | None:
        """Bring weights together, each on one rank.

        Args:
            parameters: by name, with the rank that is to have it whole; no rank twice.

        Returns:
            The one for this rank, on the device of its part; None if there is none.
        """
        layout, whole = self._layout, None
        for name, (parameter, owner) in parameters.items():
            holders = {layout.box(parameter, r): r for r in reversed(range(layout.size))}  # of copies the first
            if owner == layout.rank:
                whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                for box, holder in holders.items():
                    if holder == owner:
                        box.of(whole).copy_(local(parameter))
                    else:
                        self._receive(box.of(whole), holder, name)
            elif holders[own := layout.own_box(parameter)] == layout.rank:
                self._send(local(parameter), owner, name, own.numel)
        self.wait(self.start())
        return whole

    def scatter(self, name: str, parameter: Tensor, owner: int, whole: Tensor | None, part: Tensor) -> None:
        """Have a weight that one rank has written into parts on all ranks, once `start` and `wait` have been called.

        Args:
            parameter: whose placement says which part is whose.
            owner: the rank that has it.
            whole: the weight there.
            part: memory for this rank's part.
        """
        layout = self._layout
        own = layout.own_box(parameter)
        if owner != layout.rank:
            self._receive(part, owner, name)
            return
        assert whole is not None
        part.copy_(own.of(whole))
        pieces: dict[Any, Tensor] = {}  # replicas get the same memory
        for rank in range(layout.size):
            box = layout.box(parameter, rank)
            if rank != owner and box.numel:
                if box not in pieces:
                    pieces[box] = box.of(whole).to(self._device).contiguous()
                self._send(pieces[box], rank, name, box.numel)

    def start(self) -> list[_Transfer]:
        """Begin what has been asked for."""
        asked, self._operations = self._operations, []
        if not asked:
            return []
        works: list[Any] = []
        with self._named(asked[0][1]):
            # Over NCCL they become one work.
            works = dist.batch_isend_irecv([operation for operation, _, _ in asked])
        works += works[-1:] * (len(asked) - len(works))
        return [_Transfer(work, about, finish) for work, (_, about, finish) in zip(works, asked, strict=True)]

    def wait(self, transfers: list[_Transfer]) -> None:
        """Wait until what was begun has been done, and let go of it.

        Raises:
            RuntimeError: a rank is gone or says nothing for too long; the message names it and the weight.
        """
        for work, about, finish in transfers:
            with self._named(about):
                work.wait(timedelta(seconds=self._timeout))
            finish()
        transfers.clear()  # they hold what was sent

    def _send(self, part: Tensor, to: int, name: str, numel: int) -> None:
        if numel:
            self._ask(dist.isend, part.to(self._device).contiguous(), to, f"{name} to", lambda: None)

    def _receive(self, part: Tensor, rank: int, name: str) -> None:
        if part.numel() == 0:
            return
        direct = part.is_contiguous() and part.device == self._device
        buffer = part if direct else torch.empty(part.shape, dtype=part.dtype, device=self._device)
        self._ask(dist.irecv, buffer, rank, f"{name} from", (lambda: None) if direct else lambda: part.copy_(buffer))

    def _ask(self, kind: Any, tensor: Tensor, rank: int, about: str, finish: Callable[[], object]) -> None:
        peer = self._layout.global_rank(rank)
        self._operations.append((dist.P2POp(kind, tensor, peer, self._group), f"{about} rank {peer}", finish))

    @contextmanager
    def _named(self, about: str) -> Iterator[None]:
        """Errors of the communication library say what was being sent."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"{self._model}: {about}: not transferred: that rank is gone, or too slow ({error})."
            ) from error


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, to read and write."""
    return parameter.detach().to_local()  # type: ignore[attr-defined,no-any-return]

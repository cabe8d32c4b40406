"""A point at which the ranks of a model wait for each other: no rank waits for one that has failed."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..utils.checks import InputError

TIMEOUT = 1800.0  # seconds; that of PyTorch itself, and longer than one rank computes at a layer

_PAUSE = 0.1  # seconds, at the most, between two looks at what the others do


class Meeting:
    """Meetings of the ranks of a mesh in the job's store, none of them a collective operation.

    All ranks must hold them in the same order. As a context manager it tells the other ranks of whatever is raised in
    its block, so a rank enters it before it does anything that can fail.

    Attributes:
        members: the global ranks; this process is the one at `rank`.
        device: of tensors that the mesh sends.
        timeout: seconds to wait for all the others.

    Raises:
        ValueError: this process is not part of the mesh.
    """

    def __init__(self, model: str, mesh: DeviceMesh) -> None:
        self.members = [int(rank) for rank in mesh.mesh.flatten()]
        if dist.get_rank() not in self.members:
            raise InputError(
                f"{model}: this rank is not part of its {mesh}. Initialise it on the ranks of the mesh only."
            )
        self.rank, self.timeout, self.mesh = self.members.index(dist.get_rank()), TIMEOUT, mesh
        kind = mesh.device_type
        self.device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
        self._model, self._topic, self._held = model, "before the first meeting", 0
        self._store: Any = dist.distributed_c10d._get_default_store()
        group = "-".join(map(str, self.members))
        # Ranks count their calls, so that what an earlier one has left in the store is not taken for this one's.
        number = self._store.add(f"timm_ghn_init/sharded/{group}/calls/{dist.get_rank()}", 1)
        self._prefix = f"timm_ghn_init/sharded/{group}/{number}"

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not self._store.check([f"{self._prefix}/failed"]):
            failure = {"rank": dist.get_rank(), "error": f"{type(error).__name__}: {error}", "topic": self._topic}
            self._store.set(f"{self._prefix}/failed", json.dumps(failure))

    def __call__(self, topic: str, work: Callable[[], Any]) -> list[Any]:
        """Do this rank's work, wait until all others have done theirs, and return what it returned on each rank.

        Args:
            topic: what the work is, in words for messages.
            work: returns plain values for JSON. Its errors are raised, here and, as a RuntimeError, on the others.

        Raises:
            RuntimeError: another rank has failed, or did not come in time. The message names it.
        """
        self._topic = topic
        said = work()
        self._held += 1
        keys = {member: f"{self._prefix}/{self._held}/{member}" for member in self.members}
        self._store.set(keys[dist.get_rank()], json.dumps(said))
        if not self._wait_until(lambda: self._store.check(list(keys.values()))):
            missing = [str(member) for member, key in keys.items() if not self._store.check([key])]
            raise RuntimeError(
                f"{self._model}: rank {', '.join(missing)} did not come within {self.timeout:g} s ({topic}). Look at "
                "what it says; all ranks of the mesh must do this together."
            )
        return [json.loads(self._store.get(key)) for key in keys.values()]

    def broadcast(self, tensors: Sequence[Tensor], owner: int, about: str) -> None:
        """Fill tensors on all ranks with the values that one rank has.

        Raises a RuntimeError, `about` what is sent, if another rank fails or the time is over.

        Args:
            tensors: contiguous, on `device`.
            owner: the position in `members` of the rank that has the values.
        """
        own, source = (np.unravel_index(rank, tuple(self.mesh.shape)) for rank in (self.rank, owner))
        for dim in range(self.mesh.ndim):  # along one dimension after the other, each time from those that have it
            if own[dim + 1 :] == source[dim + 1 :]:
                group = self.mesh.get_group(dim)
                first = dist.get_global_rank(group, int(source[dim]))
                transfers = [dist.broadcast(tensor, first, group, async_op=True) for tensor in tensors]
                for transfer in filter(None, transfers):
                    self._wait_for(transfer, f"{about} from rank {self.members[owner]}")

    def _wait_for(self, transfer: dist.Work, about: str) -> None:
        problem: object = f"it took longer than {self.timeout:g} s"
        if self._wait_until(transfer.is_completed):
            try:
                transfer.wait()
                return
            except RuntimeError as error:  # of the communication library
                problem = error
        others = " or ".join(str(member) for member in self.members if member != dist.get_rank())
        raise RuntimeError(
            f"{self._model}: {about}: not transferred: rank {others} is gone, or too slow ({problem})."
        ) from None

    def _wait_until(self, done: Callable[[], bool]) -> bool:
        """Whether something was done in time. Raises if another rank has failed."""
        end, pause = time.monotonic() + self.timeout, _PAUSE / 1000
        while True:
            is_done = done()
            if self._store.check([f"{self._prefix}/failed"]):
                failure = json.loads(self._store.get(f"{self._prefix}/failed"))
                raise RuntimeError(
                    f"{self._model}: rank {failure['rank']} failed ({failure['topic']}), so this one stops as well: "
                    f"{failure['error']}"
                )
            if is_done or time.monotonic() > end:
                return is_done
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)

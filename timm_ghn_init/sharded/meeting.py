"""A point at which the ranks of a model wait for each other: no rank waits for one that has failed."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .layout import Layout

TIMEOUT = 1800.0  # seconds; that of PyTorch itself, and longer than one rank computes at a layer

_SLICE = 0.5  # seconds between two looks at whether another rank has failed


class Meeting:
    """Meetings of the ranks of a mesh in the job's store, none of them a collective operation.

    All of them must be held by all ranks in the same order.

    Args:
        model: its name, for messages.
        members: the global ranks; this process is the one at `rank`.
        timeout: seconds to wait for all the others.
    """

    def __init__(self, model: str, members: list[int], rank: int, timeout: float) -> None:
        self._model, self._members, self._rank, self._timeout = model, members, rank, timeout
        self._store: Any = dist.distributed_c10d._get_default_store()
        group = "-".join(map(str, members))
        # Ranks count their calls, so that what an earlier one has left in the store is not taken for this one's.
        number = self._store.add(f"timm_ghn_init/sharded/{group}/calls/{members[rank]}", 1)
        self._prefix = f"timm_ghn_init/sharded/{group}/{number}"
        self._held = 0

    @classmethod
    def of(cls, layout: Layout, model: str, timeout: float) -> "Meeting":
        members = [layout.global_rank(rank) for rank in range(layout.size)]
        return cls(model, members, layout.rank, timeout)

    def __call__(self, topic: str, work: Callable[[], Any]) -> list[Any]:
        """Do this rank's work, and wait until all others have done theirs.

        Args:
            topic: what the work is, in words for messages.
            work: returns plain values for JSON. Its errors are raised, here and, as a RuntimeError, on the others.

        Returns:
            What the work returned on each rank.

        Raises:
            RuntimeError: another rank has failed, or did not come in time. The message names it.
        """
        try:
            said = work()
        except BaseException as error:
            self._tell(topic, error)
            raise
        self._held += 1
        keys = [f"{self._prefix}/{self._held}/{member}" for member in self._members]
        self._store.set(keys[self._rank], json.dumps(said))
        self._wait(topic, keys)
        return [json.loads(self._store.get(key)) for key in keys]

    def _wait(self, topic: str, keys: list[str]) -> None:
        end = time.monotonic() + self._timeout
        for key in keys:
            while not self._store.check([key]):
                self._raise_if_failed()
                left = end - time.monotonic()
                if left <= 0:
                    missing = [m for k, m in zip(keys, self._members, strict=True) if not self._store.check([k])]
                    late = RuntimeError(
                        f"{self._model}: rank {', '.join(map(str, missing))} did not come within {self._timeout:g} s "
                        f"({topic}). Look at what it says; all ranks of the mesh must do this together."
                    )
                    self._tell(topic, late)  # or a rank that comes now would go on alone
                    raise late
                try:
                    self._store.wait([key], timedelta(seconds=min(_SLICE, left)))
                except RuntimeError:  # the wait timed out
                    continue
        self._raise_if_failed()

    def _tell(self, topic: str, error: BaseException) -> None:
        failure = {"rank": self._members[self._rank], "error": f"{type(error).__name__}: {error}", "topic": topic}
        self._store.set(f"{self._prefix}/failed", json.dumps(failure))

    def _raise_if_failed(self) -> None:
        if self._store.check([f"{self._prefix}/failed"]):
            failure = json.loads(self._store.get(f"{self._prefix}/failed"))
            raise RuntimeError(
                f"{self._model}: rank {failure['rank']} failed ({failure['topic']}), so this one stops as well: "
                f"{failure['error']}"
            )

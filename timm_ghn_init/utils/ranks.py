"""Decisions that the ranks of a data-parallel job share."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from .text import logger

_logger = logger(__name__)

_PATIENCE = timedelta(seconds=60)  # for rank 0 to decide


def agree(topic: str, decide: Callable[[], str]) -> str:
    """One decision for all ranks of a job, made once: by rank 0, or where it does not come, by the first other rank.

    Ranks meet in the job's key-value store: that of torchrun, also before `init_process_group`, else that of the
    process group. It is no collective operation: ranks that never ask keep no other waiting for more than a minute.
    Without such a store, each process decides for itself.

    Args:
        topic: what is to be decided.
        decide: makes the decision, no empty string. Its errors are raised.
    """
    store, rank = _store()
    if store is None:
        return decide()
    key = f"timm_ghn_init/{topic}"
    if rank != 0 and not store.check([key]):
        try:
            store.wait([key], _PATIENCE)
        except RuntimeError:  # the wait timed out
            _logger.info("Rank 0 has not decided on %s; rank %d does.", topic, rank)
    if not store.check([key]):
        store.compare_set(key, "", decide())
    return store.get(key).decode()


def share() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun says; (0, 1) without it."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def gather(topic: str, text: str) -> list[str]:
    """The answer of each rank of a job on a topic, once the last one has said it.

    Without a store to meet in, only this process's answer.
    """
    store, _ = _store()
    if store is None:
        return [text]
    rank, ranks = share()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"timm_ghn_init/{topic}/{attempt}/{r}" for r in range(ranks)]
    store.set(keys[rank], text)
    store.wait(keys, timedelta(days=30))  # torchrun ends all if one is gone
    return [store.get(key).decode() for key in keys]


def _store() -> tuple[Any, int]:
    """The job's store, None if there is none, and this process's rank."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _agent_store(), int(os.environ["RANK"])
    distributed = sys.modules.get("torch.distributed")  # without torch there is no process group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None, 0
    return distributed.distributed_c10d._get_default_store(), distributed.get_rank()


def _agent_store() -> Any:
    """A connection to torchrun's own store; None, and a warning, if nobody answers."""
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, timeout=_PATIENCE, wait_for_workers=False)
    except RuntimeError as error:
        _logger.warning(
            "The store of torchrun at %s:%d cannot be reached, each rank decides for itself: %s", host, port, error
        )
        return None

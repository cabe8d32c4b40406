"""Data-parallel jobs: all ranks get the same predicted parameters, and take the same GHN for the default one."""

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from processes import torchrun
from ranks_job import on_a_rank

from timm_ghn_init.utils import ranks


@pytest.fixture(scope="module")
def job(ghn_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks of a job say, see ranks_job.py."""
    return torchrun(on_a_rank, ghn_file, tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("when", ["before", "after", "group"])
def test_rank_0_decides_what_the_default_is(when: str, job: list[dict[str, Any]]) -> None:
    """Before there is a process group (by the store of torchrun), after it, and where it is all there is."""
    assert [said[when] for said in job] == ["ghn2", "ghn2"]


def test_only_rank_0_is_asked(job: list[dict[str, Any]]) -> None:
    assert [said["asked"] for said in job] == [[0, 0], []]  # once for each store


@pytest.mark.parametrize("kind", ["without", "with"])
def test_ranks_get_the_same_bits(kind: str, job: list[dict[str, Any]]) -> None:
    """Of what is predicted: the rest is timm's, and these ranks have other seeds."""
    zero, one = (said[kind] for said in job)
    assert zero["predicted"] == one["predicted"] == job[0]["without"]["predicted"]
    assert zero["all"] != one["all"]
    assert {zero["cached"], one["cached"]} == ({False} if kind == "without" else {False, True})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store of a job; this process is the rank that its thread is named after."""
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "_store", lambda: (store, int(threading.current_thread().name)))
    return store


def ask(*rank: int, answers: dict[int, str]) -> dict[int, str]:
    """What ranks agree on that would answer so by themselves."""
    agreed = {}

    def run(r: int) -> None:
        agreed[r] = ranks.agree("topic", lambda: answers[r])

    threads = [threading.Thread(target=run, args=(r,), name=str(r)) for r in rank]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return agreed


def test_others_wait_for_rank_0(store: dist.Store) -> None:
    assert ask(3, 2, 1, 0, answers={0: "a"}) == dict.fromkeys(range(4), "a")
    assert ask(1, 0, answers={}) == dict.fromkeys(range(2), "a")  # once and for all


def test_rank_0_that_never_asks_or_asks_late(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.2))
    with caplog.at_level(logging.INFO, "timm_ghn_init.utils.ranks"):
        first = ask(1, 2, answers={1: "b", 2: "c"})
    assert len(set(first.values())) == 1
    assert "Rank 0 has not decided" in caplog.text
    assert ask(0, answers={0: "a"})[0] == first[1]


def test_rank_0_that_decides_late(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it still waits for the network, another one has decided."""
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.2))
    monkeypatch.setattr(threading.current_thread(), "name", "0")

    def decide() -> str:
        assert ask(1, answers={1: "b"}) == {1: "b"}
        return "a"

    assert ranks.agree("topic", decide) == "b"


def test_an_error_of_rank_0_is_its_own(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.2))
    monkeypatch.setattr(threading.current_thread(), "name", "0")

    def fail() -> str:
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        ranks.agree("topic", fail)
    assert ask(1, answers={1: "b"}) == {1: "b"}


def test_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert ranks.agree("topic", lambda: "mine") == "mine"


def test_torchrun_that_is_gone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its variables may outlive it."""
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.3))
    variables = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.agree("topic", lambda: "mine") == "mine"
    assert "127.0.0.1:9" in caplog.text

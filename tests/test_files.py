"""Files and folders are written whole or not at all: under full disks, kills, races and links that somebody planted."""

import errno
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from timm_ghn_init.utils import files
from timm_ghn_init.utils.files import (
    append,
    locked,
    own_folder,
    remove_abandoned,
    replace_by_torch,
    replacing,
    replacing_folder,
)

resource = pytest.importorskip("resource")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A full disk, made by the kernel."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def in_child(do: Callable[[], object]) -> int:
    """The exit status of a forked process that does something; minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700
        assert temporary.parent.parent == tmp_path
    assert path.read_text() == "new"
    assert listing(tmp_path) == ["x"]


def test_what_goes_wrong_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with largest_file(1000), pytest.raises(OSError, match=r"too large: '.*/x'$") as error, replacing(path) as temporary:
        temporary.write_bytes(b"a" * 2000)
    assert error.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/x'$"), replacing(tmp_path / "nowhere" / "x"):
        pass
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["x"]


@pytest.mark.parametrize("to", ["elsewhere/big", "not there yet"])
def test_a_link_at_the_target_is_followed(tmp_path: Path, to: str) -> None:
    """It may lead to a disk that has room; what it leads to is replaced as whole as any other file."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_text("old")
    (tmp_path / "x").symlink_to(to)
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == (tmp_path / to).parent
    assert (tmp_path / "x").is_symlink() and (tmp_path / to).read_text() == "new"


def test_a_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to("big")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink() and content(tmp_path / "big") == {"new"}


def test_who_waits_for_a_lock_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "QUIET", 0.05)
    with locked(tmp_path / "x.lock", "works"):
        with pytest.raises(TimeoutError), locked(tmp_path / "x.lock", "works", patience=0.05):
            pass
        assert caplog.messages == [f"Waiting for another process, which works and holds {tmp_path}/x.lock."]
    with locked(tmp_path / "x.lock", "works"):
        assert len(caplog.messages) == 1


def test_the_longest_name_that_the_system_takes(tmp_path: Path) -> None:
    with replacing(tmp_path / ("y" * 255)) as temporary:
        temporary.write_text("new")
    assert listing(tmp_path) == ["y" * 255]


def test_torch_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    replace_by_torch(path, {"a": torch.ones(3)})
    with largest_file(4000), pytest.raises(OSError) as error:
        replace_by_torch(path, {"a": torch.zeros(10_000)})
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert listing(tmp_path) == ["x.pt"]


def test_a_line_is_added_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append(path, b"one")
    append(path, b"two")
    with largest_file(12), pytest.raises(OSError, match=r"too large: '.*/lines'"):
        append(path, b"a line that does not fit")
    assert path.read_bytes() == b"one\ntwo\n"
    path.write_bytes(b"one\ncut o")
    append(path, b"two")
    assert path.read_bytes() == b"one\ncut o\ntwo\n"
    with largest_file(3), pytest.raises(OSError, match="too large"):
        append(tmp_path / "new", b"a line")
    assert listing(tmp_path) == ["lines"]


# What killed processes leave


def test_what_a_killed_process_leaves_goes_with_the_next(tmp_path: Path) -> None:
    def work() -> None:
        with own_folder(tmp_path) as own:
            (own / "half").write_text("half")
            die()

    assert in_child(work) == -signal.SIGKILL
    assert len(listing(tmp_path)) == 1
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert listing(tmp_path) == ["x"]


def test_what_is_being_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two processes of two containers have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 4321)
    with own_folder(tmp_path) as own:
        (own / "half").write_text("half")
        os.utime(own, (0, 0))
        with own_folder(tmp_path) as other:
            assert own != other
            assert in_child(lambda: remove_abandoned(tmp_path)) == 0
            assert (own / "half").exists() and other.exists()
        remove_abandoned(tmp_path)
        assert listing(tmp_path) == [own.name]
    assert listing(tmp_path) == []


def test_a_new_folder_that_is_taken_for_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes it before it is locked."""
    real, made = tempfile.mkdtemp, []

    def mkdtemp(*arguments: Any) -> str:
        made.append(real(*arguments))
        if len(made) == 1:
            remove_abandoned(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with own_folder(tmp_path) as own:
        assert own.is_dir() and len(made) == 2
    assert listing(tmp_path) == []


def test_only_what_is_ours_by_name_is_removed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("precious")
    (tmp_path / ".timm-ghn-init-00000000-abc.tmp").symlink_to("victim")
    (tmp_path / ".timm-ghn-init-notes").write_text("mine")
    (tmp_path / ".x.4321.tmp").write_text("mine")
    before = listing(tmp_path)
    for name in before:
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path)
    assert listing(tmp_path) == before
    assert (tmp_path / "victim" / "precious").exists()


# Folders


def fill(folder: Path, text: str) -> None:
    for name in ("config", "weights"):
        (folder / name).write_text(text)


def content(folder: Path) -> set[str]:
    """What the files say that are there."""
    return {(folder / name).read_text() for name in ("config", "weights") if (folder / name).exists()}


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as new:
        fill(new, text)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path / "out", "old")
    return tmp_path / "out"


def test_a_folder_is_made(out: Path) -> None:
    assert content(out) == {"old"}
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask()
    assert listing(out.parent) == ["out"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("how", ["beside", "working directory", "folder in it"])
def test_files_of_two_models_never_meet(out: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is renamed or removed, before and after it the files that are there belong together."""
    seen = []

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            try:
                seen.append(content(out))
                return real(*args, **options)
            finally:
                seen.append(content(out))

        return act

    out.chmod(0o750)
    (out / "notes").write_text("mine")
    if how == "working directory":
        monkeypatch.chdir(out)
    if how == "folder in it":
        (out / "sub").mkdir()
    inode = out.stat().st_ino
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    write(Path(".") if how == "working directory" else out, "new")
    assert seen[0] == {"old"} and seen[-1] == content(out) == {"new"}
    assert all(len(texts) <= 1 for texts in seen)
    assert (out / "notes").read_text() == "mine"
    assert (stat.S_IMODE(out.stat().st_mode), out.stat().st_ino) == (0o750, inode)
    assert listing(out.parent) == ["out"]
    assert listing(out) == ["config", "notes", *["sub"] * (how == "folder in it"), "weights"]


def test_a_folder_is_left_as_it_was(out: Path) -> None:
    with largest_file(100), pytest.raises(OSError, match=r"too large: '.*/out'$"), replacing_folder(out) as new:
        fill(new, "new")
        (new / "weights").write_bytes(b"a" * 200)
    assert in_child(lambda: killed_while_filling(out)) == -signal.SIGKILL
    assert content(out) == {"old"}
    assert len(listing(out)) == 3
    write(out, "new")
    assert listing(out) == ["config", "weights"]


def killed_while_filling(out: Path) -> None:
    with replacing_folder(out) as new:
        fill(new, "new")
        die()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "out", "new")
    assert listing(tmp_path) == ["out"] and (tmp_path / "out").read_text() == "mine"


def test_eight_processes_write_one_folder(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for _ in range(10):
            write(tmp_path / "out", str(number))

    children = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    assert len(content(tmp_path / "out")) == 1
    assert listing(tmp_path) == ["out"]


def test_eight_threads_write_one_file(tmp_path: Path) -> None:
    def work() -> None:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("new")
        done.append(1)

    done: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 8
    assert listing(tmp_path) == ["x"]

"""Find, download, verify and load a GHN.

A checkpoint that has a name is fetched once, verified, and kept as safetensors in `home()`, under a name that says
where it came from and what its bytes are: "ghn2-3f0c52ab-9d0e5c7f1a2b3c4d.safetensors". So a file that was altered is
noticed, and files are only ever added (by an atomic rename) or removed, never changed. Files that the user names are
read where they lie.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from ..sources import DEFAULT, KNOWN, SHIPPED, SHIPPED_BEFORE, SUFFIXES, KnownGHN, Source, parse_source
from ..utils.checks import InputError, check_device, instance
from ..utils.files import own_folder, replacing, resumable
from ..utils.progress import Progress
from ..utils.ranks import agree
from ..utils.text import as_cause, clean_logs_of, logger
from .download import DownloadError, download
from .formats import CheckpointError, GHNFile, build, check_finite, open_ghn, write_ghn
from .no_waiting import no_waiting

if TYPE_CHECKING:
    import torch

    from ..ghn import GHN

__all__ = ["CheckpointError", "fetch", "home", "is_cached", "load_ghn", "resolve_default", "save_ghn"]

_logger = logger(__name__)

_OFFICIAL = "ghn2"
_FORMAT = "1"  # counts up when converted files change
_CHUNK = 2**18  # bytes


def home() -> Path:
    """Where fetched GHNs are kept: TIMM_GHN_HOME, by default `timm_ghn_init` in the user's cache folder.

    Raises:
        OSError: the user has no home folder, as in some containers, and no variable names another.
    """
    try:
        if folder := os.environ.get("TIMM_GHN_HOME"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "timm_ghn_init"
    except RuntimeError:
        raise OSError("this user has no home folder, so set TIMM_GHN_HOME to a folder") from None


def load_ghn(name_or_path: str | Path | Source, device: "torch.device | str | None" = None) -> "GHN":
    """Load a GHN, fetching it first if need be.

    The same object is returned for the same file and device, as long as it is among the last few that were loaded: it
    is meant for predicting. To train it, take a `copy.deepcopy`.

    Args:
        name_or_path: a source ("ghn2", "file:PATH"; what follows the name, as in "ghn2-orth", has no effect here) or
            the path of a file with one of `sources.SUFFIXES`, which is read where it lies.
        device: where it is to be. Default: CPU.

    Returns:
        The GHN in eval mode, float32, no parameter requiring gradients.

    Raises:
        CheckpointError: the file cannot be had, read or trusted.
        ValueError: no source of that name.
    """
    import torch

    if device is not None:
        check_device(device)
    path, fetched = _own_path(name_or_path), False
    if path is None:
        source = resolve_default(cast("str | Source", name_or_path))
        path, fetched = _fetch(source, None), source.path is None
    place = torch.empty(0, device=device or "cpu").device  # "cuda" and "cuda:0" are one place
    with _loading:
        return _load(_stamp(path), fetched, str(place))


def save_ghn(ghn: "GHN", path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Save a GHN as safetensors, with its config in the metadata; `load_ghn(path)` reads it back.

    Args:
        ghn: on any device; saved as float32.
        path: must end in .safetensors. An older file there is replaced when the new one is complete.
        metadata: more entries for the file's metadata, e.g. how the GHN was trained. `ghn.facts` is added.

    Raises:
        ValueError: another suffix, or metadata that are not strings.
        CheckpointError: NaN or inf in a tensor, which is named.
        OSError: the file cannot be written; then nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a GHN is saved as .safetensors.")
    from ..ghn import GHN

    instance("a GHN", GHN).check("ghn", ghn)
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise InputError(f"{path}: metadata must be strings, names and values.")

    def load(name: str, tensor: "torch.Tensor") -> "torch.Tensor":
        check_finite(tensor, name, path)
        return tensor.detach().float().cpu().contiguous()

    tensors = {name: partial(load, name, tensor) for name, tensor in ghn.state_dict().items()}
    with replacing(path) as temporary:
        write_ghn(temporary, ghn.facts, tensors, metadata)


def fetch(name: str | Source, progress: bool | None = None) -> Path:
    """Make sure that a GHN is on this machine.

    Processes that ask for the same GHN at the same time wait for the first one. An interrupted download goes on where
    it stopped.

    Args:
        name: a source; what follows its name has no effect here.
        progress: show progress bars; None shows them where stderr is a terminal.

    Returns:
        Path of the file, safetensors for all but "file:PATH", which is returned as it is.

    Raises:
        CheckpointError: the file cannot be had or trusted, or `home()` cannot be written.
        ValueError: no source of that name, or one without a GHN.
    """
    return _fetch(resolve_default(name, progress), progress)


def _fetch(source: Source, progress: bool | None) -> Path:
    if source.baseline:
        raise InputError(f"{source} is an initialisation without a GHN: there is nothing to fetch.")
    ghn = source.known
    if ghn is None:
        assert source.path is not None  # nothing else is left
        return source.path
    if ghn.local_path is not None:
        if not ghn.local_path.is_file():
            raise CheckpointError(f"{ghn.name}: this installation has no {ghn.local_path}. {_WAYS_OUT}")
        return ghn.local_path
    if found := _find(ghn):
        return found
    with _locked(ghn):
        return _find(ghn) or _obtain(ghn, progress)  # it may have come while we waited


def is_cached(name: str) -> bool:
    """Whether there is a fetched (or shipped) file for a name in `KNOWN`; its bytes are checked when it is loaded."""
    ghn = KNOWN[name]
    return ghn.local_path.is_file() if ghn.local_path else bool(_candidates(ghn))


def resolve_default(source: str | Source, progress: bool | None = None) -> Source:
    """Say which GHN "ghn" means here; any other source is returned as it is.

    It is what the environment variable TIMM_GHN_DEFAULT names; else the official `ghn2`, if it is on this machine or
    can be fetched; else the GHN that ships with the package, which one warning says. A failed fetch is remembered, so
    that no later call waits for the network again. The ranks of a job take the same one, see `ranks.agree`.

    Returns:
        The source with the name of the GHN that is really used, all else unchanged.

    Raises:
        CheckpointError: none of these is to be had.
        ValueError: TIMM_GHN_DEFAULT names no GHN, or more than a GHN.
    """
    source = parse_source(source)
    if source.name != DEFAULT:
        return source
    return replace(source, name=named_default() or agree("default", lambda: _official_or_shipped(progress)))


def named_default() -> str | None:
    """The GHN that TIMM_GHN_DEFAULT names, None if it names none.

    Raises:
        ValueError: it names something else.
    """
    named = os.environ.get("TIMM_GHN_DEFAULT") or DEFAULT
    try:
        chosen = parse_source(named)
    except ValueError as error:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: {error}") from None
    if chosen.baseline:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: it names an initialisation without a GHN. Name a GHN, e.g. ghn2.")
    if str(chosen) != chosen.name:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: it names a GHN and no more. Use TIMM_GHN_DEFAULT={chosen.name}.")
    return None if chosen.name == DEFAULT else chosen.name


def expected_default() -> tuple[str, str]:
    """Which GHN "ghn" would be here as far as can be told without a network, and why.

    Raises:
        ValueError: as `named_default`.
    """
    if named := named_default():
        return named, "TIMM_GHN_DEFAULT names it"
    official, shipped = KNOWN[_OFFICIAL], KNOWN[SHIPPED]
    if _find(official):
        return official.name, "it is on this machine"
    place = (_home(), _url(official))
    if place in _failed and is_cached(SHIPPED):
        return shipped.name, f"{official.name} could not be fetched"
    return official.name, f"it is fetched when it is first needed; where that fails, {shipped.name} takes its place"


_WAYS_OUT = (
    "Ways out: fetch ghn2 where there is a network (timm-ghn-init fetch --source ghn2) and copy TIMM_GHN_HOME here; or "
    "download a checkpoint by hand and name it as file:PATH, in the source or in TIMM_GHN_DEFAULT."
)

_failed: dict[tuple[Path | None, str], str] = {}  # (home, endpoint) -> why the official GHN could not be fetched


def _official_or_shipped(progress: bool | None) -> str:
    official, shipped = KNOWN[_OFFICIAL], KNOWN[SHIPPED]
    has_shipped = shipped.local_path is not None and shipped.local_path.is_file()
    if _find(official):
        return official.name
    place = (_home(), _url(official))
    if place not in _failed:
        try:
            fetch(official.name, progress)
            return official.name
        except CheckpointError as error:
            _failed[place] = str(error)
            if has_shipped:
                _logger.warning(
                    "%s Using %s, the GHN that ships with this package (%s before), instead.",
                    error,
                    shipped.name,
                    SHIPPED_BEFORE,
                )
    if not has_shipped:
        raise CheckpointError(f"{_failed[place]} This installation ships no GHN to use instead. {_WAYS_OUT}")
    return shipped.name


# Loading

_loading = threading.Lock()


class _Stamp(NamedTuple):
    """What tells one content of a file from another, without reading it."""

    path: Path
    size: int
    modified: int
    inode: int


def _stamp(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # opening it will say what is wrong
        return _Stamp(path, 0, 0, 0)
    return _Stamp(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=2)
def _load(stamp: _Stamp, fetched: bool, device: str) -> "GHN":
    with open_ghn(stamp.path, mapped=fetched) as file:
        return build(file, device)


def _own_path(name_or_path: str | Path | Source) -> Path | None:
    """The path of a file that the user names; None if it is a source."""
    if isinstance(name_or_path, str) and name_or_path.endswith(SUFFIXES) and not name_or_path.startswith("file:"):
        return Path(os.path.expanduser(name_or_path))
    return name_or_path if isinstance(name_or_path, Path) else None


# Fetching


def _prefix(ghn: KnownGHN) -> str:
    """How the names of this GHN's converted files begin; another version of it has another prefix."""
    return f"{ghn.name}-{hashlib.sha256(f'{_FORMAT} {ghn.origin}'.encode()).hexdigest()[:8]}-"


@lru_cache(maxsize=64)
def _digest(stamp: _Stamp) -> str:
    return sha256(stamp.path)[:16]


def _candidates(ghn: KnownGHN) -> list[Path]:
    folder = _home()
    return sorted(folder.glob(f"{_prefix(ghn)}*.safetensors")) if folder else []


def _home() -> Path | None:
    try:
        return home()
    except OSError:
        return None


def _find(ghn: KnownGHN) -> Path | None:
    """The fetched file, if its bytes are what they were when it was written."""
    for path in _candidates(ghn):
        if path.stem == _prefix(ghn) + _digest(_stamp(path)):
            return path
    return None


@contextmanager
def _locked(ghn: KnownGHN) -> Iterator[None]:
    """Only one process at a time; it writes to `home()`."""
    from filelock import FileLock

    try:
        folder = home()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{ghn.name}.lock"):
            yield
    except (OSError, NotImplementedError) as error:
        raise CheckpointError(
            f"{ghn.name} cannot be kept in {_home() or 'any folder'} ({type(error).__name__}: {error}). Make room "
            "there and let it be written to, or set TIMM_GHN_HOME to another folder."
        ) from error


def _obtain(ghn: KnownGHN, progress: bool | None) -> Path:
    for path in _candidates(ghn):
        _logger.warning("%s was altered since it was written: removing it and fetching %s again.", path, ghn.name)
        path.unlink()
    for old in (f"{ghn.name}.tmp", f"{ghn.file}.part"):  # what 0.1 called them
        (home() / old).unlink(missing_ok=True)
    if ghn.hub:
        return _convert(_from_hub(ghn), ghn, progress)
    with resumable(home(), ghn.blob) as (path, file):
        try:
            _download_verified(ghn, path, file, progress)
        except OSError:  # the disk is full, so what is in the way goes
            file.truncate(0)
            raise
        try:
            return _convert(path, ghn, progress)
        finally:
            file.truncate(0)


def _url(ghn: KnownGHN) -> str:
    return f"{(os.environ.get('TIMM_GHN_ENDPOINT') or ghn.url).rstrip('/')}/{ghn.file}"


def _download_verified(ghn: KnownGHN, path: Path, file: BinaryIO, progress: bool | None) -> None:
    """Download to a file, from its beginning if what was there is of another one."""
    url, resumed = _url(ghn), True
    while resumed:
        resumed = path.stat().st_size > 0
        try:
            download(url, file, progress)
        except DownloadError as error:
            raise CheckpointError(
                f"{ghn.name}: {error}. Try again with a network (it goes on where it stopped), set TIMM_GHN_ENDPOINT "
                f"to a mirror, or download {ghn.file} by hand and use file:PATH."
            ) from error
        blob = git_blob_id(path)
        if blob == ghn.blob:
            return
        with open(path, "rb") as sent:
            size, head = path.stat().st_size, sent.read(16)
        file.truncate(0)
    raise CheckpointError(
        f"{ghn.name}: what {url} sent is not {ghn.file} (its git blob id is {blob}, not {ghn.blob}; it is {size} bytes "
        f"that begin with {head!r}); it was removed. A proxy may be in the way: download it by hand and use file:PATH."
    )


def _from_hub(ghn: KnownGHN) -> Path:
    """Through huggingface_hub, whose business are its cache, interrupted downloads, tokens and working offline."""
    from huggingface_hub import hf_hub_download

    clean_logs_of("huggingface_hub")
    try:
        with no_waiting() as unreachable:
            return Path(hf_hub_download(ghn.hub, ghn.file))
    except Exception as error:  # its errors have no common base
        cause = unreachable or f"{type(error).__name__}: {error}".split("\n")[0]
        raise CheckpointError(
            f"{ghn.name}: {ghn.file} cannot be had from the Hugging Face Hub repository {ghn.hub} ({cause}). Try again "
            "with a network, or download it by hand and use file:PATH."
        ) from as_cause(error)


def _convert(path: Path, ghn: KnownGHN, progress: bool | None) -> Path:
    """Check a checkpoint and write it to `home()` as safetensors, tensor by tensor."""
    metadata = {
        "name": ghn.name,
        "origin": ghn.origin,
        "license": ghn.license,
        "paper": f"{ghn.paper} (arXiv:{ghn.arxiv})",
        "dataset": ghn.dataset,
    }
    with own_folder(home()) as folder, open_ghn(path) as file:
        with Progress(f"Converting {ghn.name}", len(file.tensors), show=progress, unit="tensor", stays=True) as shown:
            tensors = {name: partial(_load_counted, file, name, shown) for name in file.tensors}
            digest = write_ghn(folder / "converted", file.facts, tensors, metadata)
        target = home() / f"{_prefix(ghn)}{digest[:16]}.safetensors"  # that is known only now
        return (folder / "converted").replace(target)


def _load_counted(file: GHNFile, name: str, shown: Progress) -> "torch.Tensor":
    shown.step()
    return file.load(name)


# Digests


def git_blob_id(path: Path) -> str:
    """The id under which git keeps a file of these bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return _feed(digest, path)


def sha256(path: Path) -> str:
    """The file's sha256, in hex."""
    return _feed(hashlib.sha256(), path)


def _feed(digest: Any, path: Path) -> str:
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

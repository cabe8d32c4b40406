"""Find, download, verify, load and save a GHN.

A checkpoint that has a name is fetched once, verified, and kept as safetensors in `home()`, under a name that contains
its origin and its digest: "ghn2-3f0c52ab-9d0e5c7f1a2b3c4d.safetensors". So a file that was altered is noticed. Files
that the user names are read where they are.
"""

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..sources import DEFAULT, KNOWN, SHIPPED, SUFFIXES, KnownGHN, Source, parse_source
from ..utils.checks import InputError, check_device, instance
from ..utils.files import locked, own_folder, replacing
from ..utils.ranks import agree
from ..utils.text import logger
from .download import DownloadError, download, download_from_hub
from .formats import CheckpointError, read_ghn, write_ghn

if TYPE_CHECKING:
    import torch

    from ..ghn import GHN

__all__ = ["CheckpointError", "fetch", "home", "is_cached", "load_ghn", "resolve_default", "save_ghn"]

_logger = logger(__name__)

_OFFICIAL = "ghn2"
_FORMAT = "2"  # counts up when converted files change


def home() -> Path:
    """The folder of fetched GHNs: TIMM_GHN_HOME, by default `timm_ghn_init` in the user's cache folder.

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

    Every call returns a GHN of its own: what is done to it affects nothing else.

    Args:
        name_or_path: a source ("ghn2", "file:PATH"; what follows the name, as in "ghn2-orth", has no effect here) or
            the path of a file with one of `sources.SUFFIXES`, which is read where it is.
        device: where it is to be. Default: CPU.

    Returns:
        The GHN in eval mode, float32, no parameter requiring gradients.

    Raises:
        CheckpointError: the file cannot be fetched, read or trusted.
        ValueError: no source of that name.

    Example:
        >>> ghn = load_ghn("ghn2-fashion")
        >>> ghn.dialect, ghn.num_classes
        ('ghn2', 10)
        >>> weights = ghn.predict(trace(timm.create_model("test_resnet")))
    """
    if device is not None:
        check_device(device)
    return read_ghn(_path(name_or_path), device or "cpu")


def shared_ghn(source: Source, device: "torch.device") -> "GHN":
    """As `load_ghn`, but the same object for the same file and device, as long as it is among the last two.

    For the package alone, which never changes it: an object that a user can change must not be shared.
    """
    path = _path(source)
    with _loading:
        return _shared(*_stamp(path), str(device))


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

    Example:
        >>> ghn = load_ghn("ghn2-fashion")
        >>> ghn.depth = 0.25  # post-processing begins after a quarter of the layers
        >>> save_ghn(ghn, "mine.safetensors")
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a GHN is saved as .safetensors.")
    from ..ghn import GHN

    instance("a GHN", GHN).check("ghn", ghn)
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise InputError(f"{path}: metadata must be strings, names and values.")
    with replacing(path) as temporary:
        write_ghn(temporary, ghn, metadata)


def fetch(name: str | Source, progress: bool | None = None) -> Path:
    """Make sure that a GHN is on this machine. Processes that ask for the same at the same time wait for the first.

    Args:
        name: a source; what follows its name has no effect here.
        progress: whether to show progress. None: if stderr is a terminal.

    Returns:
        Path of the file, safetensors for all but "file:PATH", which is returned as it is.

    Raises:
        CheckpointError: the file is not available or not trusted, or `home()` cannot be written.
        ValueError: no source of that name, or one without a GHN.
    """
    return _fetch(resolve_default(name, progress), progress)


def _fetch(source: Source, progress: bool | None) -> Path:
    if source.initialisation:
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
    try:
        folder = home()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{ghn.name}.lock", f"fetches {ghn.name}"):
            return _find(ghn) or _obtain(ghn, progress)  # it may have come while we waited
    except (OSError, NotImplementedError) as error:
        raise CheckpointError(
            f"{ghn.name} cannot be kept in {_home() or 'any folder'} ({type(error).__name__}: {error}). Make room "
            "there and let it be written to, or set TIMM_GHN_HOME to another folder."
        ) from error


def is_cached(name: str) -> bool:
    """Whether there is a fetched (or shipped) file for a name in `KNOWN`; its bytes are checked when it is loaded."""
    ghn = KNOWN[name]
    return ghn.local_path.is_file() if ghn.local_path else bool(_candidates(ghn))


def resolve_default(source: str | Source, progress: bool | None = None) -> Source:
    """The source with the name of the GHN that "ghn" means here; any other source is returned as it is.

    It is what the environment variable TIMM_GHN_DEFAULT names; else the official `ghn2`, if it is on this machine or
    can be fetched; else the GHN that ships with the package, which one warning says. A failed fetch is remembered, so
    that no later call waits for the network again. The ranks of a job take the same one, see `ranks.agree`.

    Raises:
        CheckpointError: there is none of these.
        ValueError: TIMM_GHN_DEFAULT names no GHN, or more than a GHN.
    """
    source = parse_source(source)
    if source.name != DEFAULT:
        return source
    return replace(source, name=named_default() or agree("default", lambda: _official_or_shipped(progress)))


def named_default() -> str | None:
    """The GHN that TIMM_GHN_DEFAULT names; None if it is not set. Raises a ValueError if it names something else."""
    named = os.environ.get("TIMM_GHN_DEFAULT") or DEFAULT
    try:
        chosen = parse_source(named)
    except ValueError as error:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: {error}") from None
    if chosen.initialisation:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: it names an initialisation without a GHN. Name a GHN, e.g. ghn2.")
    if str(chosen) != chosen.name:
        raise InputError(f"TIMM_GHN_DEFAULT={named}: it names a GHN and no more. Use TIMM_GHN_DEFAULT={chosen.name}.")
    return None if chosen.name == DEFAULT else chosen.name


def expected_default() -> tuple[str, str]:
    """Which GHN "ghn" would be here as far as can be told without a network, and why. Raises as `named_default`."""
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
                _logger.warning("%s Using %s, the GHN that ships with this package, instead.", error, shipped.name)
    if not has_shipped:
        raise CheckpointError(f"{_failed[place]} This installation ships no GHN to use instead. {_WAYS_OUT}")
    return shipped.name


# Loading

_loading = threading.Lock()


def _stamp(path: Path) -> tuple[Path, object]:
    """A file, and what tells its content from another one without reading it."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # opening it will say what is wrong
        return path, None
    return path.resolve(), (stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=2)
def _shared(path: Path, version: object, device: str) -> "GHN":
    return read_ghn(path, device)


def _path(name_or_path: str | Path | Source) -> Path:
    """The file to read, fetched if need be."""
    if isinstance(name_or_path, str) and name_or_path.endswith(SUFFIXES) and not name_or_path.startswith("file:"):
        return Path(os.path.expanduser(name_or_path))
    if isinstance(name_or_path, Path):
        return name_or_path
    return _fetch(resolve_default(cast("str | Source", name_or_path)), None)


# Fetching


def _prefix(ghn: KnownGHN) -> str:
    """How the names of this GHN's converted files begin; another version of it has another prefix."""
    return f"{ghn.name}-{hashlib.sha256(f'{_FORMAT} {ghn.origin}'.encode()).hexdigest()[:8]}-"


@lru_cache(maxsize=64)
def _digest(path: Path, version: object) -> str:
    return sha256(path)[:16]


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
        if path.stem == _prefix(ghn) + _digest(*_stamp(path)):
            return path
    return None


def _obtain(ghn: KnownGHN, progress: bool | None) -> Path:
    """Download a checkpoint, check it, and keep it in `home()` as safetensors."""
    for path in _candidates(ghn):
        _logger.warning("%s was altered since it was written: removing it and fetching %s again.", path, ghn.name)
        path.unlink()
    metadata = {
        "name": ghn.name,
        "origin": ghn.origin,
        "license": ghn.license,
        "paper": f"{ghn.paper} (arXiv:{ghn.arxiv})",
        "dataset": ghn.dataset,
    }
    with own_folder(home()) as folder:
        try:
            if ghn.hub:
                downloaded = download_from_hub(ghn.hub, ghn.file)
            else:
                downloaded = folder / ghn.file
                download(_url(ghn), downloaded, progress)
                _verify(ghn, downloaded)
        except DownloadError as error:
            mirror = "" if ghn.hub else "set TIMM_GHN_ENDPOINT to a mirror, "
            raise CheckpointError(
                f"{ghn.name}: {error}. Try again with a network, {mirror}or download {ghn.file} by hand and use "
                "file:PATH."
            ) from error
        write_ghn(folder / "converted", read_ghn(downloaded), metadata)
        digest = sha256(folder / "converted")
        return (folder / "converted").replace(home() / f"{_prefix(ghn)}{digest[:16]}.safetensors")


def _url(ghn: KnownGHN) -> str:
    return f"{(os.environ.get('TIMM_GHN_ENDPOINT') or ghn.url).rstrip('/')}/{ghn.file}"


def _verify(ghn: KnownGHN, path: Path) -> None:
    blob = git_blob_id(path)
    if blob == ghn.blob:
        return
    with open(path, "rb") as sent:
        head = sent.read(16)
    raise CheckpointError(
        f"{ghn.name}: what {_url(ghn)} sent is not {ghn.file} (its git blob id is {blob}, not {ghn.blob}; it is "
        f"{path.stat().st_size} bytes that begin with {head!r}); it was removed. A proxy may be in the way: download "
        "it by hand and use file:PATH."
    )


# Digests


def git_blob_id(path: Path) -> str:
    """The id under which git keeps a file of these bytes, in hex."""
    return _digest_of(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def sha256(path: Path) -> str:
    """The file's sha256, in hex."""
    return _digest_of(path, hashlib.sha256())


def _digest_of(path: Path, begun: Any) -> str:
    with open(path, "rb") as f:
        while chunk := f.read(2**18):
            begun.update(chunk)
    return begun.hexdigest()

"""Finished weights on the Hugging Face Hub: what their repositories are called, and how they are found.

Weights of an architecture by a source lie in `ORG/<architecture>.<source>`, in timm's own format, and their key in
config.json. `main` holds those that came first. Others of that name, for another number of classes for instance, lie on
a branch that is called by their key, so that nothing is ever in the way of anything else.

All transfer goes through `huggingface_hub`, and so do its token, cache, proxies, timeouts and environment variables.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.checks import NAMESPACE, InputError, is_finite
from ..utils.text import Told, clean, clean_logs_of, logger
from .files import METADATA_KEY, WeightsError, read

if TYPE_CHECKING:
    from torch import Tensor

    from ..graph import Target
    from ..sources import Source

_logger = logger(__name__)

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAIN = "main"

_MAX_CONFIG = 1 << 20  # bytes
_warned: set[tuple[str, int | None]] = set()  # (organisation, HTTP status): said once in a process
_unreachable: dict[str, Exception] = {}  # endpoint -> why: nobody waits for a network a second time


class HubError(Told, RuntimeError):
    """The Hub could not be used. The message names the repository, the cause and a way out, and holds no token.

    Attributes:
        status: of HTTP, if that was the cause.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def repo_name(architecture: str, source: "Source", ghn: str) -> str:
    """The name of the repository of finished weights below its organisation.

    The only option in the name is post-processing; weights with other options have another key. The digest of the GHN
    stands for the name of a file.
    """
    name = source.name if source.path is None else f"file-{ghn[:8]}"
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{architecture}.{name}{'-orth' * source.orth}")


def organisation(source: "Source") -> str | None:
    """Whose repositories to look in: the source's own choice, else TIMM_GHN_HUB, else nobody's."""
    org = source.hub or os.environ.get("TIMM_GHN_HUB") or None
    if org is not None and not NAMESPACE.valid(org):
        raise InputError(f"TIMM_GHN_HUB={org}: it must be the name of a user or an organisation on the Hub.")
    if org is None and source.push:
        raise InputError(f"Source {str(source)!r}: push=1 needs hub=ORG, or TIMM_GHN_HUB, to say where to.")
    return org


def find(
    repo: str, key: str, targets: "Mapping[str, Target]", parts: "Mapping[str, Tensor]"
) -> "dict[str, Tensor] | None":
    """Finished weights from the Hub, if it has them.

    A Hub that cannot be reached or refuses is no error, because predicting gives the same: it is said once.

    Args:
        repo: "ORG/NAME", see `repo_name`.
        key: as in `weights_key`. Weights with another one are left where they are.
        targets: which part of a parameter is predicted.
        parts: these parts by the parameters' names.

    Returns:
        A tensor for each of `parts`, all or none.
    """
    try:
        revision, about = locate(repo, key)
        if about is None:
            _logger.info("%s@%s has no weights with key %s.", repo, revision, key)
            return None
        tensors = _cut(_download(repo, revision, about), targets, parts, f"{repo}@{revision}")
    except HubError as error:
        kind = (repo.split("/")[0], error.status)
        _logger.log(logging.INFO if kind in _warned else logging.WARNING, "%s Predicting instead.", error)
        _warned.add(kind)
        return None
    _logger.info("Took finished weights from %s@%s.", repo, revision)
    return tensors


def _cut(
    tensors: "Mapping[str, Tensor]", targets: "Mapping[str, Target]", parts: "Mapping[str, Tensor]", place: str
) -> "dict[str, Tensor]":
    """The parts of a state dict, which may be anybody's."""
    result = {}
    for name, part in parts.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != targets[name].shape or tensor.dtype != part.dtype:
            raise HubError(f"{place}: {name} is not what its key promises.")
        if not is_finite(tensor):
            raise HubError(f"{place}: {name} is not finite.")
        result[name] = targets[name].part(tensor)
    return result


def locate(repo: str, key: str) -> tuple[str, dict[str, Any] | None]:
    """The branch on which weights with a key have their place, and what `look` says if they are there."""
    about = look(repo, MAIN)
    if about is None or about.get("key") == key:
        return MAIN, about
    branch = f"key-{key[:16]}"
    _logger.info(
        "%s holds weights with another key, which are left alone; those with key %s are on %s.", repo, key, branch
    )
    about = look(repo, branch)
    return branch, about if about and about.get("key") == key else None


def look(repo: str, revision: str) -> dict[str, Any] | None:
    """The part of a repository's config.json on weights of ours: {} if there is none, None without such a file.

    Raises:
        HubError: the Hub cannot be reached or refuses.
    """
    path = _fetch(repo, CONFIG, revision)
    return None if path is None else read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """The part of a config.json on weights of ours: their key and digest. {} if there is none."""
    try:
        with open(path, "rb") as f:
            about = json.loads(f.read(_MAX_CONFIG))[METADATA_KEY]
    except (ValueError, RecursionError, LookupError, TypeError):  # somebody else's, or damaged
        return {}
    return about if isinstance(about, dict) else {}


def _download(repo: str, revision: str, wanted: Mapping[str, Any]) -> "dict[str, Tensor]":
    path = _fetch(repo, WEIGHTS, revision)
    if path is None:
        raise HubError(f"{repo}@{revision} has a {CONFIG} but no {WEIGHTS}.")
    try:
        tensors, about = read(path.resolve())  # the Hub's cache links to it
        for entry in ("key", "digest"):
            if about.get(entry) != wanted.get(entry):
                raise WeightsError(f"the {entry} in {path} is not the one in {CONFIG}")
    except (WeightsError, OSError) as error:
        raise HubError(f"{repo}@{revision}: {error}. If only the copy on this machine is damaged, remove it.") from None
    return tensors


def _fetch(repo: str, file: str, revision: str) -> Path | None:
    """A file of a repository; the copy on this machine where the Hub cannot be reached; None where there is none.

    Raises:
        HubError: the Hub refuses, or it cannot be reached and there is no copy.
    """
    from huggingface_hub import constants, hf_hub_download

    clean_logs_of("huggingface_hub")
    unreachable = _unreachable.get(constants.ENDPOINT)
    if unreachable is None:
        try:  # asked beforehand: without a network, `hf_hub_download` keeps trying for half a minute
            if not _is_there(repo, file, revision):
                return None
        except HubError:
            raise
        except Exception as error:  # they have no common base
            status = status_of(error)
            if status is not None and status != 429 and status < 500:
                raise hub_error(f"{repo} cannot be looked up", error) from None
            unreachable = error
            if status is None and not (isinstance(error, ValueError) or constants.HF_HUB_OFFLINE):
                _unreachable[constants.ENDPOINT] = error.with_traceback(None)
    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=unreachable is not None))
    except Exception as error:
        if unreachable and constants.HF_HUB_OFFLINE:
            return None
        raise hub_error(f"{repo}@{revision}: {file} is not available", unreachable or error) from None


def _is_there(repo: str, file: str, revision: str) -> bool:
    """Whether the Hub has a file. Raises as `_fetch` does, and whatever huggingface_hub raises if it cannot tell."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, utils

    try:
        found = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    except utils.GatedRepoError:  # also a RepositoryNotFoundError
        raise
    except (utils.EntryNotFoundError, utils.RepositoryNotFoundError, utils.RevisionNotFoundError):
        return False
    for name in (found.etag, found.commit_hash):  # it names files after them
        if not re.fullmatch(r"\w[\w.-]*", name or ""):
            raise HubError(f"{repo}@{revision}: what answered for {file} is not the Hub.")
    return True


def status_of(error: Exception) -> int | None:
    """The HTTP status that made an error of huggingface_hub's, if one did."""
    return getattr(getattr(error, "response", None), "status_code", None)


_WAYS_OUT = {
    401: "Log in again (hf auth login) or set HF_TOKEN to a token that is valid.",
    403: "Ask for access on the repository's page, or use a token that has it (hf auth login or HF_TOKEN).",
    404: "Check its name, and that your token may see it (hf auth login or HF_TOKEN).",
    412: "Somebody else pushes to it as well. Push again.",
}
_GO_WITHOUT = "Try again later, or set HF_HUB_OFFLINE=1 to go without the Hub."


def hub_error(what: str, error: Exception, token: str | None = None, advice: str = _GO_WITHOUT) -> HubError:
    """An error of huggingface_hub's in one line without a token; to be raised `from None`, for the same reason.

    It begins with `what`, and ends with the advice that fits the cause, else with `advice`.
    """
    from huggingface_hub import get_token

    status = status_of(error)
    cause = getattr(error, "server_message", None) or str(error) or type(error).__name__
    for secret in filter(None, (token, os.environ.get("HF_TOKEN"), get_token())):  # whoever wrote it there
        cause = cause.replace(secret, "***")
    code = f"{status}: " if status else ""
    return HubError(f"{what} ({code}{clean(cause)[:300]}). {_WAYS_OUT.get(status or 0, advice)}", status)

"""Push predicted weights to the Hugging Face Hub, in timm's own format with a model card."""

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..report import InitReport
from ..sources import Source, parse_source
from ..utils.checks import InputError
from ..utils.files import named
from ..utils.text import clean_logs_of, logger
from ..version import __version__
from .card import model_card
from .files import METADATA_KEY, provenance, save, state_dict
from .hub import CARD, CONFIG, MAIN, WEIGHTS, HubError, hub_error, locate
from .timm_config import cfg_fields

_logger = logger(__name__)


def push_model(
    model: nn.Module,
    repo_id: str,
    report: InitReport,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Push a model that has just been initialised: weights, config.json and a model card, in one commit.

    `timm.create_model("hf-hub:ORG/NAME", pretrained=True)` loads it, wherever there is timm.

    Args:
        model: one of timm's. Its values are pushed as they are now.
        repo_id: "ORG/NAME". Created if it is not there; what it holds already stays in its history.
        report: what `init_model` returned for the model. The card is written from it.
        options: what `timm.create_model` was given to build the model. Needed for old versions of timm, and where the
            model was not built by `create_model`.
        seed: of timm's own initialisation, for the card.
        private: of the repository, if it is created. An error if it is there and public.
        create_pr: open a pull request instead of changing the repository.
        revision: branch, created if it is not there. Default: main.
        token: of the Hub. Default: the user's own.

    Returns:
        The address of the commit or pull request.

    Raises:
        HubError: no repository can have that name, or the Hub cannot be reached or refuses; all there is as it was.
        ValueError, TypeError: not a model of timm's, options that JSON cannot hold, or `create_pr`
            with `revision`.

    Example:
        >>> report = init_model(model, "ghn2-orth")
        >>> push_model(model, "me/my-start", report)
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, MAIN):
        raise InputError("A pull request is opened for the main branch: leave out `revision`, or `create_pr`.")
    return _push(model, repo_id, report, lambda: revision or MAIN, options or {}, seed, private, create_pr, token)


def later(repo_id: str) -> str:
    """The fix if the Hub cannot be reached now."""
    return (
        "Try again where there is a network; or write the same with `timm-ghn-init predict ARCH -o FOLDER/` and the "
        f"options of this command, and push it later with `hf upload {repo_id} FOLDER`."
    )


def check_repo_id(repo_id: str) -> None:
    """Raise a HubError for a name that no repository can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"Nothing was pushed to {repo_id} ({error}) Write it as ORG/NAME.") from None


def push_predicted(model: nn.Module, report: InitReport, options: Mapping[str, Any] | None = None) -> None:
    """The work of `push=1`: push a model that was just initialised, unless it came from the Hub.

    Nothing that goes wrong is an error, because the model is as it should be.
    """
    if report.downloaded or not report.hub or os.environ.get("RANK", "0") != "0":
        return
    try:
        push_finished(model, report.hub, report, options or {})
    except Exception as error:
        _logger.warning("push=1: %s is initialised, but not pushed: %s", report.model, error)


def push_finished(
    model: nn.Module, repo_id: str, report: InitReport, options: Mapping[str, Any], seed: int | None = None
) -> str:
    """Push what `?hub=` is to find from now on: to main if that is free, else to a branch that is called by the key.

    Returns the address of the commit; raises as `push_model` does.
    """
    return _push(model, repo_id, report, lambda: locate(repo_id, report.key)[0], options, seed)


def write_folder(
    folder: Path,
    model: nn.Module,
    report: InitReport,
    options: Mapping[str, Any],
    seed: int | None = None,
    repo: str = "",
) -> None:
    """Write model.safetensors and config.json, as timm's `local-dir:` and `hf-hub:` read them.

    Args:
        folder, model, report, options, seed: as in `push_model`.
        repo: "ORG/NAME" or "ORG/NAME@REVISION" where the files are going to be: adds a model card, and the path of a
            GHN of the user's own is left out.

    Raises:
        ValueError, TypeError: as `push_model`.
    """
    if "architecture" not in (getattr(model, "__dict__", {}).get("pretrained_cfg") or {}):
        raise InputError(
            f"{type(model).__name__} is not a model that timm.create_model returns, so timm cannot load it."
        )
    source = parse_source(report.source).prediction
    about = {**provenance(report.model, model, report, options, seed), "key": report.key}
    if repo:
        source = _without_path(source)
        report = replace(report, source=str(source))
        about |= {"source": str(source), "ghn": about["ghn"] and about["ghn"] | {"name": source.name}}
        (folder / CARD).write_text(model_card(report, about, repo), encoding="utf-8")
    digest = save(folder / WEIGHTS, state_dict(model), about)
    known_by = {"key": report.key, "digest": digest} if report.key else {"digest": digest}
    _write_config(folder / CONFIG, model, source, options, known_by)


def _write_config(
    path: Path, model: nn.Module, source: Source, options: Mapping[str, Any], known_by: Mapping[str, str]
) -> None:
    """timm's config.json, with the key by which these weights are found and the digest by which they are known."""
    from timm.models._hub import save_config_for_hf

    described = copy.copy(model)  # the model itself goes on saying of its weights what it said
    described.__dict__["pretrained_cfg"] = {**model.__dict__["pretrained_cfg"], **cfg_fields(source)}
    save_config_for_hf(described, path, model_args=dict(options))  # type: ignore[arg-type]  # older ones take a Path
    config = json.loads(path.read_text(encoding="utf-8"))
    # It stands at the top level as well. From there transformers passes it on, together with all `model_args`.
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps({**config, METADATA_KEY: known_by}, indent=2), encoding="utf-8")


def _without_path(source: Source) -> Source:
    """The path of a file on this machine is private."""
    name = source.name if source.path is None else f"file:{source.path.name}"
    own = tuple((key, Path(value).name if key == "weights" else value) for key, value in source.own)
    return replace(source, name=name, own=own, plus=source.plus and _without_path(source.plus))


def _push(
    model: nn.Module,
    repo_id: str,
    report: InitReport,
    target: Callable[[], str],
    options: Mapping[str, Any],
    seed: int | None,
    private: bool = False,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Commit files at once, on top of a commit that has not changed since `target` was asked for the branch."""
    from huggingface_hub import HfApi

    clean_logs_of("huggingface_hub")
    api = HfApi(token=token, library_name="timm_ghn_init", library_version=__version__)
    with TemporaryDirectory() as name, named(Path(name)):
        folder = Path(name)
        # First, so that whatever is wrong with the model, nothing was touched.
        write_folder(folder, model, report, options, seed, repo_id)
        try:
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if private and not api.repo_info(repo_id).private:
                raise HubError(f"{repo_id} is there already, and public, so nothing was pushed. Make it private first.")
            parent = api.repo_info(repo_id).sha  # before `target` looks, so that what it sees is what is built upon
            revision = target()
            if revision != MAIN:
                write_folder(folder, model, report, options, seed, f"{repo_id}@{revision}")
                api.create_branch(repo_id, branch=revision, exist_ok=True)
                parent = api.repo_info(repo_id, revision=revision).sha
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Weights predicted by timm-ghn-init {__version__}",
                revision=revision,
                parent_commit=parent,
                create_pr=create_pr,
            )
        except HubError:
            raise
        except Exception as error:  # they have no common base
            raise hub_error(f"Nothing was pushed to {repo_id}", error, token, later(repo_id)) from None
    url = str(commit.pr_url or commit.commit_url)
    _logger.info("Pushed to %s: %s", repo_id, url)
    return url

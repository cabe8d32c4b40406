"""`predict` and `push`: the weights of an architecture as a file, or on the Hugging Face Hub."""

import argparse
from dataclasses import replace

from ..weights.files import provenance, save, state_dict
from .arguments import ARCHITECTURE, PREDICTION, command, either, flag, opt, output, read_source
from .files import is_folder, output_path, writing
from .messages import UserError, mistakes
from .models import build_initialised, model_key
from .results import show


@command(
    "predict resnet50 --source ghn2-orth -o resnet50.safetensors",
    *ARCHITECTURE,
    *PREDICTION,
    output("FILE.safetensors|FOLDER/", "for timm's --initial-checkpoint, or its --model local-dir:FOLDER --pretrained"),
)
def predict(args: argparse.Namespace) -> int:
    """Write the weights that a source predicts, as a file or folder that timm loads."""
    folder, path = is_folder(args.output), output_path(args.output, (".safetensors",), folder=True)
    source = read_source(args)
    from ..weights.push import write_folder  # imports torch and timm, which take seconds: mistakes above come first

    model, options, report, seed = build_initialised(args, source)
    with writing(path, folder) as temporary:
        if folder:
            write_folder(temporary, model, report, options, seed)
        else:
            save(temporary, state_dict(model), provenance(args.arch, model, report, options, seed))
    show(args, {"output": path, "report": report.to_dict()}, str(path))
    return 0


@command(
    "push resnet50 --source ghn2-orth --repo ORG/resnet50-ghn2-orth",
    *ARCHITECTURE,
    *PREDICTION,
    opt("--repo", "repository; created if missing", required=True, metavar="ORG/NAME"),
    flag("--private", "make a new repository private"),
    either(
        flag("--create-pr", "open a pull request instead of committing"),
        opt("--revision", "branch; created if missing (default: main)", metavar="R"),
    ),
)
def push(args: argparse.Namespace) -> int:
    """Push the weights that a source predicts to the Hugging Face Hub, for timm's hf-hub:ORG/NAME."""
    from ..weights.push import check_repo_id, push_model

    check_repo_id(args.repo)
    need_hub(args.repo)
    source = read_source(args).prediction
    key = "" if source.initialisation or source.plus else model_key(args, source)[0]
    model, options, report, seed = build_initialised(args, source)
    report = replace(report, key=key)
    how = {name: getattr(args, name) for name in ("private", "create_pr", "revision")}
    with mistakes(ValueError, TypeError):  # e.g. options that JSON cannot hold
        url = push_model(model, args.repo, report, options=options, seed=seed, **how)
    show(args, {"url": url, "report": report.to_dict()}, url)
    return 0


def need_hub(repo: str) -> None:
    """Raise, before the work, if the Hub cannot be reached or nobody is logged in."""
    from huggingface_hub import constants, get_token

    from ..checkpoints.download import hub_unreachable
    from ..weights.push import later

    if get_token() is None:
        raise UserError("There is no token for the Hub: log in (hf auth login) or set HF_TOKEN.")
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.")
    if unreachable := hub_unreachable():
        raise UserError(f"Nothing was pushed to {repo} ({unreachable}). {later(repo)}")

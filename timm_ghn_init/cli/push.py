"""`push`: the weights of an architecture to the Hugging Face Hub."""

import argparse
from dataclasses import replace

from .arguments import Command, add_architecture, add_prediction, read_source
from .messages import UserError, mistakes
from .models import build_initialised, model_key
from .results import show


def add(command: Command) -> None:
    sub = command("push", push, "push resnet50 --source ghn2-orth --repo ORG/resnet50-ghn2-orth")
    add_architecture(sub)
    add_prediction(sub)
    sub.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository; created if missing (required)")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    where.add_argument("--revision", metavar="R", help="branch; created if missing (default: main)")


def push(args: argparse.Namespace) -> int:
    """Push the weights that a source predicts to the Hugging Face Hub, for timm's hf-hub:ORG/NAME."""
    from ..weights.push import check_repo_id, push_model

    check_repo_id(args.repo)
    need_hub(args.repo)
    source = read_source(args).prediction
    key = "" if source.initialisation or source.plus else model_key(args, source)[0]
    model, options, report, seed = build_initialised(args, source)
    report = replace(report, key=key)
    with mistakes(ValueError, TypeError):
        url = push_model(
            model,
            args.repo,
            report,
            options=options,
            seed=seed,
            private=args.private,
            create_pr=args.create_pr,
            revision=args.revision,
        )
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

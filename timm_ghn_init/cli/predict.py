"""`predict`: the weights of an architecture as a file."""

import argparse

from ..weights.files import provenance, save, state_dict
from .arguments import Command, add_architecture, add_prediction, read_source
from .files import is_folder, output_path, writing, writing_folder
from .models import build_initialised
from .results import show


def add(command: Command) -> None:
    sub = command("predict", predict, "predict resnet50 --source ghn2-orth -o resnet50.safetensors")
    add_architecture(sub)
    add_prediction(sub)
    sub.add_argument(
        "-o", "--output", required=True, metavar="FILE.safetensors|FOLDER/",
        help="a file for timm's --initial-checkpoint, or a folder for its --model local-dir:FOLDER --pretrained "
        "(required)",
    )  # fmt: skip


def predict(args: argparse.Namespace) -> int:
    """Write the weights that a source predicts, as a file or folder that timm loads."""
    folder, output = is_folder(args.output), output_path(args.output, (".safetensors",), folder=True)
    source = read_source(args)
    from ..weights.push import write_folder  # imports torch and timm, which take seconds: mistakes above come first

    model, options, report, seed = build_initialised(args, source)
    with writing_folder(output) if folder else writing(output) as temporary:
        if folder:
            write_folder(temporary, model, report, options, seed)
        else:
            save(temporary, state_dict(model), provenance(args.arch, model, report, options, seed))
    show(args, {"output": output, "report": report.to_dict()}, str(output))
    return 0

"""`predict`: the weights of an architecture as a file."""

import argparse

from ..sources import parse_source
from ..weights import provenance, save, state_dict
from .arguments import Command, add_architecture, whole
from .files import is_folder, output_path, writing, writing_folder
from .messages import mistakes
from .models import build, model_options, read_device, read_source

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # timm's names, on the Hub and in local folders


def add(command: Command) -> None:
    sub = command("predict", predict)
    add_architecture(sub)
    sub.add_argument("--source", default="ghn-orth", help="which GHN, see list (default: %(default)s)")
    sub.add_argument("--seed", type=whole(0), help="of all that is random (default: the source's own, else 0)")
    sub.add_argument("--device", help="where to predict (default: CUDA if there is one, else CPU)")
    sub.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.safetensors|FOLDER/",
        help="a file for timm's --initial-checkpoint, or a folder for its --model local-dir:FOLDER --pretrained",
    )


def predict(args: argparse.Namespace) -> int:
    """Write the weights that a source predicts for an architecture, as a file or folder that timm loads."""
    import torch

    from ..initialize import init_model
    from ..timm_hooks import write_config

    folder, output = is_folder(args.output), output_path(args.output, (".safetensors",), folder=True)
    source = read_source(args.source)
    device = read_device(args.device)
    seed = next(s for s in (args.seed, source.seed, 0) if s is not None)
    torch.manual_seed(seed)  # of timm's own initialisation, which is kept by what is not predicted
    model, options = build(args)
    with mistakes(ValueError):  # options of the source that do not fit the model
        report = init_model(model, source, input_size=args.img_size, seed=seed, device=device)
    about = provenance(args.arch, model, report, model_options(args), seed)
    with writing_folder(output) if folder else writing(output) as temporary:
        save(temporary / WEIGHTS if folder else temporary, state_dict(model), about)
        if folder:
            write_config(model, temporary / CONFIG, parse_source(report.source), options)
    print(output)
    return 0

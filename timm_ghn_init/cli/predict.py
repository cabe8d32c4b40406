"""`predict`: the weights of an architecture as a file."""

import argparse

from ..weights import provenance, save, state_dict
from .arguments import Command, add_architecture, whole
from .files import output_path, writing
from .messages import mistakes
from .models import create_architecture, model_options, read_device, read_source


def add(command: Command) -> None:
    sub = command("predict", predict)
    add_architecture(sub)
    sub.add_argument("--source", default="ghn-orth", help="which GHN, see list (default: %(default)s)")
    sub.add_argument("--seed", type=whole(0), help="of all that is random (default: the source's own, else 0)")
    sub.add_argument("--device", help="where to predict (default: CUDA if there is one, else CPU)")
    sub.add_argument(
        "-o", "--output", required=True, metavar="FILE.safetensors", help="for timm's --initial-checkpoint"
    )


def predict(args: argparse.Namespace) -> int:
    """Write the weights that a source predicts for an architecture, as a file that timm loads."""
    import torch

    from ..initialize import init_model

    output = output_path(args.output, (".safetensors",))
    source = read_source(args.source)
    device = read_device(args.device)
    seed = next(s for s in (args.seed, source.seed, 0) if s is not None)
    torch.manual_seed(seed)  # of timm's own initialisation, which is kept by what is not predicted
    model = create_architecture(args)
    with mistakes(ValueError):  # options of the source that do not fit the model
        report = init_model(model, source, input_size=args.img_size, seed=seed, device=device)
    with writing(output) as temporary:
        about = provenance(args.arch, model, report, model_options(args), seed)
        save(temporary, state_dict(model), about)
    print(output)
    return 0

"""`predict`: the weights of an architecture as a file."""

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..sources import parse_source
from .arguments import Command, add_architecture, whole
from .files import is_folder, output_path, writing, writing_folder
from .messages import mistakes
from .models import build, model_options, read_device, read_source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..report import InitReport

METADATA_KEY = "timm_ghn_init"
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
    provenance = _provenance(args, model, report, seed)
    with writing_folder(output) if folder else writing(output) as temporary:
        save_state_dict(model, temporary / WEIGHTS if folder else temporary, provenance)
        if folder:
            write_config(model, temporary / CONFIG, parse_source(report.source), options)
    print(output)
    return 0


def save_state_dict(model: "nn.Module", path: Path, provenance: dict[str, Any]) -> None:
    """A file that timm loads, with how it came about in its metadata."""
    from safetensors.torch import save_file

    # One entry in the metadata: their order in the file is not defined, and the same command shall give the same bytes.
    save_file(state_dict(model), path, {METADATA_KEY: json.dumps(provenance)})


def state_dict(model: "nn.Module") -> "dict[str, Tensor]":
    """All entries, on CPU, none sharing memory: timm loads strictly, so tied tensors are there under each name."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        t = tensor.detach().cpu().contiguous()
        if t.untyped_storage().data_ptr() in storages or t.untyped_storage().nbytes() > t.nbytes:
            t = t.clone()
        storages.add(t.untyped_storage().data_ptr())
        tensors[name] = t
    return tensors


def _provenance(args: argparse.Namespace, model: "nn.Module", report: "InitReport", seed: int) -> dict[str, Any]:
    """How a file of weights came about; nothing that differs between two runs of one command."""
    import timm
    import torch

    from ..checkpoints import fetch
    from ..download import sha256

    source = parse_source(report.source)
    ghn = {"name": source.name, "sha256": sha256(fetch(source))}
    if source.known:
        ghn |= {"origin": source.known.origin, "license": source.known.license, "paper": f"arXiv:{source.known.arxiv}"}
    return {
        "source": report.source,
        "ghn": ghn,
        "architecture": args.arch,
        "num_classes": getattr(model, "num_classes", None),
        "options": model_options(args),
        "seed": seed,
        "coverage": report.coverage,
        "predicted": report.predicted,
        "skipped": report.skipped,
        "layer": report.layer,
        "postprocessed": report.postprocessed,
        "device": report.device,
        "versions": {
            "timm_ghn_init": __version__,
            "timm": timm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }

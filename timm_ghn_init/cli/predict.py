"""`predict`: the weights of an architecture as a file."""

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..sources import Source, parse_source
from .arguments import Command, add_architecture, whole
from .files import output_path, writing
from .messages import mistakes
from .models import create_architecture, model_options, read_device, read_source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..report import InitReport

METADATA_KEY = "timm_ghn_init"


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
        save_state_dict(model, temporary, _provenance(args, model, report, seed))
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

    return {
        "source": report.source,
        "ghn": _ghn(parse_source(report.source)),
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


def _ghn(source: Source) -> dict[str, str] | None:
    """Which GHN has predicted, exactly enough to tell one version of it from another."""
    from ..checkpoints import fetch
    from ..download import sha256

    if source.baseline:
        return None
    ghn = {"name": source.name, "sha256": sha256(fetch(source))}
    if source.known:
        ghn |= {"origin": source.known.origin, "license": source.known.license, "paper": f"arXiv:{source.known.arxiv}"}
    return ghn

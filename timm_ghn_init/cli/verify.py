"""`verify`: a prediction against that of the reference implementation."""

import argparse
import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sources import Source
from ..text import logger
from .arguments import Command
from .messages import UserError, did_you_mean, table
from .models import read_source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ghn import GHN

_logger = logger(__name__)

TOLERANCE = 1e-4  # relative to the largest value of a tensor
WITHOUT_POOLING = ("mnasnet", "shufflenet")  # they pool with a mean that ppuda does not see
TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}  # ppuda removes auxiliary heads


def add(command: Command) -> None:
    sub = command("verify", verify)
    sub.add_argument("arch", metavar="ARCH", help="a torchvision model")
    sub.add_argument("--ghn", default="ghn2", metavar="FILE", help="a GHN's file or name (default: %(default)s)")


def verify(args: argparse.Namespace) -> int:
    """Compare a prediction with that of ppuda, tensor by tensor."""
    reference = _reference()
    import torchvision

    from ..checkpoints.load import load_ghn
    from ..initialize import init_model

    names = torchvision.models.list_models(module=torchvision.models)
    if args.arch not in names:
        raise UserError(f"Unknown torchvision model {args.arch!r}.{did_you_mean(args.arch, names)}")
    source = Source(read_source(f"file:{args.ghn}" if Path(args.ghn).is_file() else args.ghn).name)
    ghn = load_ghn(source, "cpu")
    if ghn.dialect != "ghn2":
        raise UserError(f"{args.ghn} is a GHN-3, and ppuda knows only GHN-1 and GHN-2.")
    options = TORCHVISION_OPTIONS.get(args.arch, {})
    ours = torchvision.models.get_model(args.arch, weights=None, num_classes=ghn.num_classes, **options).eval()
    _forget(ours)
    theirs = copy.deepcopy(ours)
    init_model(ours, source, device="cpu")
    _reference_predict(reference, ghn, theirs)
    if args.arch.startswith(WITHOUT_POOLING):
        _logger.warning("ppuda's graph of %s lacks the global average pooling: differences are expected.", args.arch)
    return _compare(_known(ours), _known(theirs))


def _reference() -> Any:
    """ppuda's GHN class."""
    try:
        from ppuda.ghn.nn import GHN
    except ImportError as error:
        raise UserError(
            f"verify compares with the reference, ppuda, which cannot be imported ({error}). "
            "It is on no package index: pip install -r requirements-reference.txt, from this project's repository."
        ) from error
    return GHN


def _reference_predict(reference: Any, ghn: "GHN", model: "nn.Module") -> None:
    """Let ppuda predict, in place, with the weights of our GHN."""
    peer = reference(**ghn.config).eval()
    peer.load_state_dict(ghn.state_dict())
    with redirect_stdout(io.StringIO()) as said:
        peer(model, bn_train=False)
    _logger.debug("%s", said.getvalue())


def _forget(model: "nn.Module") -> None:
    """Fill the parameters with NaN, so that those without a prediction can be told."""
    for p in model.parameters():
        p.data.fill_(float("nan"))


def _known(model: "nn.Module") -> "dict[str, Tensor]":
    return {name: p.detach() for name, p in model.named_parameters() if not p.isnan().all()}


def _compare(ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]") -> int:
    """Print the differences; 1 if there are any worth the name."""
    rows, wrong = [], []
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            rows.append((name, "", "", f"predicted by {'us' if name in ours else 'ppuda'} only"))
            wrong.append(name)
            continue
        absolute = (ours[name] - theirs[name]).abs().max().item()
        relative = absolute / max(theirs[name].abs().max().item(), 1e-30)
        shape = "x".join(map(str, ours[name].shape))
        rows.append((name, shape, f"{absolute:.2e}", f"{relative:.2e}"))
        if not relative <= TOLERANCE:  # NaN included
            wrong.append(name)
    print(table(("parameter", "shape", "largest difference", "relative to the largest value"), rows))
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} parameters agree to {TOLERANCE:g}.")
    return 1 if wrong else 0

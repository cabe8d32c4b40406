"""`verify`: a prediction against that of the reference implementation."""

import argparse
import copy
import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from ..sources import Source, parse_source
from ..utils.text import did_you_mean, logger
from .arguments import Command, add_source
from .messages import UserError, table
from .results import show

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
    add_source(sub, "ghn2", "which GHN, see list", "--ghn")


def verify(args: argparse.Namespace) -> int:
    """Compare a prediction with that of ppuda, tensor by tensor."""
    reference = _reference()
    import torchvision

    from ..checkpoints.load import load_ghn
    from ..initialize import init_model

    names = torchvision.models.list_models(module=torchvision.models)
    if args.arch not in names:
        raise UserError(f"Unknown torchvision model {args.arch!r}.{did_you_mean(args.arch, names)}")
    source = Source(parse_source(args.source).name)
    ghn = load_ghn(source, "cpu")
    if ghn.dialect != "ghn2":
        raise UserError(f"{source} is a GHN-3, and ppuda knows only GHN-1 and GHN-2.")
    options = TORCHVISION_OPTIONS.get(args.arch, {})
    ours = torchvision.models.get_model(args.arch, weights=None, num_classes=ghn.num_classes, **options).eval()
    _forget(ours)
    theirs = copy.deepcopy(ours)
    init_model(ours, source, device="cpu")
    _reference_predict(reference, ghn, theirs)
    if args.arch.startswith(WITHOUT_POOLING):
        _logger.warning("ppuda's graph of %s lacks the global average pooling: differences are expected.", args.arch)
    return _compare(args, _known(ours), _known(theirs))


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


def _compare(args: argparse.Namespace, ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]") -> int:
    """Show the differences; 1 if there are any worth the name."""
    rows = [_difference(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys((*ours, *theirs))]
    agree = sum(row.agrees for row in rows)
    data = {"tolerance": TOLERANCE, "agree": agree, "parameters": [row._asdict() for row in rows]}
    show(args, data, lambda: _as_text(rows, agree))
    return 0 if agree == len(rows) else 1


class _Difference(NamedTuple):
    """Of one parameter; without numbers where only one side, `by`, predicts it."""

    name: str
    shape: list[int]
    by: str
    largest: float | None
    relative: float | None
    agrees: bool


def _difference(name: str, ours: "Tensor | None", theirs: "Tensor | None") -> _Difference:
    if ours is None or theirs is None:
        only = theirs if ours is None else ours
        assert only is not None
        return _Difference(name, list(only.shape), "ppuda" if ours is None else "us", None, None, False)
    absolute = (ours - theirs).abs().max().item()
    relative = absolute / max(theirs.abs().max().item(), 1e-30)
    return _Difference(name, list(ours.shape), "both", absolute, relative, relative <= TOLERANCE)  # NaN does not


def _as_text(rows: list[_Difference], agree: int) -> str:
    cells = [
        (row.name, "x".join(map(str, row.shape)), f"{row.largest:.2e}", f"{row.relative:.2e}")
        if row.largest is not None
        else (row.name, "", "", f"predicted by {row.by} only")
        for row in rows
    ]
    header = ("parameter", "shape", "largest difference", "relative to the largest value")
    return f"{table(header, cells)}\n\n{agree} of {len(rows)} parameters agree to {TOLERANCE:g}."

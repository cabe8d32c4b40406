"""Compare a prediction with that of the reference implementation, ppuda, tensor by tensor.

    python benchmarks/verify.py resnet18 --source ghn2

ppuda is on no package index: pip install -r requirements-reference.txt. Exit status 1: they differ.
"""

import argparse
import copy
import io
import sys
from contextlib import redirect_stdout
from typing import Any, NamedTuple

from torch import Tensor, nn

from timm_ghn_init import GHN, init_model, load_ghn, parse_source
from timm_ghn_init.cli.messages import table
from timm_ghn_init.sources import Source

TOLERANCE = 1e-4  # relative to the largest value of a tensor
WITHOUT_POOLING = ("mnasnet", "shufflenet")  # they pool with a mean that ppuda does not see
TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}  # ppuda removes auxiliary heads


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", help="a torchvision model")
    parser.add_argument("--source", default="ghn2", help="a GHN-1 or GHN-2 (default: %(default)s)")
    args = parser.parse_args(argv)
    reference = _reference()
    import torchvision

    source = Source(parse_source(args.source).name)
    ghn = load_ghn(source, "cpu")
    if ghn.dialect != "ghn2":
        sys.exit(f"{source} is a GHN-3, and ppuda knows only GHN-1 and GHN-2.")
    options = TORCHVISION_OPTIONS.get(args.arch, {})
    ours = torchvision.models.get_model(args.arch, weights=None, num_classes=ghn.num_classes, **options).eval()
    _fill_with_nan(ours)
    theirs = copy.deepcopy(ours)
    init_model(ours, source, device="cpu")
    _reference_predict(reference, ghn, theirs)
    if args.arch.startswith(WITHOUT_POOLING):
        print(f"ppuda's graph of {args.arch} lacks the global average pooling: differences are expected.")
    rows = compare(_predicted(ours), _predicted(theirs))
    agree = sum(row.agrees for row in rows)
    print(f"{_as_table(rows)}\n\n{agree} of {len(rows)} parameters agree to {TOLERANCE:g}.")
    return 0 if agree == len(rows) else 1


def _reference() -> Any:
    """ppuda's GHN class."""
    try:
        from ppuda.ghn.nn import GHN
    except ImportError as error:
        sys.exit(
            f"verify.py compares with the reference, ppuda, which cannot be imported ({error}). "
            "It is on no package index: pip install -r requirements-reference.txt."
        )
    return GHN


def _reference_predict(reference: Any, ghn: GHN, model: nn.Module) -> None:
    """Let ppuda predict, in place, with the weights of our GHN."""
    peer = reference(**ghn.config).eval()
    peer.load_state_dict(ghn.state_dict())
    with redirect_stdout(io.StringIO()):
        peer(model, bn_train=False)


def _fill_with_nan(model: nn.Module) -> None:
    """Fill the parameters with NaN, so that those without a prediction can be told."""
    for p in model.parameters():
        p.data.fill_(float("nan"))


def _predicted(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if not p.isnan().all()}


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list["Difference"]:
    """The difference in each parameter that one of the two has predicted."""
    return [_difference(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys((*ours, *theirs))]


class Difference(NamedTuple):
    """The comparison of one parameter; without numbers where only one side, `by`, predicts it."""

    name: str
    shape: list[int]
    by: str
    largest: float | None
    relative: float | None
    agrees: bool


def _difference(name: str, ours: Tensor | None, theirs: Tensor | None) -> Difference:
    if ours is None or theirs is None:
        only = theirs if ours is None else ours
        assert only is not None
        return Difference(name, list(only.shape), "ppuda" if ours is None else "us", None, None, False)
    absolute = (ours - theirs).abs().max().item()
    relative = absolute / max(theirs.abs().max().item(), 1e-30)
    return Difference(name, list(ours.shape), "both", absolute, relative, relative <= TOLERANCE)  # NaN does not


def _as_table(rows: list[Difference]) -> str:
    cells = [
        (row.name, "x".join(map(str, row.shape)), f"{row.largest:.2e}", f"{row.relative:.2e}")
        if row.largest is not None
        else (row.name, "", "", f"predicted by {row.by} only")
        for row in rows
    ]
    return table(("parameter", "shape", "largest difference", "relative to the largest value"), cells)


if __name__ == "__main__":
    sys.exit(main())

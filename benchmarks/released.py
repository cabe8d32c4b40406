"""Whether the released GHNs do here what their authors published: one command, for whoever has a network.

    python benchmarks/released.py                     # minutes on a CPU; downloads 60 MB, and CIFAR-10 (170 MB)
    python benchmarks/released.py --checks norms      # no images needed
    python benchmarks/released.py --checks norms cifar10 table1   # table1 takes a day of a GPU

Downloads the GHNs (`timm-ghn-init fetch` checks ppuda's against pinned git blob ids, the Hub's client checks GHN-3) and
compares with three kinds of published figures. Prints what was published, what was measured and whether they agree;
ends with status 1 where one does not, or could not be measured.

* norms: the norm of all parameters of torchvision's models, ghn3_results.json of SamsungSAILMontreal/ghn3.
* cifar10: accuracy of ResNet-50 with predicted parameters and no training, README of facebookresearch/ppuda.
* table1: fine-tuning on CIFAR-10 with 1000 labels, Table 1 of arXiv 2207.10049.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks.paper`, wherever this is started

from benchmarks.paper.__main__ import NUMBERS, RUNS
from benchmarks.paper.__main__ import main as paper
from timm_ghn_init import init_model
from timm_ghn_init.checkpoints.load import CheckpointError, fetch
from timm_ghn_init.cli.messages import table
from timm_ghn_init.lab.finetune.results import read, summary
from timm_ghn_init.lab.images import DatasetError, datasets
from timm_ghn_init.sources import parse_source

# Of torchvision's models with 1000 classes; rounded there to four places.
NORMS = {
    "ghn2": {"resnet18": 146.9574, "resnet50": 286.4883, "densenet121": 266.3553, "convnext_base": 258.8298},
    "ghn3-t": {"resnet18": 54.9382, "resnet50": 78.6197, "densenet121": 68.6535, "convnext_base": 103.0898},
}
ACCURACIES = {"ghn2-cifar10": 58.6, "ghn1-cifar10": 19.2, "mlp-cifar10": 17.7}  # %, on all 10,000 test images
MEAN, STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)  # as they normalise CIFAR-10
BATCH = 64  # whose statistics their batch norms use


class Claim(NamedTuple):
    """A published figure, and how it is measured here.

    Attributes:
        what: in words.
        published: the figure.
        tolerance: how far apart two may be that agree: rounding, or a standard deviation.
        measure: takes no argument.
    """

    what: str
    published: float
    tolerance: float
    measure: Callable[[], float]


def norms(args: argparse.Namespace) -> Iterator[Claim]:
    for ghn, models in NORMS.items():
        for name, published in models.items():
            yield Claim(f"{name} by {ghn}, norm", published, 0.01, lambda g=ghn, n=name: _norm(g, n))


def _norm(ghn: str, name: str) -> float:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    init_model(model, ghn, progress=False)
    return torch.stack([p.detach().norm() for p in model.parameters()]).norm().item()


def cifar10(args: argparse.Namespace) -> Iterator[Claim]:
    for ghn, published in ACCURACIES.items():
        measure = lambda g=ghn: 100 * _accuracy(g, args.data_dir, args.device)  # noqa: E731
        yield Claim(f"resnet50 by {ghn}, CIFAR-10 %", published, 0.06, measure)


@torch.no_grad()
def _accuracy(ghn: str, data_dir: Path, device: str) -> float:
    """Test accuracy of ResNet-50 with a stem for 32 x 32 pixels, as `adjust_net` of the authors makes it."""
    test = datasets.load("cifar10", 32, data_dir).test
    model = torchvision.models.resnet50(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    init_model(model, ghn, input_size=32, progress=False)
    model.to(device).train()  # no running statistics are predicted; nothing else differs in training
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    right = 0
    for images, labels in zip(test.images.split(BATCH), test.labels.split(BATCH), strict=True):
        logits = model((images.to(device).float() / 255 - mean) / std)
        right += int((logits.argmax(1).cpu() == labels).sum())
    return right / len(test)


def table1(args: argparse.Namespace) -> Iterator[Claim]:
    for init, (published, deviation) in NUMBERS["table1"]["resnet50"].items():
        measure = lambda i=init: _fine_tuned(i, args)  # noqa: E731
        yield Claim(f"resnet50 from {init}, CIFAR-10 with 1000 labels, %", published, 2 * deviation, measure)


def _fine_tuned(init: str, args: argparse.Namespace) -> float:
    """Mean of five seeds with the paper's hyper-parameters; what is in the file already is not run again."""
    options = ["--data-dir", str(args.data_dir), "--device", args.device]
    if paper(["table1", "--arch", "resnet50", "--inits", init, "--out", str(args.out), *options]):
        raise RuntimeError("fine-tuning failed")
    rows = [row for row in summary(read(args.out / RUNS)) if _title(row["trial"]["init"]) == init]
    return 100 * rows[-1]["test_accuracy"][0]


def _title(init: str) -> str:
    """The paper's name of an initialisation."""
    if init == "pretrained":
        return init
    source = parse_source(init)
    return source.name if source.initialisation else "ghn" + "-orth" * source.orth


CHECKS = {"norms": norms, "cifar10": cifar10, "table1": table1}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=["norms", "cifar10"], help="default: two")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="of CIFAR-10 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/released"), help="of table1 (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    args = parser.parse_args(argv)
    needed = {"norms": NORMS, "cifar10": ACCURACIES, "table1": {"ghn2": None}}
    for ghn in dict.fromkeys(name for check in args.checks for name in needed[check]):
        try:
            print(f"{ghn}: {fetch(ghn).name}", flush=True)
        except CheckpointError as error:
            print(f"{ghn}: {error}", flush=True)
    rows, failed = [], 0
    for check in args.checks:
        for claim in CHECKS[check](args):
            try:
                measured = claim.measure()
            except (CheckpointError, DatasetError, RuntimeError) as error:
                rows.append((claim.what, f"{claim.published:g}", "-", f"not measured: {str(error).splitlines()[0]}"))
                failed += 1
                continue
            agrees = abs(measured - claim.published) <= claim.tolerance
            failed += not agrees
            rows.append((claim.what, f"{claim.published:g}", f"{measured:.4f}", "yes" if agrees else "NO"))
    print("\n" + table(("figure", "published", "measured here", "agree"), rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The figures and tables of arXiv 2207.10049, each by one command, for any architecture of timm and any GHN.

    python -m benchmarks.paper figure2                      # what the paper shows
    python -m benchmarks.paper table1 --arch resnet18 --data digits --epochs 20 --seeds 2

Every step is a `timm-ghn-init` command, which is printed before it runs; --dry-run only prints. Options that are not of
this script go on to those commands.
"""

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from timm_ghn_init.cli import main as timm_ghn_init

NUMBERS = json.loads((Path(__file__).parent / "numbers.json").read_text())
INITS = tuple(NUMBERS["table1"]["resnet50"])
Argv = list[str]


class Steps:
    """Commands of one figure or table."""

    def __init__(self, args: argparse.Namespace, more: Sequence[str]) -> None:
        self.archs: list[str] = args.arch
        self.ghn: str = args.ghn
        self.inits: list[str] = args.inits.split(",")
        self.out: Path = args.out
        self.more = list(more)

    def source(self, init: str) -> str:
        """The paper's name of an initialisation as a source with the GHN that was chosen."""
        return self.ghn + init.removeprefix("ghn") if init.startswith("ghn") else init

    def figure2(self) -> Iterator[Argv]:
        for arch in self.archs:
            sources = map(self.source, self.inits)
            output = self.out / f"figure2_{arch}.svg"
            yield ["analyze", "correlations", arch, "--source", *sources, "-o", str(output), *self.more]

    def figure3(self) -> Iterator[Argv]:
        for arch in self.archs:
            yield ["graph", arch, "--source", self.ghn, "-o", str(self.out / f"figure3_{arch}.svg"), *self.more]

    def figure5(self) -> Iterator[Argv]:
        colours = ["--values", str(self.out / ACCURACIES)] if (self.out / ACCURACIES).is_file() else []
        output = ["-o", str(self.out / "figure5.svg")]
        networks = ["--reference", "networks", "--size", "500"]
        yield ["analyze", "embed", *self.archs, "--source", self.ghn, *networks, *colours, *output, *self.more]

    def accuracies(self) -> Iterator[Argv]:
        yield ["eval-ghn", "--source", self.ghn, "--json", "--networks", "500", *self.more]

    def table1(self) -> Iterator[Argv]:
        for arch in self.archs:
            for init in self.inits:
                yield self._finetune(arch, init, self.source(init), RUNS)

    def table2(self) -> Iterator[Argv]:
        for arch in self.archs:
            for init in self.inits:
                yield ["finetune", arch, "--source", self.source(init), "--search", "grid", *self._rest("search.jsonl")]

    def ablations(self) -> Iterator[Argv]:
        for arch in self.archs:
            for init in NUMBERS["ablations"]["resnet50"]:
                yield self._finetune(arch, init.partition("?")[0], self.source(init), RUNS)

    def report(self) -> Iterator[Argv]:
        measured = [self.out / f"figure2_{arch}.json" for arch in self.archs]
        correlations = [part for path in measured if path.is_file() for part in ("--correlations", str(path))]
        yield ["report", str(self.out / RUNS), *correlations, "-o", str(self.out / "report.html"), *self.more]

    def _finetune(self, arch: str, init: str, source: str, file: str) -> Argv:
        preset = f"{arch if arch in NUMBERS['table1'] else _relative(arch)}/{init}"
        return ["finetune", arch, "--preset", preset, "--source", source, *self._rest(file)]

    def _rest(self, file: str) -> Argv:
        """Options that come last win: the paper's data unless others are asked for."""
        return ["--data", "cifar10", "-o", str(self.out / file), *self.more]


RUNS, ACCURACIES = "runs.jsonl", "accuracies.csv"
ITEMS: dict[str, tuple[Callable[[Steps], Iterator[Argv]], tuple[str, ...]]] = {
    "figure2": (Steps.figure2, ("resnet50",)),
    "figure3": (Steps.figure3, ("resnet50", "convnext_base")),
    "figure4": (Steps.report, ("resnet50", "convnext_base")),
    "figure5": (Steps.figure5, ("resnet50", "convnext_base")),
    "accuracies": (Steps.accuracies, ()),
    "table1": (Steps.table1, ("resnet50", "convnext_base")),
    "table2": (Steps.table2, ("resnet50", "convnext_base")),
    "ablations": (Steps.ablations, ("resnet50",)),
}


def _relative(arch: str) -> str:
    """Whose hyper-parameters an architecture gets that the paper has not tuned: ConvNeXt's, or else ResNet-50's."""
    return "convnext_base" if any(word in arch for word in ("convnext", "vit", "swin", "former")) else "resnet50"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the commands of a figure or table; the exit status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", allow_abbrev=False)
    parser.add_argument("item", choices=ITEMS)
    parser.add_argument("--arch", nargs="+", help="architectures of timm (default: the paper's)")
    parser.add_argument("--ghn", default="ghn2", help="a GHN, see timm-ghn-init list (default: %(default)s)")
    parser.add_argument("--inits", default=",".join(INITS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/paper"), help="folder (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args, more = parser.parse_known_args(argv)
    commands, archs = ITEMS[args.item]
    args.arch = args.arch or list(archs)
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)
    for command in commands(Steps(args, more)):
        print(f"\n$ {shlex.join(['timm-ghn-init', *command])}", flush=True)
        status = 0 if args.dry_run else _run(command, args.out)
        if status:
            return status
    if args.item in ("table1", "ablations") and not args.dry_run:
        print(f"\n{_beside(args.out / RUNS, args.arch, args.item)}")
    return 0


def _run(command: Argv, out: Path) -> int:
    if command[0] != "eval-ghn":
        return timm_ghn_init(command)
    text = io.StringIO()
    with redirect_stdout(text):
        status = timm_ghn_init(command)
    if status == 0:
        with (out / ACCURACIES).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("name", "accuracy with predicted parameters"))
            writer.writerows((s["name"], s["predicted"]) for s in json.loads(text.getvalue())["scores"])
        print(out / ACCURACIES)
    return status


def _beside(runs: Path, archs: Sequence[str], item: str) -> str:
    """Our results in one column, the paper's in another with its own title."""
    from timm_ghn_init.cli.messages import table
    from timm_ghn_init.lab.analysis.runs import experiments
    from timm_ghn_init.lab.finetune.results import read
    from timm_ghn_init.sources import is_source, parse_source

    rows = []
    for experiment in experiments(read(runs))[0]:
        if experiment.arch not in archs:
            continue
        paper = NUMBERS[item].get(experiment.arch, {})
        for row in experiment.rows:
            init = row.trial["init"]
            if is_source(init):
                source = parse_source(init)
                init = init if source.initialisation else init.replace(source.name, "ghn", 1)
            theirs = "{:.1f} ± {:.1f}".format(*paper[init]) if init in paper else "-"
            mean, std = row.test
            ours = "-" if mean is None else f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
            what = f"{experiment.data}, {experiment.labels} labels, {len(row.runs)} seeds"
            rows.append((experiment.arch, row.label, ours, what, theirs))
    return table(
        ("architecture", "initialisation", "ours: test %", "ours: measured on", "PAPER: CIFAR-10, test %"), rows
    )


if __name__ == "__main__":
    sys.exit(main())

"""Measure what a GHN trained on other images is worth: few labels, from RAND, ORTH, GHN and GHN-ORTH.

    python benchmarks/transfer.py --markdown benchmarks/results/transfer.md --plot benchmarks/results/transfer.svg

Every initialisation gets the same budget. For each row of the table (data, network, labels, epochs) and each
initialisation the learning rate, and where there are layer scales their value, are chosen by one run each on the
validation images; the grid of rates is widened until the best lies inside of it. Then several seeds of the best are
tested after the last epoch, on images that were not looked at before. Results are kept in a file, one line a run; the
same command goes on where it was stopped. `--data`, `--inits`, `--models`, `--labels` and `--times` do a part of it.
"""

import argparse
import logging
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from tqdm import tqdm

from timm_ghn_init.lab.analysis.figures import PALETTE
from timm_ghn_init.lab.finetune import Runs, Trial, work
from timm_ghn_init.lab.finetune.plans import Plan, Results, one_after_another, ranked, searched
from timm_ghn_init.lab.finetune.protocol import settled
from timm_ghn_init.lab.finetune.results import mean_and_std
from timm_ghn_init.sources import SHIPPED, parse_source

DATA = {
    "digits": "scikit-learn's digits",
    "letters": "letters A to J in many fonts (`benchmarks/letters.py`)",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
MODELS = ("resnet18", "resnet50", "convnext_atto", "vit_tiny_patch8_32")
LABELS = (100, 1000)
INITS = ("rand", "orth", "ghn", "ghn-orth")
TITLES = {"rand": "RAND", "orth": "ORTH", "ghn": "GHN", "ghn-orth": "GHN-ORTH"}
COLOURS = {init: PALETTE[init].colour for init in TITLES}
# by model and labels: short training, in which an initialisation can be seen
EPOCHS = {
    "resnet18": {100: 12, 1000: 3},
    "resnet50": {100: 8, 1000: 2},
    "convnext_atto": {100: 15, 1000: 4},
    "vit_tiny_patch8_32": {100: 20, 1000: 5},
}
LEARNING_RATES = {"sgd": (0.1, 0.03, 0.01), "adamw": (0.003, 0.001)}  # the first ones tried, see `Widening`
# The values of layer scales that are tried, by model.
LAYER_SCALES: dict[str, tuple[str, ...]] = {"convnext_atto": ("keep", "0.3", "1.0")}
STEP = 3.0  # from one learning rate to the next
WIDEST = 1000.0  # from the lowest to the highest learning rate

Record = dict[str, Any]


@timm.models.register_model
def vit_tiny_patch8_32(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """timm's ViT-Tiny (12 blocks, width 192, class token) for 32 x 32 pixels: 16 patches instead of 196."""
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **options)


class Group(NamedTuple):
    """Runs that differ in learning rate and seed."""

    data: str
    model: str
    labels: int
    times: int  # as many epochs as `EPOCHS` says
    init: str  # a key of TITLES

    @property
    def row(self) -> tuple[Any, ...]:
        """The settings that all initialisations of one row of the table share."""
        return self[:-1]


def source(init: str, ghn: str) -> str:
    return {"ghn": ghn, "ghn-orth": f"{ghn}-orth"}.get(init, init)


def trials(group: Group, ghn: str) -> list[Trial]:
    """All but learning rate and seed: one trial, or one for each value of the layer scales."""
    name = source(group.init, ghn)
    scaled = [f"{name}?layer_scale={value}" for value in LAYER_SCALES.get(group.model, ())]
    return [trial(group, init) for init in scaled or [name]]


def trial(group: Group, init: str) -> Trial:
    return Trial(
        group.model,
        init,
        data=group.data,
        labels=group.labels,
        validation=200,
        epochs=EPOCHS[group.model][group.labels] * group.times,
        opt=optimizer(group.model),
        batch_size=48,
        sched_on_updates=True,
        keep_stem=True,
    )


def optimizer(model: str) -> Literal["sgd", "adamw"]:
    """The paper's for the family."""
    return "adamw" if model.startswith(("convnext", "vit")) else "sgd"


class Widening:
    """The plan that runs learning rates once each, more of them as long as the best is the lowest or the highest.

    Args:
        trials: all else, to choose from.
        rates: the first ones, for each trial.
        seeds: how often to run the best, with seeds from 0 on.
    """

    def __init__(self, trials: Sequence[Trial], rates: Sequence[float], seeds: int) -> None:
        self.trials, self.rates, self.seeds = trials, rates, seeds

    def __call__(self, results: Results) -> list[Trial]:
        tried, missing = self._search(results)
        return missing or [t for t in self._final(tried, results) if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported; none as long as the choice is open."""
        tried, missing = self._search(results)
        return [] if missing else self._final(tried, results)

    def tried(self, results: Results) -> list[float]:
        """The learning rates of the search with the trial that is best."""
        tried = self._search(results)[0]
        best = ranked(tried, results)[0].init
        return sorted(t.lr for t in tried if t.init == best)

    def _search(self, results: Results) -> tuple[list[Trial], list[Trial]]:
        """Trials, and those of them that are still to be run."""
        settled_ones = [settled(t) for t in self.trials]
        grid = {t.init: sorted(self.rates) for t in settled_ones}
        while True:
            trials = searched(replace(t, lr=rate) for t in settled_ones for rate in grid[t.init])
            if missing := [t for t in trials if t.key not in results]:
                return trials, missing
            best = ranked(trials, results)[0]
            rates = grid[best.init]
            if best.lr not in (rates[0], rates[-1]) or rates[-1] / rates[0] > WIDEST:
                return trials, []
            if best.lr == rates[0]:
                rates.insert(0, _round(rates[0] / STEP))
            else:
                rates.append(_round(rates[-1] * STEP))

    def _final(self, tried: Sequence[Trial], results: Results) -> list[Trial]:
        best = ranked(tried, results)[0]
        return [replace(best, stage="final", seed=seed) for seed in range(self.seeds)]


def _round(rate: float) -> float:
    """To 1 or 3 times a power of ten, which is what steps of three amount to."""
    power = 10 ** math.floor(math.log10(rate) + 0.1)
    return float(f"{(3 if rate / power > 2 else 1) * power:.3g}")


# -- running ---------------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Plan:
    return one_after_another([widening(group, args) for group in groups(args)])


def widening(group: Group, args: argparse.Namespace) -> Widening:
    known = [settled(t, args.data_dir) for t in trials(group, args.ghn)]
    return Widening(known, LEARNING_RATES[optimizer(group.model)], args.seeds)


def groups(args: argparse.Namespace) -> list[Group]:
    return [
        Group(data, model, labels, times, init)
        for data in args.data
        for times in args.times
        for labels in args.labels
        for model in args.models
        for init in args.inits
    ]


def run_all(args: argparse.Namespace) -> None:
    """Run what is not in the file yet, in processes of one thread each."""
    runs = Runs(args.json)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    if not plan(args)(runs.finished()):
        return
    with (
        ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=len(groups(args)), disable=None, unit=" rows") as bar,
    ):
        futures = {pool.submit(worker, args) for _ in range(args.jobs)}
        while futures:
            done, futures = wait(futures, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            bar.update(len(complete(args)) - bar.n)


def worker(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    work(plan(args), Runs(args.json), data_dir=args.data_dir, device=args.device, progress=False)


# -- reporting -------------------------------------------------------------------------------------------------------


def complete(args: argparse.Namespace) -> dict[Group, list[Record]]:
    """The final runs of every group that has them all."""
    done, found = Runs(args.json).finished(), {}
    for group in groups(args):
        trials = widening(group, args).final(done)
        if trials and all(t.key in done for t in trials):
            found[group] = [done[t.key] for t in trials]
    return found


def report(found: dict[Group, list[Record]], args: argparse.Namespace) -> str:
    scores = {group: mean_and_std([r["test_accuracy"] for r in runs]) for group, runs in found.items()}
    rows = list(dict.fromkeys(group.row for group in groups(args) if group in found))
    inits = [i for i in INITS if any(g.init == i for g in found)]
    finished = Runs(args.json).finished()
    tried = {g: ", ".join(f"{lr:g}" for lr in widening(g, args).tried(finished)) for g in found}
    rates = {g: f"{runs[0]['trial']['lr']:g} of {tried[g]}{scale(runs)}" for g, runs in found.items()}
    parts = [
        "# Transfer to digits and letters",
        "Written by `benchmarks/transfer.py`; run it again instead of editing this page.",
        machine(found),
        protocol(args),
        "![Validation accuracy by epoch](transfer.svg)",
        "Lines are means over seeds; bands show the range from the worst to the best seed. Chance is 10 %.",
        "Test accuracy in percent, mean and standard deviation over seeds. Bold: GHN-ORTH is above RAND and ORTH by "
        "more than one standard deviation. Italic: it is below the better of them by as much.",
        *(accuracies(times, rows, inits, scores) for times in sorted({row[-1] for row in rows})),
        "Epochs needed to reach 90 % of RAND's final validation accuracy:",
        grid(rows, inits, lambda group: epochs_to_target(group, found)),
        "Learning rate that was chosen, of those tried, and value of the layer scales "
        f"(of {', '.join(LAYER_SCALES['convnext_atto'])}):",
        grid(rows, inits, lambda group: rates.get(group, "")),
        "Differences that are larger than a standard deviation, the larger one of the two:",
        verdicts(rows, scores),
    ]
    return "\n\n".join(parts) + "\n"


def accuracies(times: int, rows: list[tuple[Any, ...]], inits: list[str], scores: dict[Group, "Score"]) -> str:
    """The table for one training length, between the markers by which the site includes it."""

    def cell(group: Group) -> str:
        score = {init: scores[g] for init in INITS if (g := group._replace(init=init)) in scores}
        found = verdict(scores.get(group), better(score)) if group.init == "ghn-orth" else ""
        mark = {"yes": "**", "**below**": "*"}.get(found, "")
        return f"{mark}{percent(scores.get(group))}{mark}"

    table = grid([row for row in rows if row[-1] == times], inits, cell)
    return f"<!-- --8<-- [start:times-{times}] -->\n\n{table}\n\n<!-- --8<-- [end:times-{times}] -->"


def scale(runs: list[Record]) -> str:
    """The value of the layer scales, in words for a table."""
    value = parse_source(runs[0]["trial"]["init"]).layer_scale
    return "" if value == "auto" else f", layer scale {value}"


def grid(rows: list[tuple[Any, ...]], inits: list[str], cell: Callable[[Group], str]) -> str:
    """A table with a row for all that initialisations have in common, and a column for each of them."""
    lines = [
        f"| data | network | labels | epochs | {' | '.join(TITLES[i] for i in inits)} |",
        f"|---|---|---:|---:|{'---:|' * len(inits)}",
    ]
    for data, model, labels, times in rows:
        cells = [cell(Group(data, model, labels, times, init)) for init in inits]
        lines.append(f"| {data} | {model} | {labels} | {EPOCHS[model][labels] * times} | {' | '.join(cells)} |")
    return "\n".join(lines)


def epochs_to_target(group: Group, found: dict[Group, list[Record]]) -> str:
    """See `report`; "never" where the training ends before."""
    reference, runs = found.get(group._replace(init="rand")), found.get(group)
    if reference is None or runs is None:
        return ""
    target = 0.9 * mean_curve(reference)[-1]
    reached = [epoch for epoch, accuracy in enumerate(mean_curve(runs), 1) if accuracy >= target]
    return f"{reached[0]} of {len(mean_curve(runs))}" if reached else "never"


def mean_curve(runs: list[Record]) -> list[float]:
    """Accuracy on the validation images after each epoch."""
    curves = [r["curves"]["validation_accuracy"] for r in runs]
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def percent(score: "Score | None") -> str:
    mean, std = score or (None, None)
    return "" if mean is None else f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


Score = tuple[float | None, float | None]  # mean and standard deviation


def verdicts(rows: list[tuple[Any, ...]], scores: dict[Group, Score]) -> str:
    lines = ["| data | network | labels | epochs | " + " | ".join(name for name, _ in COMPARED) + " |"]
    lines.append("|---|---|---:|---:|" + "---|" * len(COMPARED))
    for row in rows:
        data, model, labels, times = row
        score = {init: scores[group] for init in INITS if (group := Group(*row, init)) in scores}
        cells = [verdict(*pair(score)) for _, pair in COMPARED]
        lines.append(f"| {data} | {model} | {labels} | {EPOCHS[model][labels] * times} | {' | '.join(cells)} |")
    return "\n".join(lines)


def better(score: dict[str, Score]) -> Score | None:
    """That of RAND and ORTH, where there are both."""
    both = [score[init] for init in ("rand", "orth") if init in score]
    return max(both, key=lambda s: s[0] or 0.0) if len(both) == 2 else None


COMPARED: tuple[tuple[str, Callable[[dict[str, Score]], tuple[Score | None, Score | None]]], ...] = (
    ("ORTH above RAND", lambda score: (score.get("orth"), score.get("rand"))),
    ("GHN-ORTH above GHN", lambda score: (score.get("ghn-orth"), score.get("ghn"))),
    ("GHN-ORTH above the better of RAND and ORTH", lambda score: (score.get("ghn-orth"), better(score))),
)


def verdict(upper: Any, lower: Any) -> str:
    if upper is None or lower is None or upper[1] is None:
        return ""
    gap, spread = upper[0] - lower[0], max(upper[1], lower[1])
    return "yes" if gap > spread else "**below**" if gap < -spread else "within"


def protocol(args: argparse.Namespace) -> str:
    t = trials(groups(args)[0], args.ghn)[0]
    names = " and ".join(DATA[name] for name in args.data)
    return "\n".join(
        (
            "Setup:",
            "",
            f"* Data: {names}, resized to {t.image_size} x {t.image_size}. The training images are balanced over the "
            f"classes, {t.validation} other images are for validation, the rest for testing; all runs use the same.",
            "* Models: timm's, with their own stems and a new classifier; all layers are trained.",
            f"* Optimiser: SGD for ResNets, AdamW for ConvNeXt and ViT; batch size up to {t.batch_size}, cosine "
            f"schedule, weight decay {t.weight_decay:g}, shifts of up to 4 pixels.",
            "* Learning rate: chosen for each row and initialisation on the validation images in one run. The grid was "
            "extended by factors of 3 until the best value was inside.",
            f"* Seeds: {args.seeds}.",
            f"* GHN: `{args.ghn}`. GHN-ORTH uses the GHN's own depth (`layer=auto`) and the default noise; ORTH makes "
            "all layers orthogonal.",
        )
    )


def machine(found: dict[Group, list[Record]]) -> str:
    records = [r for runs in found.values() for r in runs]
    if not records:
        return "No group is complete."
    versions, at = records[0]["versions"], records[0]["machine"]
    minutes = sum(r["seconds"]["train"] + r["seconds"]["test"] + r["seconds"]["init"] for r in records) / 60
    return (
        f"{at['device']}, {cpu()}, {at['threads']} thread a run; {', '.join(f'{n} {v}' for n, v in versions.items())}. "
        f"The {len(records)} runs below took {minutes:.0f} minutes, those that chose learning rates not counted."
    )


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def plot(found: dict[Group, list[Record]], path: Path) -> None:
    """Validation accuracy by epoch: mean over seeds, and the band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "transfer", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    rows = sorted({(g.data, g.times, g.labels) for g in found})
    models = [m for m in MODELS if any(g.model == m for g in found)]
    size = (3.4 * len(models) + 0.6, 2.6 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(models), figsize=size, squeeze=False, sharey="row")
    for row, (data, times, labels) in zip(axes, rows, strict=True):
        for ax, model in zip(row, models, strict=True):
            for init in INITS:
                draw(ax, found.get(Group(data, model, labels, times, init)), init)
            ax.axhline(10, color="#4d4d4d", linewidth=0.8, linestyle=":", label="chance")
            epochs = EPOCHS[model][labels] * times
            ax.set_title(f"{data}, {model}, {labels} labels, {epochs} epochs", fontsize=9)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(alpha=0.25, linewidth=0.5)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("validation accuracy, %")
    handles = {text: line for ax in axes.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="upper center", ncols=len(INITS) + 1, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def draw(ax: Any, runs: list[Record] | None, init: str) -> None:
    if runs:
        curves = 100 * torch.tensor([[float(v) for v in r["curves"]["validation_accuracy"]] for r in runs])
        epochs = range(1, curves.shape[1] + 1)
        ax.fill_between(epochs, curves.amin(0), curves.amax(0), color=COLOURS[init], alpha=0.15, linewidth=0)
        ax.plot(epochs, curves.mean(0), color=COLOURS[init], label=TITLES[init], linewidth=1.5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ghn", default=SHIPPED, metavar="SOURCE", help="which GHN (default: %(default)s)")
    parser.add_argument("--data", nargs="+", default=["digits"], choices=DATA, help="default: digits")
    parser.add_argument("--data-dir", metavar="DIR", help="of all but digits (default: data)")
    parser.add_argument("--times", nargs="+", type=int, default=[1], metavar="N", help="as many epochs (default: 1)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="default: all")
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS), choices=LABELS, help="default: both")
    parser.add_argument("--inits", nargs="+", default=list(INITS), choices=INITS, help="default: all")
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, default=Path("build/transfer.jsonl"), help="default: %(default)s")
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="where to draw the learning curves")
    args = parser.parse_args(argv)
    run_all(args)
    found = complete(args)
    text = report(found, args)
    if args.markdown is None:
        print(text)
    else:
        args.markdown.write_text(text)
    if args.plot is not None:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

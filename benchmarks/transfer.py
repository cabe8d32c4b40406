"""What a GHN trained on other images is worth on real ones: few-shot digits from RAND, ORTH, GHN and GHN-ORTH.

    python benchmarks/transfer.py --markdown docs/transfer.md --plot docs/transfer.svg

Every initialisation gets the same budget: each learning rate once with the fewest labels, then, for each number of
labels, five seeds of the one that was best on the validation images, tested after the last epoch on images that were
not looked at before. Half an hour of one core, for all. Results are kept in a file, one line a run; the same command
goes on where it was stopped, and `--inits`, `--models` and `--labels` do a part of it.
"""

import argparse
import logging
import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from timm_ghn_init.finetune import Runs, Trial, run, work
from timm_ghn_init.finetune.plans import Plan, Tuned, one_after_another
from timm_ghn_init.finetune.protocol import settled
from timm_ghn_init.finetune.results import mean_and_std

MODELS = ("resnet18", "resnet50", "convnext_atto")
LABELS = (100, 1000)
INITS = ("rand", "orth", "ghn", "ghn-orth")
TITLES = {"rand": "RAND", "orth": "ORTH", "ghn": "GHN", "ghn-orth": "GHN-ORTH"}
COLOURS = {"rand": "#7f7f7f", "orth": "#0072b2", "ghn": "#d55e00", "ghn-orth": "#009e73"}  # Okabe and Ito
# by model and labels: what half an hour of one core allows
EPOCHS = {
    "resnet18": {100: 12, 1000: 3},
    "resnet50": {100: 8, 1000: 2},
    "convnext_atto": {100: 15, 1000: 4},
}
LEARNING_RATES = {"sgd": (0.1, 0.03, 0.01, 0.003), "adamw": (0.004, 0.002, 0.001, 0.0005)}

Record = dict[str, Any]


class Group(NamedTuple):
    """Runs that differ in learning rate and seed."""

    model: str
    labels: int
    init: str  # a key of TITLES


def source(init: str, ghn: str) -> str:
    return {"ghn": ghn, "ghn-orth": f"{ghn}-orth"}.get(init, init)


def candidates(model: str, init: str, ghn: str) -> list[Trial]:
    """One trial for each learning rate, with the fewest labels."""
    trial = Trial(
        model,
        source(init, ghn),
        labels=LABELS[0],
        epochs=EPOCHS[model][LABELS[0]],
        opt=optimizer(model),
        batch_size=48,
        sched_on_updates=True,
        keep_stem=True,
    )
    return [replace(trial, lr=lr) for lr in learning_rates(model)]


def optimizer(model: str) -> Literal["sgd", "adamw"]:
    """The paper's for the family."""
    return "adamw" if model.startswith("convnext") else "sgd"


def learning_rates(model: str) -> tuple[float, ...]:
    return LEARNING_RATES[optimizer(model)]


# -- running ---------------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Plan:
    return one_after_another([tuned(group, args) for group in groups(args)])


def tuned(group: Group, args: argparse.Namespace) -> Tuned:
    trials = candidates(group.model, group.init, args.ghn)
    return Tuned(trials, args.seeds, labels=group.labels, epochs=EPOCHS[group.model][group.labels])


def groups(args: argparse.Namespace) -> list[Group]:
    return [Group(m, n, i) for n in args.labels for m in args.models for i in args.inits]


def run_all(args: argparse.Namespace) -> None:
    """Run what is not in the file yet, in processes of one thread each."""
    runs, todo = Runs(args.json), plan(args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    if not todo(runs.finished()):
        return
    estimate(args)
    total = len(args.inits) * sum(len(args.labels) * args.seeds + len(learning_rates(m)) for m in args.models)
    with (
        ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=total, disable=None, unit=" runs") as bar,
    ):
        futures = {pool.submit(worker, args) for _ in range(args.jobs)}
        while futures:
            done, futures = wait(futures, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            bar.update(finished(args, runs) - bar.n)


def worker(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    work(plan(args), Runs(args.json), device=args.device, progress=False)


def finished(args: argparse.Namespace, runs: Runs) -> int:
    """Runs in the file that are wanted."""
    inits = {settled(Trial(MODELS[0], source(i, args.ghn))).init for i in args.inits}
    trials = [r["trial"] for r in runs.finished().values()]
    wanted = [t for t in trials if t["arch"] in args.models and t["init"] in inits]
    return sum(t["stage"] == "search" or (t["labels"] in args.labels and t["seed"] < args.seeds) for t in wanted)


def estimate(args: argparse.Namespace) -> None:
    """Say on stderr how long it will take, from one epoch of each model."""
    print("Estimating ...", file=sys.stderr)
    seconds, threads = 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    for model in args.models:
        trial = replace(candidates(model, "rand", args.ghn)[0], labels=200, epochs=2)
        result = run(trial, device=args.device, progress=False)
        image = result["curves"]["seconds"][-1] / 260  # the first epoch warms up; to validate 200 images is to train 60
        for n in args.labels:
            times = args.seeds + len(learning_rates(model)) * (n == LABELS[0])
            one = image * (EPOCHS[model][n] * (n + 60) + (1597 - n) * 0.3) + result["seconds"]["init"]
            seconds += one * times * len(args.inits)
    torch.set_num_threads(threads)
    print(f"About {seconds / 60:.0f} minutes of one core for all, without what is in the file.", file=sys.stderr)


# -- reporting -------------------------------------------------------------------------------------------------------


def complete(args: argparse.Namespace) -> dict[Group, list[Record]]:
    """The final runs of every group that has them all."""
    done, found = Runs(args.json).finished(), {}
    for group in groups(args):
        trials = tuned(group, args).final(done)
        if trials and all(t.key in done for t in trials):
            found[group] = [done[t.key] for t in trials]
    return found


def report(found: dict[Group, list[Record]], args: argparse.Namespace) -> str:
    scores = {group: mean_and_std([r["test_accuracy"] for r in runs]) for group, runs in found.items()}
    rows = sorted({(g.model, g.labels) for g in found}, key=lambda row: (row[1], MODELS.index(row[0])))
    inits = [i for i in INITS if any(g.init == i for g in found)]
    lines = [
        "# Transfer to real images",
        "",
        "Written by `benchmarks/transfer.py`; run it again instead of editing this file.",
        "",
        *machine(found),
        "",
        *protocol(args),
        "",
        "Test accuracy in percent, mean and standard deviation over seeds:",
        "",
        f"| network | labels | {' | '.join(TITLES[i] for i in inits)} |",
        f"|---|---:|{'---:|' * len(inits)}",
    ]
    for model, labels in rows:
        cells = [percent(scores.get(Group(model, labels, i))) for i in inits]
        lines.append(f"| {model} | {labels} | {' | '.join(cells)} |")
    lines += ["", "Learning rate that was chosen, of those tried:", ""]
    lines += [f"| network | tried | {' | '.join(TITLES[i] for i in inits)} |", f"|---|---|{'---:|' * len(inits)}"]
    for model in dict.fromkeys(model for model, _ in rows):
        tried = ", ".join(f"{lr:g}" for lr in learning_rates(model))
        chosen = {g.init: f"{runs[0]['trial']['lr']:g}" for g, runs in found.items() if g.model == model}
        lines.append(f"| {model} | {tried} | {' | '.join(chosen.get(i, '') for i in inits)} |")
    return "\n".join([*lines, "", *verdicts(rows, scores)]) + "\n"


def percent(score: tuple[float | None, float | None] | None) -> str:
    mean, std = score or (None, None)
    return "" if mean is None else f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def verdicts(rows: list[tuple[str, int]], scores: dict[Group, tuple[float | None, float | None]]) -> list[str]:
    """Whether each initialisation is above the one before by more than the larger of their standard deviations."""
    lines = ["| above by more than a standard deviation | " + " | ".join(f"{m}, {n}" for m, n in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    for upper, lower in (("orth", "rand"), ("ghn", "orth"), ("ghn-orth", "ghn"), ("ghn-orth", "orth")):
        cells = [verdict(scores.get(Group(*row, upper)), scores.get(Group(*row, lower))) for row in rows]
        if any(cells):
            lines.append(f"| {TITLES[upper]} above {TITLES[lower]} | {' | '.join(cells)} |")
    return lines


def verdict(upper: Any, lower: Any) -> str:
    if upper is None or lower is None or upper[1] is None:
        return ""
    gap, spread = upper[0] - lower[0], max(upper[1], lower[1])
    return "yes" if gap > spread else "**below**" if gap < -spread else "within"


def protocol(args: argparse.Namespace) -> list[str]:
    t = candidates(MODELS[0], "rand", args.ghn)[0]
    epochs = "; ".join(f"{m} {' and '.join(str(EPOCHS[m][n]) for n in args.labels)}" for m in args.models)
    numbers = " and ".join(map(str, args.labels))
    return [
        f"scikit-learn's digits, upscaled to {t.image_size} x {t.image_size}: as many training images of each class, "
        "200 others for validation, all the rest for testing, the same for every run. Timm's networks with their stems "
        "as they are, last layer replaced, all layers trained, SGD for ResNets and AdamW for ConvNeXt as in the paper, "
        f"batches of up to {t.batch_size}, cosine, weight decay {t.weight_decay:g}, shifts of up to 4 pixels. Epochs "
        f"with {numbers} labels: {epochs}. For each initialisation and network the learning rate is the one with the "
        f"highest accuracy on the validation images in one run with {LABELS[0]} labels; then {args.seeds} seeds with "
        f"each number of labels. GHN is `{args.ghn}`. GHN-ORTH has the package's default layer L and noise, ORTH has "
        "all layers; nothing else was tuned.",
    ]


def machine(found: dict[Group, list[Record]]) -> list[str]:
    records = [r for runs in found.values() for r in runs]
    if not records:
        return ["No group is complete."]
    versions, at = records[0]["versions"], records[0]["machine"]
    minutes = sum(r["seconds"]["train"] + r["seconds"]["test"] + r["seconds"]["init"] for r in records) / 60
    return [
        f"{at['device']}, {cpu()}, {at['threads']} thread a run; {', '.join(f'{n} {v}' for n, v in versions.items())}. "
        f"The {len(records)} runs below took {minutes:.0f} minutes, those that chose learning rates not counted.",
    ]


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

    labels, models = sorted({g.labels for g in found}), [m for m in MODELS if any(g.model == m for g in found)]
    size = (3.4 * len(models) + 0.6, 2.6 * len(labels) + 0.6)
    figure, axes = plt.subplots(len(labels), len(models), figsize=size, squeeze=False, sharey="row")
    for row, n in zip(axes, labels, strict=True):
        for ax, model in zip(row, models, strict=True):
            for init in INITS:
                draw(ax, found.get(Group(model, n, init)), init)
            ax.set_title(f"{model}, {n} labels", fontsize=9)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(alpha=0.25, linewidth=0.5)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("validation accuracy, %")
    handles = {text: line for ax in axes.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="upper center", ncols=len(INITS), frameon=False)
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
    parser.add_argument("--ghn", default="ghn2-formula", metavar="SOURCE", help="which GHN (default: %(default)s)")
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

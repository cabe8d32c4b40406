"""Find the depth at which the post-processing of a GHN should begin: a part of all layers that serves several networks.

    python benchmarks/depth.py --ghn file:runs/fashion/ghn.safetensors

For each network and each depth a short training with few labels, once for each seed, with the learning rate that serves
the network best at the depths (one run each, at a quarter and at three quarters). Only validation images are looked at.
Prints a table in Markdown and the depth with the highest mean over the networks, for `save_ghn` to keep (`GHN.depth`).
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from transfer import DATA, LEARNING_RATES, MODELS, Group, optimizer, source, trial

from timm_ghn_init.lab.finetune import Runs, Trial, work
from timm_ghn_init.lab.finetune.plans import SEARCH_SEED, Results, ranked, searched
from timm_ghn_init.lab.finetune.protocol import settled
from timm_ghn_init.lab.finetune.results import mean_and_std, percent
from timm_ghn_init.recipe.plan import auto_layer
from timm_ghn_init.recipe.postprocessing import list_layers

DEPTHS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)


class Depths:
    """The plan for one network.

    Args:
        data: a key of `transfer.DATA`.
        model: a timm architecture in `transfer.EPOCHS`.
        ghn: a source without post-processing.
        seeds: runs for each depth.
        data_dir: folder of named data sets.
    """

    def __init__(self, data: str, model: str, ghn: str, labels: int, seeds: int, data_dir: str | None) -> None:
        self.seeds = seeds
        base = trial(Group(data, model, labels, 1, "ghn-orth"), source("ghn-orth", ghn))
        self.base = replace(base, folder=settled(base, data_dir).folder)
        with torch.device("meta"):
            self.n_layers = len(list_layers(timm.create_model(model)))
        self.rates = searched(
            replace(self.at(depth), lr=lr) for lr in LEARNING_RATES[optimizer(model)] for depth in (0.25, 0.75)
        )

    def at(self, depth: float) -> Trial:
        """The trial with the layer L at a depth."""
        return replace(self.base, init=f"{self.base.init}?layer={auto_layer(None, self.n_layers, depth)}")

    def __call__(self, results: Results) -> list[Trial]:
        if missing := [t for t in self.rates if t.key not in results]:
            return missing
        return [t for trials in self.trials(results).values() for t in trials if t.key not in results]

    def trials(self, results: Results) -> dict[float, list[Trial]]:
        lr = ranked(self.rates, results)[0].lr
        found = {}
        for depth in DEPTHS:
            (chosen,) = searched([replace(self.at(depth), lr=lr)])
            found[depth] = [replace(chosen, seed=SEARCH_SEED + i) for i in range(self.seeds)]
        return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ghn", required=True, metavar="SOURCE", help="which GHN")
    parser.add_argument("--data", default="digits", choices=DATA, help="default: %(default)s")
    parser.add_argument("--data-dir", metavar="DIR", help="of all but digits (default: data)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="default: all")
    parser.add_argument("--labels", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, metavar="K", help="runs for each depth (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/depth.jsonl"), help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.json)
    means: dict[float, list[float]] = {depth: [] for depth in DEPTHS}
    print(f"| network | layers | {' | '.join(f'{depth:g}' for depth in DEPTHS)} |")
    print(f"|---|---:|{'---:|' * len(DEPTHS)}")
    for model in args.models:
        plan = Depths(args.data, model, args.ghn, args.labels, args.seeds, args.data_dir)
        work(plan, runs, data_dir=args.data_dir, device="cpu", progress=False)
        done = runs.finished()
        scores = {
            depth: mean_and_std([done[t.key]["validation_accuracy"] for t in trials])
            for depth, trials in plan.trials(done).items()
        }
        for depth, (mean, _) in scores.items():
            means[depth].append(mean or 0.0)
        print(f"| {model} | {plan.n_layers} | {' | '.join(map(percent, scores.values()))} |", flush=True)
    average = {depth: sum(values) / len(values) for depth, values in means.items()}
    print(f"| mean | | {' | '.join(f'{100 * value:.1f}' for value in average.values())} |")
    print(f"\ndepth = {max(average, key=lambda depth: average[depth]):g}")


if __name__ == "__main__":
    main()

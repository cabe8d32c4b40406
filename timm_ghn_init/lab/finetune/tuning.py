"""L and beta of the post-processing, chosen for one network as in the paper: by training, on validation images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...recipe.plan import auto_layer
from ...sources import parse_source
from .plans import Results, Tuned, searched
from .protocol import Trial

RATES: Mapping[str, tuple[float, ...]] = {
    "sgd": (0.03, 0.1, 0.01, 0.3, 0.003),  # the likeliest first: a budget may end the search
    "adamw": (0.001, 0.003, 0.0003, 0.01, 0.0001),
}
BETAS = (3e-5, 3e-3)  # the paper's, and one with a visible effect
DEPTHS = (0.25, 0.75, 0.5, 0.0, 0.125, 0.375, 0.625, 0.875)  # shares of the layers before L
_RATE, _LAYER, _FINAL = 0.1, 0.35, 0.35  # shares of the time: each of three searches for a learning rate, L, final runs
_ROUNDS = 3
_UPDATES = 30  # shorter runs are meaningless: the statistics of batch norms have not settled


def layers_at(depths: Sequence[float], n_layers: int) -> list[int]:
    """The layers L that leave these shares of all layers as they are, without duplicates, in the same order."""
    return list(dict.fromkeys(auto_layer(None, n_layers, depth) for depth in depths))


@dataclass(frozen=True)
class Tuning:
    """The plan that finds L and beta of a source and compares the result with RAND and ORTH.

    Each initialisation has its learning rate chosen first, the source with its automatic L. Then L and beta are
    searched by successive halving. The searches use one seed and the validation images only; the chosen source, RAND
    and ORTH are then run with several seeds and tested.

    Attributes:
        trial: everything else; its `init` is the source, with post-processing.
        n_layers: number of layers of the network, see `list_layers`.
        seeds: number of final runs of the choice, RAND and ORTH.
        seconds: training time in all; None for unlimited. Without `fixed_epochs`, the number of epochs follows from it
            and from the measured time of one epoch.
        rates: learning rates to choose from. Default: `RATES` of the optimiser.
        fixed_epochs: whether to keep the trial's epochs.

    Example:
        >>> tuning = Tuning(Trial("resnet50", "ghn2-orth"), n_layers=54, seconds=1200)  # doctest: +SKIP
        >>> work(tuning, runs)  # doctest: +SKIP
        >>> tuning.choice(runs.finished()).init  # doctest: +SKIP
        'ghn2-orth?layer=14'
    """

    trial: Trial
    n_layers: int
    seeds: int = 3
    seconds: float | None = None
    rates: tuple[float, ...] = ()
    fixed_epochs: bool = True

    def __call__(self, results: Results) -> list[Trial]:
        if not self.fixed_epochs and self.probe.key not in results:
            return [self.probe]
        if missing := [t for init in self.inits for t in self._rate(init, results)(results)]:
            return missing
        if missing := self._layer(results)(results):
            return missing
        return [t for trials in self.final(results).values() for t in trials if t.key not in results]

    @property
    def inits(self) -> tuple[str, str, str]:
        """RAND, ORTH and the source."""
        return "rand", "orth", self.trial.init

    @property
    def probe(self) -> Trial:
        """A run of one epoch that measures how long an epoch takes."""
        return searched([replace(self.trial, init="orth", ghn="", epochs=1, lr=self._rates[0])])[0]

    @property
    def _rates(self) -> tuple[float, ...]:
        return self.rates or RATES[self.trial.opt]

    def epochs(self, results: Results) -> int:
        """Epochs of the final runs: the trial's, or as many as the time allows for all seeds of all initialisations."""
        if self.fixed_epochs or self.seconds is None:
            return self.trial.epochs
        took = results[self.probe.key]["seconds"]
        around = sum(seconds for part, seconds in took.items() if part != "train")
        training = _FINAL * self.seconds / (self.seeds * len(self.inits)) - around
        return max(1, min(self.trial.epochs, math.floor(training / max(took["train"], 1e-3))))

    def _search(self, trials: Sequence[Trial], share: float, results: Results) -> Tuned:
        epochs = self.epochs(results)
        updates = epochs * (math.ceil(self.trial.labels / self.trial.batch_size) or _UPDATES)
        rounds = max(1, min(_ROUNDS, 1 + int(math.log(max(1, updates / _UPDATES), Tuned.FACTOR) + 1e-9)))
        seconds = None if self.seconds is None else share * self.seconds
        return Tuned([replace(t, epochs=epochs) for t in trials], 0, rounds, seconds)

    def _rate(self, init: str, results: Results) -> Tuned:
        ghn = self.trial.ghn if init == self.trial.init else ""
        return self._search([replace(self.trial, init=init, ghn=ghn, lr=lr) for lr in self._rates], _RATE, results)

    def _layer(self, results: Results) -> Tuned:
        lr = self._rate(self.trial.init, results).best(results).lr
        source, layers = parse_source(self.trial.init), layers_at(DEPTHS, self.n_layers)
        sources = [replace(source, layer=layer, beta=beta) for beta in BETAS for layer in layers]
        return self._search([replace(self.trial, init=str(s), lr=lr) for s in sources], _LAYER, results)

    def choice(self, results: Results) -> Trial:
        """The best L and beta. Its `init` is the source to use."""
        return self._layer(results).best(results)

    def final(self, results: Results) -> dict[str, list[Trial]]:
        """The runs to be compared, by title; the searches must be finished."""
        chosen = {
            "RAND": self._rate("rand", results).best(results),
            "ORTH": self._rate("orth", results).best(results),
            "chosen": self.choice(results),
        }
        return {
            title: [replace(trial, stage="final", seed=seed) for seed in range(self.seeds)]
            for title, trial in chosen.items()
        }

    def curve(self, results: Results) -> list[dict[str, Any]]:
        """The search for L: "epochs", "beta", "layer" and validation "accuracy" (0 to 1) of each of its runs."""
        points = []
        for trial in self._layer(results).all_trials():
            if (record := results.get(trial.key)) is not None:
                source, accuracy = parse_source(trial.init), record["validation_accuracy"]
                point = {"epochs": trial.epochs, "beta": source.beta, "layer": source.layer, "accuracy": accuracy}
                points.append(point)
        return sorted(points, key=lambda p: (p["epochs"], p["beta"], p["layer"]))

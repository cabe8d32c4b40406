"""L and beta of the post-processing, chosen for one network as the paper does it: by training, on held-out images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...recipe.plan import auto_layer
from ...sources import parse_source
from .plans import Results, ranked, searched
from .protocol import Trial
from .results import Record
from .search import Halving

RATES: Mapping[str, tuple[float, ...]] = {
    "sgd": (0.03, 0.1, 0.01, 0.3, 0.003),  # the likeliest first: a budget may end the search
    "adamw": (0.001, 0.003, 0.0003, 0.01, 0.0001),
}
BETAS = (3e-5, 3e-3)  # the paper's, and one that can be seen
DEPTHS = (0.25, 0.75, 0.5, 0.0, 0.125, 0.375, 0.625, 0.875)  # of the layers, how many are left as they are
_SEARCH = {"rate": 0.1, "layer": 0.35}  # of the time: each search for a learning rate, that for L and beta
_FINAL = 0.35
_ROUNDS = 3
_UPDATES = 30  # a run of fewer tells nothing: batch norms do not know their statistics yet


def layers_at(depths: Sequence[float], n_layers: int) -> list[int]:
    """The layers L that leave these parts of all layers as they are, no two the same, in the order of the depths."""
    return list(dict.fromkeys(auto_layer(None, n_layers, depth) for depth in depths))


@dataclass(frozen=True)
class Tuning:
    """The plan that finds L and beta of a source, and compares what it found with RAND and ORTH.

    Each initialisation has its learning rate chosen first, the source with the L that it has by itself. Then L and
    beta are searched by successive halving. All of that looks at one seed and at validation images only; the choice,
    RAND and ORTH are then run with several seeds and tested.

    Attributes:
        trial: all else; its `init` is the source, with post-processing.
        n_layers: of the network, see `list_layers`.
        seeds: how often the choice, RAND and ORTH are run.
        seconds: of training, for all; None for as long as it takes. Without `fixed_epochs`, the number of epochs
            follows from it and from how long one epoch takes.
        rates: learning rates to choose from.
        fixed_epochs: whether the trial's epochs are to be kept.
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
        searches = {init: self._rate(init, results) for init in self.inits}
        if missing := [t for search in searches.values() for t in search(results)]:
            return missing
        if missing := self._layer(results)(results):
            return missing
        return [t for trials in self.final(results).values() for t in trials if t.key not in results]

    @property
    def inits(self) -> tuple[str, ...]:
        return "rand", "orth", self.trial.init

    @property
    def probe(self) -> Trial:
        """A run of one epoch, which tells how long one takes."""
        return searched([replace(self.trial, init="orth", epochs=1, lr=self._rates[0])])[0]

    @property
    def _rates(self) -> tuple[float, ...]:
        return self.rates or RATES[self.trial.opt]

    def epochs(self, results: Results) -> int:
        """Of the last runs: those of the trial, or as many as leave time for all seeds of all initialisations."""
        if self.fixed_epochs or self.seconds is None:
            return self.trial.epochs
        took = results[self.probe.key]["seconds"]
        around = sum(seconds for part, seconds in took.items() if part != "train")
        training = _FINAL * self.seconds / (self.seeds * len(self.inits)) - around
        return max(1, min(self.trial.epochs, math.floor(training / max(took["train"], 1e-3))))

    def _halving(self, trials: Sequence[Trial], share: float, results: Results) -> Halving:
        epochs = self.epochs(results)
        updates = epochs * (math.ceil(self.trial.labels / self.trial.batch_size) or _UPDATES)
        rounds = max(1, min(_ROUNDS, 1 + int(math.log(max(1, updates / _UPDATES), 3) + 1e-9)))
        seconds = None if self.seconds is None else share * self.seconds
        return Halving([replace(t, epochs=epochs) for t in trials], 0, seconds, rounds=rounds)

    def _rate(self, init: str, results: Results) -> Halving:
        trials = [replace(self.trial, init=init, lr=lr) for lr in self._rates]
        return self._halving(trials, _SEARCH["rate"], results)

    def _layer(self, results: Results) -> Halving:
        lr = self._best(self._rate(self.trial.init, results), results).lr
        source = parse_source(self.trial.init)
        sources = [
            replace(source, layer=layer, beta=beta) for beta in BETAS for layer in layers_at(DEPTHS, self.n_layers)
        ]
        trials = [replace(self.trial, init=str(s), lr=lr, ghn="") for s in sources]
        return self._halving(trials, _SEARCH["layer"], results)

    @staticmethod
    def _best(search: Halving, results: Results) -> Trial:
        return ranked(search.last_round(results)[0], results)[0]

    def choice(self, results: Results) -> Trial:
        """The best L and beta. Its `init` is the source to use."""
        return self._best(self._layer(results), results)

    def final(self, results: Results) -> dict[str, list[Trial]]:
        """By title, the runs to be compared, when all has been chosen."""
        chosen = {
            "RAND": self._best(self._rate("rand", results), results),
            "ORTH": self._best(self._rate("orth", results), results),
            "chosen": self.choice(results),
        }
        return {
            title: [replace(trial, stage="final", seed=seed) for seed in range(self.seeds)]
            for title, trial in chosen.items()
        }

    def curve(self, results: Results) -> list[dict[str, Any]]:
        """What was seen of L: "epochs", "beta", "layer" and "accuracy" on the validation images of each run."""
        search = self._layer(results)
        records: list[Record] = [
            results[key]
            for t in search.candidates
            for n in search.epochs
            if (key := replace(t, epochs=n).key) in results
        ]
        points = []
        for record in records:
            source = parse_source(record["trial"]["init"])
            points.append(
                {
                    "epochs": record["trial"]["epochs"],
                    "beta": source.beta,
                    "layer": source.layer,
                    "accuracy": record["validation_accuracy"],
                }
            )
        return sorted(points, key=lambda p: (p["epochs"], p["beta"], p["layer"]))

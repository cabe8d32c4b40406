"""Few-shot fine-tuning as in Section 4 of the paper: what an initialisation is worth, measured.

>>> from timm_ghn_init.lab import finetune
>>> result = finetune.run(finetune.Trial("resnet18", init="orth", labels=100, epochs=30))
>>> result["test_accuracy"]

`Trial` says what to train and how, `run` trains it once, `Runs` keeps results in a file that several processes may
share, and `work` runs all trials of a plan that are not in it yet.
"""

from .plans import Each, Tuned, work
from .protocol import Trial, settled
from .results import Runs, summary
from .train import run

__all__ = ["Each", "Runs", "Trial", "Tuned", "run", "settled", "summary", "work"]

"""What each rank of a job does in test_ranks.py."""

import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from timm_ghn_init import init_model
from timm_ghn_init.checkpoints import load as checkpoints
from timm_ghn_init.weights.files import digest


def initialised(source: str, cache: bool) -> dict[str, Any]:
    model = timm.create_model("test_convnext", num_classes=10)
    report = init_model(model, source, cache=cache)
    names = {n for n, p in model.named_parameters() if n in report.predicted}
    return {
        "cached": report.cached,
        "predicted": digest({n: model.get_parameter(n) for n in names}),
        "all": digest(model.state_dict()),
    }


def default() -> str:
    return checkpoints.resolve_default("ghn").name


def on_a_rank(ghn: Path, home: Path) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    torch.manual_seed(rank)
    os.environ["TIMM_GHN_HOME"] = str(home)
    os.environ.pop("TIMM_GHN_DEFAULT", None)
    asked = []

    def official_or_shipped(progress: Any) -> str:  # each machine would come to another result
        asked.append(rank)
        return ("ghn2", "ghn1")[rank]

    checkpoints._official_or_shipped = official_or_shipped
    said: dict[str, Any] = {"before": default()}
    dist.init_process_group("gloo")
    said["after"] = default()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # as if something else than torchrun had started the job
    said["group"] = default()
    said["asked"] = asked
    source = f"file:{ghn}-orth?layer=20"
    said["without"] = initialised(source, cache=False)
    dist.barrier()
    said["with"] = initialised(source, cache=True)
    dist.destroy_process_group()
    return said

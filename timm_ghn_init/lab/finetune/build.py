"""The network of a trial, ready to be trained."""

from typing import Any

import torch
from torch import nn

from ...initialize import init_model
from ...sources import is_source, parse_source
from .pretrained import with_timms_weights
from .protocol import PRETRAINED, Trial
from .stem import LARGEST, adapt_stem


def build(trial: Trial, classes: int, device: torch.device | str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Create and initialise the network. It stays on the CPU.

    First timm's weights, if they are wanted, then the stem, then the source: trained filters keep their centre where
    they get smaller, and a GHN predicts for the network and the image size that will be trained. The last layer has
    the data's number of classes and is timm's own, unless the GHN predicts as many.

    Args:
        trial: what is wanted. The global generators are taken as they are.
        classes: of the data.
        device: where to predict, as in `init_model`.

    Returns:
        The model and what is to be known about it: "stem" (see `adapt_stem`), "parameters", and "report" of a source.

    Raises:
        RuntimeError: unknown architecture.
        WeightsUnavailable, InputError: timm's weights are not available.
        ValueError, CheckpointError, TraceError, RuntimeError: as `init_model`.
    """
    import timm

    options: dict[str, Any] = {"drop_path_rate": trial.drop_path} if trial.drop_path else {}
    config = timm.get_pretrained_cfg(trial.arch)
    if config is not None and config.fixed_input_size:
        options["img_size"] = trial.image_size

    def create(pretrained: bool) -> nn.Module:
        return timm.create_model(trial.arch, pretrained=pretrained, num_classes=classes, **options)

    model = with_timms_weights(create) if trial.init == PRETRAINED else create(False)
    adapt = trial.image_size <= LARGEST and not trial.keep_stem
    facts: dict[str, Any] = {"stem": adapt_stem(model) if adapt else {}}
    if is_source(trial.init):
        own = parse_source(trial.init).seed
        seed = trial.seed if own is None else own
        report = init_model(model, trial.init, input_size=trial.image_size, seed=seed, device=device, progress=False)
        wanted = ("source", "coverage", "layer", "seed", "nodes", "seconds")
        facts["report"] = {name: value for name, value in report.to_dict().items() if name in wanted}
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    return model, facts

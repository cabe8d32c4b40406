"""Evaluation of a GHN: the accuracy of networks with predicted parameters that were never trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ghn import GHN
from ...utils.checks import InputError
from ...utils.progress import over
from ..images.batches import Images
from ..images.formula import FormulaImages
from .networks import IMAGE, Network, as_network, network

TIMM_MODELS = (
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenetv2_100",
    "efficientnet_b0",
    "repvgg_a0",
    "convnext_atto",
    "convnext_atto_ols",
    "convnextv2_atto",
    "vit_tiny_patch16_224",
    "mixer_s16_224",
)
BATCH, BATCHES = 200, 4  # held-out images for each network


@dataclass(frozen=True)
class Score:
    """Accuracy of one network, 0 to 1.

    Attributes:
        group: "timm", or "test: " and the family of a sampled network.
        name: of the network, unique in its group.
        predicted: accuracy with predicted parameters.
    """

    group: str
    name: str
    predicted: float


@torch.no_grad()
def evaluate(
    ghn: GHN,
    images: Images | FormulaImages,
    *,
    networks: int = 40,
    seed: int = 0,
    timm_models: tuple[str, ...] = TIMM_MODELS,
    progress: bool | None = None,
) -> list[Score]:
    """Score networks that were not trained on, and timm's own models at 32 x 32, on held-out images.

    Norms that have batch statistics use those of the batch of 200 images, and layer scales are 1, see `as_network`.

    Args:
        ghn: trained for `images.num_classes` classes.
        images: see `open_images`.
        networks: how many of the sampler's split "test".
        seed: of networks and images.
        timm_models: names; () for none.
        progress: as in `Trainer.run`.

    Raises:
        ValueError: the GHN predicts another number of classes.
    """
    if ghn.num_classes != images.num_classes:
        raise InputError(f"The GHN predicts {ghn.num_classes} classes, {images.name} has {images.num_classes}.")
    batches = [
        tuple(values.to(ghn.device) for values in images.batch(seed, i, BATCH, train=False)) for i in range(BATCHES)
    ]
    scores = []
    for job in over([*range(networks), *timm_models], "Evaluating", show=progress, unit="network", stays=True):
        if isinstance(job, int):
            net, name = network("test", seed, job, ghn.num_classes), f"test {job}"
        else:
            net, name = timm_network(job, ghn.num_classes), job
        group = "timm" if name == job else f"test: {net.kind}"
        scores.append(Score(group, name, _accuracy(net, ghn.predict(net.graph), batches)))
    return scores


def timm_network(name: str, num_classes: int) -> Network:
    """A timm architecture for images of 32 x 32, on the meta device; a ViT gets patches of 4 x 4."""
    import timm

    sizes: dict[str, Any] = {"img_size": IMAGE} if name.startswith(("vit", "mixer")) else {}
    sizes |= {"patch_size": 4} if name.startswith("vit") else {}
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=num_classes, **sizes)
    return as_network(name, module)


def _accuracy(net: Network, parameters: dict[str, Tensor], batches: list[tuple[Tensor, ...]]) -> float:
    right = [(net(parameters, images).argmax(1) == labels).float().mean() for images, labels in batches]
    return torch.stack(right).mean().item()


def summary(scores: list[Score]) -> Iterator[tuple[str, int, float]]:
    """For each group, and for all sampled networks: name, count and mean accuracy."""
    groups: dict[str, list[float]] = {}
    for score in scores:
        sampled = score.group.startswith("test")
        for name in [score.group, "test"] if sampled else [f"timm: {score.name}"]:
            groups.setdefault(name, []).append(score.predicted)
    for name, members in sorted(groups.items()):
        yield name, len(members), sum(members) / len(members)

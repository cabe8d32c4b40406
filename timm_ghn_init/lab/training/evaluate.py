"""What a GHN is worth: the accuracy of networks with predicted parameters that were never trained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...ghn import GHN
from ...initialize import init_model
from ...utils.checks import InputError
from ...utils.progress import over
from ..images.batches import Images
from .networks import IMAGE, SPLITS, Network, network

TIMM_MODELS = ("resnet18", "resnet50", "mobilenetv2_100", "densenet121", "convnext_atto", "vit_tiny_patch16_224")
BATCH, BATCHES = 200, 4  # held-out images for each network


@dataclass(frozen=True)
class Score:
    """Accuracies of one network, 0 to 1.

    Attributes:
        group: the split, and in it the kind; or "timm".
        name: what tells the network from the others of its group.
        predicted, random: accuracy with predicted parameters, and with PyTorch's (or timm's) own initialisation.
    """

    group: str
    name: str
    predicted: float
    random: float


@torch.no_grad()
def evaluate(
    ghn: GHN,
    images: Images,
    *,
    networks: int = 40,
    seed: int = 0,
    timm_models: tuple[str, ...] = TIMM_MODELS,
    progress: bool | None = None,
) -> list[Score]:
    """Score held-out networks of the sampler, and timm's own models at 32 x 32, on held-out images.

    Norms that have batch statistics use those of the batch of 200 images: a predicted network has no running ones.

    Args:
        ghn: trained for `images.num_classes` classes.
        images: see `open_images`.
        networks: of the split "test"; of each unusual split ("deep", "wide", "nonorm") a third of that.
        seed: of networks and images.
        timm_models: names; () for none.
        progress: as in `Trainer.run`.

    Raises:
        ValueError: the GHN predicts another number of classes.
    """
    if ghn.num_classes != images.num_classes:
        raise InputError(f"The GHN predicts {ghn.num_classes} classes, {images.name} has {images.num_classes}.")
    device = ghn.device
    batches = []
    for i in range(BATCHES):
        x, y = images.batch(seed, i, BATCH, train=False)
        batches.append((torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)))
    jobs = [
        (_sampled, (split, seed, index))
        for split in SPLITS[1:]
        for index in range(networks if split == "test" else -(-networks // 3))
    ]
    jobs += [(_timm, (name, seed)) for name in timm_models]  # type: ignore[misc]
    return [
        job(ghn, batches, *args) for job, args in over(jobs, "Evaluating", show=progress, unit="network", stays=True)
    ]


Batches = list[tuple[Tensor, Tensor]]


def _sampled(ghn: GHN, batches: Batches, split: str, seed: int, index: int) -> Score:
    net, graph = network(split, seed, index, ghn.num_classes)
    predicted = ghn.predict(graph)
    torch.manual_seed(seed + index)
    initialised = Network(net.record, ghn.num_classes).to(ghn.device)
    group = split if split != "test" else f"test: {net.record.kind}"
    return Score(
        group,
        f"{split} {index}",
        _accuracy(lambda x: functional_call(net, predicted, (x,)), batches),
        _accuracy(initialised, batches),
    )


def _timm(ghn: GHN, batches: Batches, name: str, seed: int) -> Score:
    import timm

    torch.manual_seed(seed)
    size: dict[str, Any] = {"img_size": IMAGE} if name.startswith("vit") else {}
    model: nn.Module = timm.create_model(name, num_classes=ghn.num_classes, **size).to(ghn.device).train()
    random = _accuracy(model, batches)
    init_model(model, "ghn", ghn=ghn, input_size=IMAGE)
    return Score("timm", name, _accuracy(model, batches), random)


def _accuracy(model: Callable[[Tensor], Any], batches: Batches) -> float:
    right = [(model(images).argmax(1) == labels).float().mean() for images, labels in batches]
    return torch.stack(right).mean().item()


def summary(scores: list[Score]) -> Iterator[tuple[str, int, float, float]]:
    """Of each group, of all "test" groups and of the convolutional ones among them: count and mean accuracies."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        names = [f"timm: {score.name}" if score.group == "timm" else score.group]
        if score.group.startswith("test"):
            names += ["test"] + ["test, convolutional"] * (score.group != "test: vit")
        for name in names:
            groups.setdefault(name, []).append(score)
    for name, members in sorted(groups.items()):
        n = len(members)
        yield name, n, sum(s.predicted for s in members) / n, sum(s.random for s in members) / n

"""Libraries that build on timm get what `timm.create_model` gives for the same name and options."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from torch import nn

ARCH = "convnext_atto"
NAME = f"{ARCH}.ghn-orth"


@pytest.fixture(autouse=True)
def default_ghn(ghn_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{ghn_file}")


def library(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[libraries]'")


def assert_initialised(module: nn.Module, **options: object) -> None:
    """Whether a module of timm's holds the parameters that `create_model` gives it."""
    expected = dict(timm.create_model(ARCH, pretrained="ghn-orth", **options).named_parameters())
    found = dict(module.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(found[name].cpu(), parameter), name


def test_segmentation_models_pytorch() -> None:
    smp = library("segmentation_models_pytorch")
    model = smp.Unet(f"tu-{NAME}", encoder_weights=True, classes=2)
    assert_initialised(model.encoder.model, features_only=True, out_indices=(0, 1, 2, 3))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_fastai(tmp_path: Path) -> None:
    vision = library("fastai.vision.all")
    for label in ("dark", "light"):
        (tmp_path / label).mkdir()
        for i in range(4):
            vision.PILImage.create(torch.full((64, 64, 3), 200 * (label == "light") + i, dtype=torch.uint8)).save(
                tmp_path / label / f"{i}.png"
            )
    loaders = vision.ImageDataLoaders.from_folder(tmp_path, valid_pct=0.5, seed=0, bs=2, num_workers=0, device="cpu")
    learner = vision.vision_learner(loaders, NAME)
    assert_initialised(learner.model[0].model, num_classes=0)
    learner.unfreeze()  # fastai freezes the body of what is pretrained
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    with pytest.raises(AssertionError):
        assert_initialised(learner.model[0].model, num_classes=0)


def test_lightning() -> None:
    lightning = library("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = timm.create_model(name, pretrained=True)

        def on_train_start(self) -> None:
            assert_initialised(self.model)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    model = Classifier(NAME)
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_steps=1, barebones=True)
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.global_step == 1
    with pytest.raises(AssertionError):
        assert_initialised(model.model)  # it was trained


@pytest.mark.parametrize("way", ["from_pretrained", "config", "auto"])
def test_transformers_backbone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = library("transformers")
    if way == "from_pretrained":
        backbone = transformers.TimmBackbone.from_pretrained(NAME, out_indices=(1, 3))
    elif way == "config":
        config = transformers.TimmBackboneConfig(backbone=NAME, out_indices=(1, 3))
        backbone = transformers.TimmBackbone(config, pretrained=True)
    else:  # asks the Hub first whether there is such a repository
        factory = transformers.models.auto.auto_factory
        monkeypatch.setattr(factory, "hf_api", lambda: SimpleNamespace(repo_exists=lambda name: False))
        backbone = transformers.AutoBackbone.from_pretrained(NAME, out_indices=(1, 3))
    assert_initialised(backbone._backbone, features_only=True, out_indices=(1, 3))
    assert len(backbone(torch.zeros(1, 3, 64, 64)).feature_maps) == 2


def test_transformers_wrapper(ghn_file: Path, tmp_path: Path) -> None:
    """It builds without weights and reads a folder, which the command line writes."""
    from timm_ghn_init.cli import main

    transformers = library("transformers")
    folder = f"{tmp_path}/{ARCH}/"
    assert main(["predict", ARCH, "--source", f"file:{ghn_file}-orth", "-q", "-o", folder]) == 0
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(classifier, transformers.TimmWrapperForImageClassification)
    assert_initialised(classifier.timm_model)
    assert classifier.config.num_labels == 1000

    load: Callable = transformers.TimmWrapperForImageClassification.from_pretrained
    other = load(folder, num_labels=7, ignore_mismatched_sizes=True).timm_model
    assert other.head.fc.out_features == 7
    assert torch.equal(other.stem[0].weight, classifier.timm_model.stem[0].weight)
    features = transformers.TimmWrapperModel.from_pretrained(folder).timm_model
    for name, parameter in features.named_parameters():
        assert torch.equal(parameter, classifier.timm_model.get_parameter(name)), name


def test_torchvision_detection() -> None:
    library("torchvision")
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import FeaturePyramidNetwork, LastLevelMaxPool

    class Backbone(nn.Module):
        out_channels = 16

        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model(NAME, pretrained=True, features_only=True)
            self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16, extra_blocks=LastLevelMaxPool())

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.fpn({str(i): y for i, y in enumerate(self.body(x))})

    detector = FasterRCNN(Backbone(), num_classes=3, min_size=64, max_size=64)
    assert_initialised(detector.backbone.body, features_only=True)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.zeros(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert detector.backbone.body.stem_0.weight.grad.isfinite().all()

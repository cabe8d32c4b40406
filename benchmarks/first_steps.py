"""Do networks train from an initialisation? Ten steps of many kinds of networks, each with the loss of its own library.

    pip install '.[zoos]'
    python benchmarks/first_steps.py                                  all that is installed
    python benchmarks/first_steps.py --filter 'torchvision:*' --again some of it, once more
    python benchmarks/first_steps.py --markdown                       only write the page

Images and labels are synthetic: what is measured is whether the first losses are as large as those from the network's
own initialisation, and whether they fall. Each network starts from its own initialisation, then from each source, with
the same images, labels and random state. Each result is one line of the JSON file, so a run that was interrupted goes
on from there.
"""
# ruff: noqa: C408 (keyword arguments are written as such)

import argparse
import importlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_ghn_init import init_model

HERE = Path(__file__).parent
OWN, OWN_AGAIN = "own", "own, other seed"
SOURCES = (OWN_AGAIN, "rand", "orth", "ghn2-fashion", "ghn2-fashion-orth")
STEPS, RATE, CLASSES, BATCH = 10, 0.002, 10, 2
FIRST, FIRST_OF_ALL, LAST = 3.0, 5.0, 1.5  # times the loss from the network's own initialisation
MOST_VALUES = 40_000_000

Loss = Callable[[nn.Module], Tensor]
Case = tuple[Callable[[], nn.Module], Loss, Any]  # how to build it, its loss, and what it is called with to trace it


def images(size: int = 64, channels: int = 3, dims: int = 2, count: int = BATCH) -> Tensor:
    return torch.rand(count, channels, *(size,) * dims, generator=torch.Generator().manual_seed(1))


def maps(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(2))


def cross_entropy(inputs: Tensor, labels: Tensor) -> Loss:
    """Of the output: of a dictionary the entry "out", of a list the first."""

    def loss(model: nn.Module) -> Tensor:
        output = model(inputs)
        output = output["out"] if isinstance(output, dict) else output
        output = output[0] if isinstance(output, (tuple, list)) else output
        return F.cross_entropy(output, labels)

    return loss


# -- torchvision -----------------------------------------------------------------------------------------------------

_DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet_resnet50_fpn": {},
    "retinanet_resnet50_fpn_v2": {},
    "fcos_resnet50_fpn": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {},
    "fasterrcnn_resnet50_fpn": {},
    "fasterrcnn_resnet50_fpn_v2": {},
    "maskrcnn_resnet50_fpn": {},
    "keypointrcnn_resnet50_fpn": {},
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
}
_SEGMENTERS = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")


def torchvision_cases() -> Iterator[tuple[str, Case]]:
    models = importlib.import_module("torchvision.models")

    def target(classes: int = 1) -> dict[str, Tensor]:
        masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
        masks[:, 10:60, 10:60] = 1
        points = torch.tensor([[[20.0, 20, 1]] * 17])
        boxes = torch.tensor([[10.0, 10, 60, 60]])
        return {"boxes": boxes, "labels": torch.tensor([classes]), "masks": masks, "keypoints": points}

    def detection(model: nn.Module) -> Tensor:
        return sum(model(list(images(96)), [target(), target()]).values())  # type: ignore[return-value]

    for name in _DETECTORS:
        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        options |= {} if name.startswith("ssd") else {"min_size": 96, "max_size": 96}
        options |= {} if name.startswith("keypoint") else {"num_classes": CLASSES}
        build = lambda name=name, options=options: models.get_model(name, **options)  # noqa: E731
        yield name, (build, detection, None)
    for name in _SEGMENTERS:
        build = lambda name=name: models.get_model(  # noqa: E731
            name, weights=None, weights_backbone=None, num_classes=CLASSES
        )
        yield name, (build, cross_entropy(images(96), maps(BATCH, 96, 96)), None)


# -- segmentation_models_pytorch and MONAI ---------------------------------------------------------------------------


def smp_cases() -> Iterator[tuple[str, Case]]:
    smp = importlib.import_module("segmentation_models_pytorch")
    for arch in smp.MODEL_ARCHITECTURES_MAPPING:
        encoder = "tu-vit_tiny_patch16_224" if arch == "dpt" else "resnet18"
        size = 224 if arch == "dpt" else 96
        build = lambda arch=arch, encoder=encoder: smp.create_model(  # noqa: E731
            arch, encoder_name=encoder, encoder_weights=None, classes=CLASSES
        )
        yield f"{arch}:{encoder}", (build, cross_entropy(images(size), maps(BATCH, size, size)), None)


_MONAI: dict[str, tuple[dict[str, Any], int, int]] = {  # options, dimensions, size
    "UNet": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES, channels=(8, 16, 32), strides=(2, 2)), 2, 64),
    "BasicUNet": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES), 2, 64),
    "BasicUNetPlusPlus": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES), 2, 64),
    "SegResNet": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES), 2, 64),
    "AttentionUnet": (
        dict(spatial_dims=2, in_channels=3, out_channels=CLASSES, channels=(8, 16, 32), strides=(2, 2)),
        2,
        64,
    ),
    "DynUNet": (
        dict(
            spatial_dims=2,
            in_channels=3,
            out_channels=CLASSES,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
        ),
        2,
        64,
    ),
    "UNETR": (
        dict(in_channels=3, out_channels=CLASSES, img_size=64, spatial_dims=2, hidden_size=96, mlp_dim=192),
        2,
        64,
    ),
    "SwinUNETR": (dict(in_channels=3, out_channels=CLASSES, spatial_dims=2, feature_size=12), 2, 64),
    "VNet": (dict(spatial_dims=3, in_channels=1, out_channels=CLASSES), 3, 32),
    "HighResNet": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES), 2, 64),
    "DenseNet121": (dict(spatial_dims=2, in_channels=3, out_channels=CLASSES), 2, 64),
}


def monai_cases() -> Iterator[tuple[str, Case]]:
    nets = importlib.import_module("monai.networks.nets")
    for name, (options, dims, size) in _MONAI.items():
        x = images(size, options["in_channels"], dims)
        labels = maps(BATCH) if name == "DenseNet121" else maps(BATCH, *(size,) * dims)
        build = lambda name=name, options=options: getattr(nets, name)(**options)  # noqa: E731
        yield name, (build, cross_entropy(x, labels), x)


# -- ultralytics -----------------------------------------------------------------------------------------------------

_YOLO = ("yolov5", "yolov6", "yolov8", "yolov9t", "yolov10n", "yolo11", "yolo12", "yolov8-seg", "yolov8-pose")
_YOLO += ("yolov8-cls", "yolo11-obb", "rtdetr-resnet50", "yolov3-tiny")


def ultralytics_cases() -> Iterator[tuple[str, Case]]:
    tasks, cfg = importlib.import_module("ultralytics.nn.tasks"), importlib.import_module("ultralytics.cfg")
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "cls": "ClassificationModel", "obb": "OBBModel"}
    x = images(128)
    batch = {
        "img": x,
        "cls": torch.tensor([[1.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "masks": torch.ones(2, 32, 32),
        "keypoints": torch.full((2, 17, 3), 0.5),
        "ori_shape": [(128, 128)] * 2,
    }

    def loss(model: nn.Module) -> Tensor:
        return model.loss(batch)[0].sum()  # type: ignore[operator]

    for name in _YOLO:
        kind = kinds.get(name.partition("-")[2], "RTDETRDetectionModel" if "rtdetr" in name else "DetectionModel")

        def build(name: str = name, kind: str = kind) -> nn.Module:
            model = getattr(tasks, kind)(f"{name}.yaml", nc=CLASSES, verbose=False)
            model.args = cfg.get_cfg()
            return model

        own = {**batch, "cls": torch.tensor([1, 3])} if kind == "ClassificationModel" else batch
        own = {**own, "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4, 0.1]] * 2)} if kind == "OBBModel" else own
        yield name, (build, lambda model, own=own: model.loss(own)[0].sum(), x)


# -- transformers ----------------------------------------------------------------------------------------------------


def transformers_cases() -> Iterator[tuple[str, Case]]:
    t = importlib.import_module("transformers")
    small: dict[str, Any] = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    vit: dict[str, Any] = dict(image_size=64, patch_size=8, num_labels=CLASSES, **small)
    x, words = images(64), torch.randint(3, 100, (BATCH, 16), generator=torch.Generator().manual_seed(3))
    labels, dense = torch.tensor([1, 3]), maps(BATCH, 64, 64)
    boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    detr: dict[str, Any] = dict(
        num_labels=CLASSES, d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128
    )
    masks: dict[str, Any] = dict(mask_labels=[torch.ones(1, 64, 64)] * 2, class_labels=[torch.tensor([1])] * 2)
    rows: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "ViTForImageClassification": ("ViTConfig", vit, dict(pixel_values=x, labels=labels)),
        "ViTForMaskedImageModeling": (
            "ViTConfig",
            {**vit, "encoder_stride": 8},
            dict(pixel_values=x, bool_masked_pos=torch.arange(64).expand(2, 64) % 2 == 0),
        ),
        "ViTMAEForPreTraining": (
            "ViTMAEConfig",
            dict(image_size=64, patch_size=8, decoder_hidden_size=48, decoder_num_hidden_layers=2, **small)
            | dict(decoder_num_attention_heads=4, decoder_intermediate_size=96),
            dict(pixel_values=x),
        ),
        "BeitForSemanticSegmentation": (
            "BeitConfig",
            {**vit, "num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "use_auxiliary_head": False},
            dict(pixel_values=x, labels=dense),
        ),
        "SegformerForSemanticSegmentation": (
            "SegformerConfig",
            dict(num_labels=CLASSES, depths=[1, 1, 1, 1]),
            dict(pixel_values=x, labels=dense),
        ),
        "UperNetForSemanticSegmentation": (
            "UperNetConfig",
            dict(num_labels=CLASSES),
            dict(pixel_values=x, labels=dense),
        ),
        "MobileViTForSemanticSegmentation": (
            "MobileViTConfig",
            dict(num_labels=CLASSES),
            dict(pixel_values=x, labels=dense),
        ),
        "MobileNetV2ForSemanticSegmentation": (
            "MobileNetV2Config",
            dict(num_labels=CLASSES, image_size=64),
            dict(pixel_values=x, labels=dense),
        ),
        "ConvNextForImageClassification": (
            "ConvNextConfig",
            dict(num_labels=CLASSES, depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 64, 128]),
            dict(pixel_values=x, labels=labels),
        ),
        "SwinForImageClassification": (
            "SwinConfig",
            dict(num_labels=CLASSES, image_size=64, embed_dim=24, depths=[1, 1, 1], num_heads=[2, 4, 8], window_size=4),
            dict(pixel_values=x, labels=labels),
        ),
        "YolosForObjectDetection": (
            "YolosConfig",
            {**vit, "image_size": [64, 64], "num_detection_tokens": 10},
            dict(pixel_values=x, labels=[boxes] * 2),
        ),
        "DetrForObjectDetection": ("DetrConfig", detr, dict(pixel_values=x, labels=[boxes] * 2)),
        "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", detr, dict(pixel_values=x, labels=[boxes] * 2)),
        "DeformableDetrForObjectDetection": ("DeformableDetrConfig", detr, dict(pixel_values=x, labels=[boxes] * 2)),
        "RTDetrForObjectDetection": (
            "RTDetrConfig",
            dict(num_labels=CLASSES, num_queries=20, num_denoising=0),
            dict(pixel_values=images(128), labels=[boxes] * 2),
        ),
        "DFineForObjectDetection": (
            "DFineConfig",
            dict(num_labels=CLASSES, num_queries=20, num_denoising=0),
            dict(pixel_values=images(128), labels=[boxes] * 2),
        ),
        "MaskFormerForInstanceSegmentation": (
            "MaskFormerConfig",
            dict(num_labels=CLASSES),
            dict(pixel_values=x, **masks),
        ),
        "Mask2FormerForUniversalSegmentation": (
            "Mask2FormerConfig",
            dict(num_labels=CLASSES),
            dict(pixel_values=x, **masks),
        ),
        "BertForSequenceClassification": (
            "BertConfig",
            dict(num_labels=CLASSES, vocab_size=200, **small),
            dict(input_ids=words, labels=labels),
        ),
        "BertForMaskedLM": ("BertConfig", dict(vocab_size=200, **small), dict(input_ids=words, labels=words)),
        "GPT2LMHeadModel": (
            "GPT2Config",
            dict(vocab_size=200, n_embd=48, n_layer=2, n_head=4),
            dict(input_ids=words, labels=words),
        ),
        "Wav2Vec2ForSequenceClassification": (
            "Wav2Vec2Config",
            dict(num_labels=CLASSES, conv_dim=[32] * 7, **small),
            dict(input_values=images(8000, 1, 1)[:, 0], labels=labels),
        ),
        "CLIPModel": ("CLIPConfig", {}, dict(input_ids=words, pixel_values=images(224), return_loss=True)),
    }
    for name, (config, options, inputs) in rows.items():
        build = lambda name=name, config=config, options=options: getattr(t, name)(  # noqa: E731
            getattr(t, config)(**options)
        )
        plain = {k: v for k, v in inputs.items() if k in ("pixel_values", "input_ids", "input_values")}
        yield name, (build, lambda model, inputs=inputs: model(**inputs).loss, plain)


# -- timm ------------------------------------------------------------------------------------------------------------


def timm_cases() -> Iterator[tuple[str, Case]]:
    """The smallest architecture of each of timm's modules."""
    names = json.loads((HERE.parent / "tests" / "smallest_models.json").read_text())
    for name in sorted(set(names.values())):
        if not timm.is_model(name):
            continue
        config = timm.get_pretrained_cfg(name)
        size = config.input_size[-1] if config is not None else 224
        if config is not None and not config.fixed_input_size and config.min_input_size is None:
            size = min(size, 128)
        build = lambda name=name: timm.create_model(name, num_classes=CLASSES)  # noqa: E731
        yield name, (build, cross_entropy(images(size, count=4), torch.tensor([1, 3, 5, 7])), images(size))


LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "torchvision": torchvision_cases,
    "segmentation_models_pytorch": smp_cases,
    "monai": monai_cases,
    "ultralytics": ultralytics_cases,
    "transformers": transformers_cases,
    "timm": timm_cases,
}


# -- measure ---------------------------------------------------------------------------------------------------------


def losses(case: Case, source: str) -> tuple[list[float], dict[str, int]]:
    """The losses of `STEPS` steps of plain SGD, and one after them; how many parameters were left for which reason."""
    build, loss, inputs = case
    torch.manual_seed(1 if source == OWN_AGAIN else 0)
    model = build().train()
    if sum(p.numel() for p in model.parameters()) > MOST_VALUES + 20_000_000 * (inputs is None):
        raise ValueError("too large to be trained here")
    left: dict[str, int] = {}
    if source not in (OWN, OWN_AGAIN):
        for reason in init_model(model, source, example_inputs=inputs).skipped.values():
            left[reason] = left.get(reason, 0) + 1
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    found = []
    for step in range(STEPS + 1):
        torch.manual_seed(100 + step)  # of dropout and samplers
        try:
            now = loss(model)
        except (ValueError, AssertionError, RuntimeError):  # matchers refuse NaN
            if step == 0:
                raise
            found.append(math.nan)
            break
        found.append(now.item())
        if not math.isfinite(found[-1]) or step == STEPS:
            break
        optimiser.zero_grad()
        now.backward()
        optimiser.step()
    return found, left


def measure(done: dict[tuple[str, str], Any], file: Path, patterns: list[str], again: bool) -> None:
    for library, cases in LIBRARIES.items():
        if find_spec(library) is None:
            print(f"{library} is not installed")
            continue
        for name, case in cases():
            key = f"{library}:{name}"
            if patterns and not any(fnmatch(key, p) for p in patterns):
                continue
            for source in (OWN, *SOURCES):
                if (key, source) in done and not again:
                    continue
                record: dict[str, Any] = {"network": key, "source": source}
                try:
                    record["losses"], record["left"] = losses(case, source)
                except Exception as error:  # whatever a library raises is a result
                    record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                done[key, source] = record
                with file.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
                print(key, source, record.get("error") or [f"{x:.3g}" for x in record["losses"]], flush=True)
                if source == OWN and "error" in record:
                    break


def read(file: Path) -> dict[tuple[str, str], Any]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {(r["network"], r["source"]): r for r in map(json.loads, lines)}


# -- report ----------------------------------------------------------------------------------------------------------


def ratios(own: list[float], found: dict[str, Any]) -> tuple[float, float]:
    """First and last loss as multiples of the network's own; infinite where it failed. Losses may start at zero."""
    values = found.get("losses") or [math.inf]
    if len(values) < STEPS + 1 or not all(map(math.isfinite, values)):
        return (values[0] / own[0] if math.isfinite(values[0]) else math.inf), math.inf
    return values[0] / own[0], values[-1] / own[-1]


def page(done: dict[tuple[str, str], Any]) -> str:
    own = {
        n: r["losses"] for (n, s), r in done.items() if s == OWN and "losses" in r and math.isfinite(r["losses"][-1])
    }
    lines = [
        "# First steps",
        "",
        f"`python benchmarks/first_steps.py`: {len(own)} networks, {STEPS} steps of SGD at a rate of {RATE:g} on "
        "synthetic images, torch "
        f"{torch.__version__}, timm {timm.__version__}. Losses are multiples of those from the network's own "
        "initialisation.",
        "",
        "The last loss of a network that fits its few images within ten steps is nearly zero, so ratios of last losses "
        "are large there in either direction.",
        "",
        f"| source | finite | first loss at most {FIRST:g} | at most {FIRST_OF_ALL:g} | last loss at most {LAST:g} | "
        "median first | median last |",
        "|---|---|---|---|---|---|---|",
    ]
    table = {s: {n: ratios(own[n], done[n, s]) for n in own if (n, s) in done} for s in SOURCES}
    for source, found in table.items():
        count = max(1, len(found))
        finite = sum(math.isfinite(last) for _, last in found.values())
        first = sum(first <= FIRST for first, _ in found.values())
        most = sum(first <= FIRST_OF_ALL for first, _ in found.values())
        last = sum(last <= LAST for _, last in found.values())
        medians = [statistics.median([r[i] for r in found.values()] or [math.nan]) for i in (0, 1)]
        lines.append(
            f"| {source} | {finite} of {count} | {first} | {most} | {last} | {medians[0]:.2f} | {medians[1]:.2f} |"
        )
    lines += ["", f"| network | own: first, last | {' | '.join(SOURCES)} |", "|---|---|" + "---|" * len(SOURCES)]
    for name in own:
        cells = []
        for source in SOURCES:
            record = done.get((name, source))
            if record is None:
                cells.append("not measured")
                continue
            a, b = ratios(own[name], record)
            cells.append(record["error"].partition(":")[0] if "error" in record else f"{a:.3g}, {b:.3g}")
        lines.append(f"| {name} | {own[name][0]:.3g}, {own[name][-1]:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "first_steps.jsonl")
    parser.add_argument("--page", type=Path, default=HERE / "results" / "first_steps.md")
    parser.add_argument("--filter", nargs="*", default=[], help="patterns such as 'torchvision:*'")
    parser.add_argument("--again", action="store_true", help="also what the JSON file has already")
    parser.add_argument("--markdown", action="store_true", help="only write the page")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    done = read(options.json)
    if not options.markdown:
        measure(done, options.json, options.filter, options.again)
    options.page.write_text(page(done))


if __name__ == "__main__":
    main()

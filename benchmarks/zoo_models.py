"""The model zoos of `zoos.py`: names, how a model is built offline without weights, and what goes in.

A zoo that has a list of its own is asked for it; of others the table has a row for each model. Where models are large,
they are built small: fewer layers, fewer channels. Everything of a zoo is imported only when it is asked for.
"""

# ruff: noqa: C408 (keyword arguments are written as such)

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 100  # more than the shipped GHN predicts: classification layers are left, and counted as such

Built = tuple[nn.Module, Any]  # a model; a tensor, a tuple of positional arguments, or a dict of keyword arguments


class Zoo(NamedTuple):
    """A package with models in it."""

    package: str  # on PyPI
    module: str  # what is imported
    names: Callable[[], Iterable[str]]
    build: Callable[[str], Built]


class Row(NamedTuple):
    """A model: the path of its constructor, what that takes, and what goes into the model."""

    path: str
    options: Mapping[str, Any]
    inputs: Callable[[], Any]


def found(path: str) -> Any:
    """A class or function by its path, methods of classes included."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(found(module), name)


def image(size: int = 64, channels: int = 3, dims: int = 2) -> Tensor:
    return torch.rand(2, channels, *(size,) * dims)


def tokens(length: int = 16, of: int = 16) -> Tensor:
    return torch.randint(of, (2, length))


def of_rows(package: str, module: str, rows: Mapping[str, Row]) -> Zoo:
    def build(name: str) -> Built:
        row = rows[name]
        return found(f"{module}.{row.path}")(**row.options), row.inputs()

    return Zoo(package, module.partition(".")[0], lambda: rows, build)


def first_of_each(constructors: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The first name, which is mostly the smallest model, of each file of a package."""
    first: dict[str, str] = {}
    for name, constructor in constructors.items():
        first.setdefault(constructor.__module__, name)
    return list(first.values())


# -- pytorchcv -------------------------------------------------------------------------------------------------------


def _pytorchcv() -> list[str]:
    return first_of_each(importlib.import_module("pytorchcv.model_provider")._models)


_PYTORCHCV: dict[str, Callable[[], Any]] = {
    "pfpcnet": lambda: torch.rand(2, 1, 320, 240),
    "voca8flame": lambda: (torch.rand(2, 1, 16, 29), torch.tensor([1, 2])),
    "nvpattexp116bazel76": lambda: (torch.rand(2, 8, 16, 29), torch.tensor([1, 2])),
    "visemenet20": lambda: (torch.rand(34, 8, 195), torch.full((34, 76), 3)),
    "superpointnet": lambda: torch.rand(1, 1, 64, 64),
    "raft_things": lambda: (image(128), image(128)),
}


def _build_pytorchcv(name: str) -> Built:
    get = found("pytorchcv.model_provider.get_model")
    try:
        model = get(name, num_classes=CLASSES)
    except TypeError:  # no classifier
        model = get(name)
    if name in _PYTORCHCV:
        return model, _PYTORCHCV[name]()
    size = getattr(model, "in_size", (64, 64))
    return model, torch.rand(2, getattr(model, "in_channels", 3), *size)


# -- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision() -> list[str]:
    models = importlib.import_module("torchvision.models")
    builders = {n: models.get_model_builder(n) for n in models.list_models() if not n.startswith("quantized_")}
    classifiers = {n: b for n, b in builders.items() if b.__module__.startswith("torchvision.models.") and "." not in n}
    plain = {n: b for n, b in classifiers.items() if b.__module__.count(".") == 2}
    return first_of_each(plain) + [n for n in builders if n not in plain]


def _build_torchvision(name: str) -> Built:
    models = importlib.import_module("torchvision.models")
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if "optical_flow" in builder.__module__:
        del options["num_classes"]
    options |= {"weights_backbone": None} if re.search("detection|segmentation", builder.__module__) else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if "rcnn" in name or "retinanet" in name or "fcos" in name:
        options |= {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        options |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
    model = builder(**options)
    if "detection" in builder.__module__:
        return model, ([torch.rand(3, 96, 96), torch.rand(3, 96, 96)],)
    if "optical_flow" in builder.__module__:
        return model, (torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128))
    if "video" in builder.__module__:
        return model, torch.rand(2, 3, 16, 224, 224)
    return model, image(299 if name == "inception_v3" else 224)


# -- transformers ----------------------------------------------------------------------------------------------------

_TASKS = (
    "IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "VIDEO_CLASSIFICATION",
    "MASKED_IMAGE_MODELING",
    "IMAGE_TO_IMAGE",
    "KEYPOINT_DETECTION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
)
_TEXTS = (
    "Bert",
    "Roberta",
    "Albert",
    "DistilBert",
    "Electra",
    "ConvBert",
    "Deberta",
    "XLNet",
    "FNet",
    "GPT2",
    "ModernBert",
)
_DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer", "n_layers")


@cache
def _transformers_classes() -> dict[str, Any]:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    configs = importlib.import_module("transformers").CONFIG_MAPPING
    transformers = importlib.import_module("transformers")
    found_ones = {}
    for task in _TASKS:
        for kind, names in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names[:1]:
                if kind in configs and hasattr(transformers, name):
                    found_ones.setdefault(name, configs[kind])
    for kind in _TEXTS:
        found_ones[f"{kind}ForSequenceClassification"] = getattr(transformers, f"{kind}Config")
    return found_ones


def _small(config: Any) -> Any:
    """A configuration of two layers where it says how many there are, parts of it included."""
    for name in () if hasattr(config, "depths") else _DEPTHS:
        if type(getattr(config, name, None)) is int:
            setattr(config, name, min(2, getattr(config, name)))
    for part in ("text_config", "vision_config", "backbone_config", "encoder", "decoder"):
        if hasattr(getattr(config, part, None), "to_dict"):
            _small(getattr(config, part))
    return config


def _build_transformers(name: str) -> Built:
    config = _transformers_classes()[name]
    constructor = getattr(importlib.import_module("transformers"), name)
    try:
        model = constructor(_small(config(num_labels=CLASSES)))
    except Exception:  # layers that are listed one by one
        model = constructor(config(num_labels=CLASSES))
    return model, _transformers_inputs(model)


def _transformers_inputs(model: Any) -> Any:
    config, main = model.config, model.main_input_name
    vision = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    size = next((s for c in (config, vision) for s in (getattr(c, "image_size", None),) if s), 224)
    height, width = size[-2:] if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(vision, "num_channels", None) or 3
    pixels = torch.rand(2, channels if isinstance(channels, int) else 3, height, width)
    parameters = inspect.signature(model.forward).parameters
    if main == "pixel_values" and "input_ids" not in parameters:
        if "Video" in type(model).__name__:
            return {main: torch.rand(2, getattr(config, "num_frames", 8), 3, height, width)}
        return {main: pixels}
    if "pixel_values" in parameters and "input_ids" in parameters:
        return {"input_ids": tokens(), "attention_mask": torch.ones(2, 16, dtype=torch.int64), "pixel_values": pixels}
    if main == "input_values":
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
            return {main: torch.rand(2, config.max_length, config.num_mel_bins)}
        return {main: torch.rand(2, 16000)}
    if main == "input_features":
        return {main: torch.rand(2, getattr(config, "num_mel_bins", 80), 3000)}
    if main == "input_ids":
        return {"input_ids": tokens() + 2, "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    return {main: pixels}


# -- segmentation_models_pytorch -------------------------------------------------------------------------------------

_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0")


def _segmentation() -> list[str]:
    smp = importlib.import_module("segmentation_models_pytorch")
    return [f"{arch}:{encoder}" for arch in smp.MODEL_ARCHITECTURES_MAPPING for encoder in _ENCODERS]


def _build_segmentation(name: str) -> Built:
    arch, encoder = name.split(":")
    smp = importlib.import_module("segmentation_models_pytorch")
    if arch == "dpt":
        encoder = "tu-vit_tiny_patch16_224"
    model = smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=CLASSES)
    return model, image(224 if arch == "dpt" else 128)


# -- ultralytics -----------------------------------------------------------------------------------------------------


def _ultralytics() -> list[str]:
    folder = Path(importlib.import_module("ultralytics").__file__).parent / "cfg" / "models"
    return sorted(file.stem for file in folder.glob("*/*.yaml"))


def _build_ultralytics(name: str) -> Built:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kind = next((k for k in ("cls", "pose", "seg", "obb", "world", "sem", "depth") if f"-{k}" in name), "detect")
    if "rtdetr" in name:
        kind = "rtdetr"
    names = {"cls": "ClassificationModel", "pose": "PoseModel", "seg": "SegmentationModel", "obb": "OBBModel"}
    names |= {"world": "WorldModel", "rtdetr": "RTDETRDetectionModel", "detect": "DetectionModel"}
    names |= {"sem": "SemanticSegmentationModel", "depth": "DepthModel"}
    if name.startswith("yoloe"):
        names |= {"detect": "YOLOEModel", "seg": "YOLOESegModel"}
    return getattr(tasks, names[kind])(f"{name}.yaml", nc=CLASSES, verbose=False), image(64 if kind == "cls" else 128)


# -- spandrel --------------------------------------------------------------------------------------------------------


@cache
def _spandrel_classes() -> dict[str, Any]:
    package = importlib.import_module("spandrel.architectures")
    classes = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and issubclass(thing, nn.Module):
                classes[name] = thing
    return classes


_SPANDREL: dict[str, dict[str, Any]] = {
    "DRCT": dict(upsampler="pixelshuffle"),
    "DRUNet": dict(in_nc=4),
    "LaMa": dict(in_nc=4),
    "HAT": dict(window_size=8, upsampler="pixelshuffle"),
    "IPT": dict(patch_size=48),
    "MMRealSR": dict(num_in_ch=3, num_out_ch=3),
    "SAFMN": dict(dim=36),
    "SAFMNBCIE": dict(dim=36),
    "SPAN": dict(num_in_ch=3, num_out_ch=3),
    "Swin2SR": dict(window_size=8),
    "SwinIR": dict(window_size=8),
    "Uformer": dict(img_size=128),
}
_SPANDREL_IMAGES: dict[str, Callable[[], Any]] = {
    "DnCNN": lambda: image(64, 1),
    "DRUNet": lambda: image(64, 4),
    "GFPGAN": lambda: image(512),
    "IPT": lambda: image(48),
    "LaMa": lambda: (image(64), image(64, 1)),
    "Uformer": lambda: image(128),
}


def _build_spandrel(name: str) -> Built:
    return _spandrel_classes()[name](**_SPANDREL.get(name, {})), _SPANDREL_IMAGES.get(name, image)()


# -- vit-pytorch -----------------------------------------------------------------------------------------------------

# What its classes ask for, by name.
_VIT = {
    **dict(num_classes=CLASSES, dim=64, depth=2, heads=2, mlp_dim=128, patch_size=8, image_size=64, channels=3),
    **dict(cls_depth=1, max_tokens_per_depth=(32, 16), num_residual_streams=2, freq_patch_size=8, num_slots=4),
    **dict(frames=8, image_patch_size=8, frame_patch_size=2, spatial_depth=2, temporal_depth=2, max_frames=8),
    **dict(seq_len=64, ndim=3, input_shape=(8, 32, 32), sm_dim=32, lg_dim=64, reduction_factor=(4, 2), mlp_mult=2),
    **dict(dims=(16, 16, 32), num_hierarchies=3, block_repeats=(1, 1, 2)),
}
_SIMPLE = {o: _VIT[o] for o in ("image_size", "patch_size", "num_classes", "dim", "depth", "heads", "mlp_dim")}
_VIT_OPTIONS: dict[str, dict[str, Any]] = {
    "cct.CCT": dict(img_size=64, embedding_dim=64, num_layers=2, num_heads=2, num_classes=CLASSES),
    "cct_3d.CCT": dict(img_size=64, num_frames=8, embedding_dim=64, num_layers=2, num_heads=2, num_classes=CLASSES),
    "crossformer.CrossFormer": dict(dim=(32, 64, 64, 128), depth=(1, 1, 2, 1), num_classes=CLASSES),
    "cvt.CvT": dict(num_classes=CLASSES, s3_depth=2),
    "cross_vit.CrossViT": dict(image_size=192, num_classes=CLASSES, sm_dim=32, lg_dim=64, depth=1),
    "levit.LeViT": dict(image_size=64, num_classes=CLASSES, dim=(64, 96, 128), depth=2, heads=(2, 3, 4), mlp_mult=2),
    "look_vit.LookViT": dict(dim=64, image_size=64, num_classes=CLASSES, depth=2, patch_size=16, highres_patch_size=8),
    "looped_vit.LoopedViT": dict(num_classes=CLASSES, dim=64, image_size=64, patch_size=8),
    "max_vit.MaxViT": dict(num_classes=CLASSES, dim=32, depth=(1, 1), window_size=7),
    "max_vit_with_registers.MaxViT": dict(num_classes=CLASSES, dim=32, depth=(1, 1), window_size=7),
    "mobile_vit.MobileViT": dict(
        image_size=(64, 64),
        dims=[32, 48, 64],
        channels=[16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96],
        num_classes=CLASSES,
    ),
    "jumbo_vit.JumboViT": dict(_SIMPLE, num_jumbo_cls=1, jumbo_cls_k=2, jumbo_ff_mult=2),
    "nest.NesT": dict(
        image_size=64, patch_size=4, num_classes=CLASSES, dim=32, heads=2, num_hierarchies=3, block_repeats=(1, 1, 2)
    ),
    "pit.PiT": dict(image_size=64, patch_size=8, num_classes=CLASSES, dim=32, depth=(1, 1, 1), heads=2, mlp_dim=64),
    "regionvit.RegionViT": dict(dim=(32, 32, 64, 64), depth=(1, 1, 2, 1), num_classes=CLASSES),
    "scalable_vit.ScalableViT": dict(
        num_classes=CLASSES,
        dim=32,
        heads=(2, 4, 4, 4),
        depth=(1, 1, 1, 1),
        reduction_factor=(8, 4, 2, 1),
        window_size=(8, 8, None, None),
    ),
    "sep_vit.SepViT": dict(num_classes=CLASSES, dim=32, depth=(1, 1, 1, 1), heads=(1, 2, 2, 2)),
    "simple_uvit.SimpleUViT": dict(
        image_size=64, patch_size=8, num_classes=CLASSES, dim=64, depth=4, heads=2, mlp_dim=128
    ),
    "t2t.T2TViT": dict(image_size=64, num_classes=CLASSES, dim=64, depth=2, heads=2, mlp_dim=128),
    "twins_svt.TwinsSVT": dict(
        num_classes=CLASSES, s1_emb_dim=32, s2_emb_dim=32, s3_emb_dim=64, s4_emb_dim=64, s3_depth=2, s4_depth=1
    ),
    "vat_siglip.SigLIP": dict(image_size=56, patch_size=14, dim=64, depth=2, heads=2, mlp_dim=128),
}
_VIT_IMAGES = {
    **dict.fromkeys(("crossformer.CrossFormer", "cvt.CvT", "max_vit.MaxViT", "max_vit_with_registers.MaxViT"), 224),
    **dict.fromkeys(("regionvit.RegionViT", "sep_vit.SepViT", "twins_svt.TwinsSVT"), 224),
    **{"cross_vit.CrossViT": 192, "scalable_vit.ScalableViT": 256, "vat_siglip.SigLIP": 56},
}
_VIT_PARTS = {
    "ImageEmbedder",
    "Dino",
    "EsViTTrainer",
    "Adapter",
    "LeJEPA",
    "LeVJEPA",
    "MPP",
    "MPPLoss",
    "Transformer",
    "SPT",
}
_VIT_PARTS |= {"AutoencodingHead", "TransformerClassifier"}


def _vit_pytorch() -> list[str]:
    package = importlib.import_module("vit_pytorch")
    names = []
    for info in pkgutil.iter_modules(package.__path__):
        try:
            module = importlib.import_module(f"vit_pytorch.{info.name}")
        except ImportError:  # wants a package of its own
            continue
        for name, thing in vars(module).items():
            own = inspect.isclass(thing) and issubclass(thing, nn.Module) and thing.__module__ == module.__name__
            full = f"{info.name}.{name}"
            if own and name not in _VIT_PARTS and (full in _VIT_OPTIONS or _is_vit(thing)):
                names.append(full)
    return names


def _asked_for(constructor: Any) -> set[str]:
    parameters = list(inspect.signature(constructor.__init__).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in kinds}


def _is_vit(constructor: Any) -> bool:
    asked = _asked_for(constructor)
    return bool(asked & {"image_size", "input_shape", "seq_len"}) and asked <= _VIT.keys()


def _build_vit_pytorch(name: str) -> Built:
    constructor = found(f"vit_pytorch.{name}")
    options = _VIT_OPTIONS.get(name) or {o: _VIT[o] for o in _asked_for(constructor)}
    model = constructor(**options)
    if name.startswith("na_vit"):
        size = (3, 8, 32, 32) if "3d" in name else (3, 32, 64)
        images = [torch.rand(size), torch.rand(size)]
        return model, ([images] if name.startswith("na_vit.") else images,)
    if "seq_len" in options:
        return model, torch.rand(2, 3, 64)
    if "input_shape" in options:
        return model, torch.rand(2, 3, 8, 32, 32)
    if {"frames", "num_frames"} & options.keys():
        return model, torch.rand(2, 3, 8, 64, 64)
    return model, image(_VIT_IMAGES.get(name, 64))


# -- zoos without a list ---------------------------------------------------------------------------------------------


def volume(size: int = 32, channels: int = 1) -> Tensor:
    return image(size, channels, dims=3)


def steps(channels: int = 4, size: int = 16) -> tuple[Tensor, Tensor]:
    """A noisy sample and its time."""
    return torch.rand(2, channels, size, size), torch.tensor([1, 2])


_UNET = dict(spatial_dims=2, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
_MONAI = {
    "AHNet": Row("AHNet", dict(spatial_dims=3, upsample_mode="nearest"), lambda: volume(128)),
    "AHNet 2D": Row("AHNet", dict(spatial_dims=2, out_channels=2), lambda: image(128, 1)),
    "AttentionUnet": Row("AttentionUnet", _UNET, lambda: image(64, 1)),
    "AutoEncoder": Row("AutoEncoder", {**_UNET, "strides": (2, 2, 2)}, lambda: image(64, 1)),
    "AutoencoderKL": Row(
        "AutoencoderKL",
        dict(
            spatial_dims=2, channels=(32, 32), num_res_blocks=(1, 1), attention_levels=(False, True), norm_num_groups=16
        ),
        lambda: image(32, 1),
    ),
    "BasicUNet": Row("BasicUNet", dict(spatial_dims=3, features=(8, 8, 16, 32, 64, 8)), volume),
    "BasicUNetPlusPlus": Row("BasicUNetPlusPlus", dict(spatial_dims=2), lambda: image(64, 1)),
    "Classifier": Row(
        "Classifier",
        dict(in_shape=(1, 32, 32), classes=CLASSES, channels=(8, 16), strides=(2, 2)),
        lambda: image(32, 1),
    ),
    "Critic": Row("Critic", dict(in_shape=(1, 32, 32), channels=(8, 16), strides=(2, 2)), lambda: image(32, 1)),
    "ControlNet": Row(
        "ControlNet",
        dict(
            spatial_dims=2,
            in_channels=1,
            channels=(16, 32),
            attention_levels=(False, True),
            num_head_channels=16,
            num_res_blocks=1,
            norm_num_groups=16,
            conditioning_embedding_num_channels=(16,),
        ),
        lambda: (image(32, 1), torch.tensor([1, 2]), image(32, 1)),
    ),
    "DAF3D": Row("DAF3D", dict(in_channels=1, out_channels=2), lambda: volume(64)),
    "DenseNet121": Row("DenseNet121", dict(spatial_dims=3, in_channels=1, out_channels=CLASSES), lambda: volume(64)),
    "DiffusionModelUNet": Row(
        "DiffusionModelUNet",
        dict(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(16, 32),
            attention_levels=(False, True),
            num_head_channels=16,
            num_res_blocks=1,
            norm_num_groups=16,
        ),
        lambda: (image(32, 1), torch.tensor([1, 2])),
    ),
    "DynUNet": Row(
        "DynUNet",
        dict(
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 16, 32],
            res_block=True,
        ),
        volume,
    ),
    "DynUNet deep supervision": Row(
        "DynUNet",
        dict(
            spatial_dims=2,
            in_channels=1,
            out_channels=2,
            kernel_size=[3, 3, 3, 3],
            strides=[1, 2, 2, 2],
            upsample_kernel_size=[2, 2, 2],
            deep_supervision=True,
        ),
        lambda: image(64, 1),
    ),
    "EfficientNetBN": Row(
        "EfficientNetBN",
        dict(model_name="efficientnet-b0", spatial_dims=2, num_classes=CLASSES, pretrained=False),
        image,
    ),
    "FlexibleUNet": Row(
        "FlexibleUNet", dict(in_channels=3, out_channels=2, backbone="efficientnet-b0", spatial_dims=2), image
    ),
    "FlexibleUNet resnet18": Row(
        "FlexibleUNet", dict(in_channels=3, out_channels=2, backbone="resnet18", spatial_dims=2), image
    ),
    "FullyConnectedNet": Row(
        "FullyConnectedNet",
        dict(in_channels=16, out_channels=CLASSES, hidden_channels=(32, 32)),
        lambda: torch.rand(2, 16),
    ),
    "Generator": Row(
        "Generator",
        dict(latent_shape=(64,), start_shape=(8, 8, 8), channels=(8, 4, 1), strides=(2, 2, 2)),
        lambda: torch.rand(2, 64),
    ),
    "HighResNet": Row("HighResNet", dict(spatial_dims=3), volume),
    "HoVerNet": Row("HoVerNet", dict(out_classes=5), lambda: image(256)),
    "HyenaNDUNETR": Row(
        "HyenaNDUNETR",
        dict(in_channels=1, out_channels=2, hyena_stages=(True, True, False, False), feature_size=12),
        lambda: volume(64),
    ),
    "LocalNet": Row(
        "LocalNet",
        dict(spatial_dims=2, in_channels=2, num_channel_initial=8, extract_levels=(0, 1, 2)),
        lambda: image(32, 2),
    ),
    "GlobalNet": Row(
        "GlobalNet",
        dict(image_size=(32, 32), spatial_dims=2, in_channels=2, num_channel_initial=8, depth=3),
        lambda: image(32, 2),
    ),
    "MaskedAutoEncoderViT": Row(
        "MaskedAutoEncoderViT",
        dict(
            in_channels=1,
            img_size=(32, 32),
            patch_size=(8, 8),
            spatial_dims=2,
            hidden_size=64,
            mlp_dim=128,
            num_layers=2,
            num_heads=4,
            decoder_hidden_size=64,
            decoder_mlp_dim=128,
            decoder_num_layers=2,
            decoder_num_heads=4,
        ),
        lambda: image(32, 1),
    ),
    "MedNeXt": Row(
        "MedNeXt",
        dict(spatial_dims=3, init_filters=8, blocks_down=(1, 1, 1, 1), blocks_up=(1, 1, 1, 1)),
        lambda: volume(32),
    ),
    "MILModel": Row(
        "MILModel",
        dict(num_classes=CLASSES, mil_mode="att", pretrained=False, backbone="resnet18"),
        lambda: torch.rand(2, 3, 3, 64, 64),
    ),
    "PatchDiscriminator": Row(
        "PatchDiscriminator", dict(spatial_dims=2, channels=16, in_channels=1), lambda: image(64, 1)
    ),
    "MultiScalePatchDiscriminator": Row(
        "MultiScalePatchDiscriminator",
        dict(num_d=2, num_layers_d=2, spatial_dims=2, channels=8, in_channels=1, minimum_size_im=64),
        lambda: image(64, 1),
    ),
    "Quicknat": Row("Quicknat", dict(num_classes=5), lambda: image(64, 1)),
    "Regressor": Row(
        "Regressor",
        dict(in_shape=(1, 32, 32), out_shape=(CLASSES,), channels=(8, 16), strides=(2, 2)),
        lambda: image(32, 1),
    ),
    "RegUNet": Row(
        "RegUNet", dict(spatial_dims=3, in_channels=2, num_channel_initial=8, depth=2), lambda: volume(32, 2)
    ),
    "resnet18": Row("resnet18", dict(spatial_dims=3, n_input_channels=1, num_classes=CLASSES), lambda: volume(64)),
    "SegResNet": Row("SegResNet", dict(spatial_dims=3), volume),
    "SegResNetVAE": Row("SegResNetVAE", dict(input_image_size=(32, 32), spatial_dims=2), lambda: image(32, 1)),
    "SegResNetDS": Row("SegResNetDS", dict(spatial_dims=3, init_filters=8, blocks_down=(1, 2, 2)), volume),
    "SegResNetDS2": Row("SegResNetDS2", dict(spatial_dims=3, init_filters=8, blocks_down=(1, 2, 2)), volume),
    "SEResNet50": Row("SEResNet50", dict(spatial_dims=2, in_channels=3, num_classes=CLASSES), lambda: image(224)),
    "SPADENet": Row(
        "SPADENet",
        dict(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            label_nc=3,
            input_shape=[32, 32],
            channels=[16, 32],
            is_vae=False,
        ),
        lambda: (image(32, 3), torch.rand(2, 1, 32, 32)),
    ),
    "SwinUNETR": Row("SwinUNETR", dict(in_channels=1, out_channels=2, feature_size=12), lambda: volume(64)),
    "SwinUNETR v2": Row(
        "SwinUNETR",
        dict(in_channels=1, out_channels=2, feature_size=12, use_v2=True, spatial_dims=2),
        lambda: image(64, 1),
    ),
    "UNet": Row("UNet", {**_UNET, "num_res_units": 2}, lambda: image(64, 1)),
    "UNETR": Row(
        "UNETR",
        dict(
            in_channels=1,
            out_channels=2,
            img_size=(32, 32, 32),
            feature_size=8,
            hidden_size=96,
            mlp_dim=128,
            num_heads=4,
        ),
        volume,
    ),
    "VarAutoEncoder": Row(
        "VarAutoEncoder",
        dict(spatial_dims=2, in_shape=(1, 32, 32), out_channels=1, latent_size=8, channels=(8, 16), strides=(2, 2)),
        lambda: image(32, 1),
    ),
    "ViT": Row(
        "ViT",
        dict(
            in_channels=1,
            img_size=(32, 32, 32),
            patch_size=(8, 8, 8),
            hidden_size=96,
            mlp_dim=128,
            num_layers=2,
            num_heads=4,
            classification=True,
            num_classes=CLASSES,
        ),
        volume,
    ),
    "ViTAutoEnc": Row(
        "ViTAutoEnc",
        dict(
            in_channels=1,
            img_size=(32, 32),
            patch_size=(4, 4),
            spatial_dims=2,
            hidden_size=96,
            mlp_dim=128,
            num_layers=4,
            num_heads=4,
        ),
        lambda: image(32, 1),
    ),
    "VNet": Row("VNet", {}, volume),
    "VoxelMorphUNet": Row(
        "VoxelMorphUNet",
        dict(
            spatial_dims=3,
            in_channels=2,
            unet_out_channels=16,
            channels=(16, 32, 32, 32, 32, 32),
            final_conv_channels=(16, 16),
        ),
        lambda: volume(32, 2),
    ),
    "VoxelMorph": Row("VoxelMorph", {}, lambda: (volume(), volume())),
    "VQVAE": Row(
        "VQVAE",
        dict(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(16, 16),
            num_res_channels=(8, 8),
            num_res_layers=1,
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=16,
            embedding_dim=8,
        ),
        lambda: image(32, 1),
    ),
}
_TWO = dict(block_out_channels=(32, 64), layers_per_block=1)
_DIT = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2)
_DIFFUSERS = {
    "UNet2DModel": Row(
        "UNet2DModel",
        dict(
            sample_size=16,
            **_TWO,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        lambda: steps(3),
    ),
    "UNet2DConditionModel": Row(
        "UNet2DConditionModel",
        dict(
            sample_size=16,
            **_TWO,
            cross_attention_dim=32,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        lambda: (*steps(), torch.rand(2, 4, 32)),
    ),
    "UNet1DModel": Row(
        "UNet1DModel",
        dict(
            sample_size=256,
            in_channels=14,
            out_channels=14,
            time_embedding_type="positional",
            down_block_types=("DownResnetBlock1D",) * 3,
            up_block_types=("UpResnetBlock1D",) * 2,
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            block_out_channels=(32, 64, 128),
            act_fn="swish",
            use_timestep_embedding=True,
        ),
        lambda: (torch.rand(2, 14, 16), torch.tensor([1, 2])),
    ),
    "UNet3DConditionModel": Row(
        "UNet3DConditionModel",
        dict(
            sample_size=16,
            **_TWO,
            cross_attention_dim=32,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        lambda: (torch.rand(2, 4, 4, 16, 16), torch.tensor([1, 2]), torch.rand(2, 4, 32)),
    ),
    "UNetSpatioTemporalConditionModel": Row(
        "UNetSpatioTemporalConditionModel",
        dict(
            sample_size=16,
            **_TWO,
            cross_attention_dim=32,
            num_attention_heads=(2, 4),
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            num_frames=2,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        ),
        lambda: (torch.rand(2, 2, 8, 16, 16), torch.tensor([1, 2]), torch.rand(2, 1, 32), torch.rand(2, 3)),
    ),
    "ControlNetModel": Row(
        "ControlNetModel",
        dict(
            **_TWO,
            cross_attention_dim=32,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            conditioning_embedding_out_channels=(16, 32),
        ),
        lambda: (*steps(), torch.rand(2, 4, 32), torch.rand(2, 3, 32, 32)),
    ),
    "AutoencoderKL": Row(
        "AutoencoderKL",
        dict(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        lambda: image(32),
    ),
    "AsymmetricAutoencoderKL": Row(
        "AsymmetricAutoencoderKL",
        dict(
            down_block_types=("DownEncoderBlock2D",) * 2,
            down_block_out_channels=(32, 64),
            layers_per_down_block=1,
            up_block_types=("UpDecoderBlock2D",) * 2,
            up_block_out_channels=(32, 64),
            layers_per_up_block=1,
        ),
        lambda: image(32),
    ),
    "AutoencoderKLTemporalDecoder": Row(
        "AutoencoderKLTemporalDecoder",
        dict(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1),
        lambda: dict(sample=image(32), num_frames=1),
    ),
    "AutoencoderTiny": Row("AutoencoderTiny", {}, lambda: image(64)),
    "AutoencoderDC": Row(
        "AutoencoderDC",
        dict(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        lambda: image(32),
    ),
    "VQModel": Row(
        "VQModel",
        dict(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        lambda: image(32),
    ),
    "DiTTransformer2DModel": Row(
        "DiTTransformer2DModel", dict(**_DIT, sample_size=16, out_channels=8), lambda: (*steps(), torch.tensor([3, 4]))
    ),
    "PixArtTransformer2DModel": Row(
        "PixArtTransformer2DModel",
        dict(**_DIT, sample_size=16, cross_attention_dim=32, caption_channels=32, use_additional_conditions=False),
        lambda: dict(
            hidden_states=steps()[0],
            timestep=steps()[1],
            encoder_hidden_states=torch.rand(2, 4, 32),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
    ),
    "SD3Transformer2DModel": Row(
        "SD3Transformer2DModel",
        dict(
            **_DIT,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
        ),
        lambda: (steps()[0], torch.rand(2, 4, 32), torch.rand(2, 64), torch.tensor([1, 2])),
    ),
    "FluxTransformer2DModel": Row(
        "FluxTransformer2DModel",
        dict(
            in_channels=4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        lambda: (
            torch.rand(2, 16, 4),
            torch.rand(2, 8, 32),
            torch.rand(2, 32),
            torch.rand(2),
            torch.rand(16, 3),
            torch.rand(8, 3),
        ),
    ),
    "SanaTransformer2DModel": Row(
        "SanaTransformer2DModel",
        dict(
            **_DIT,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
        ),
        lambda: (steps()[0], torch.rand(2, 4, 32), torch.tensor([1, 2])),
    ),
    "Transformer2DModel": Row(
        "Transformer2DModel",
        dict(**_DIT, in_channels=32, cross_attention_dim=32),
        lambda: (torch.rand(2, 32, 16, 16), torch.rand(2, 4, 32)),
    ),
    "AuraFlowTransformer2DModel": Row(
        "AuraFlowTransformer2DModel",
        dict(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=256,
        ),
        lambda: (steps()[0], torch.rand(2, 4, 32), torch.rand(2)),
    ),
    "PriorTransformer": Row(
        "PriorTransformer",
        dict(**_DIT, embedding_dim=16, num_embeddings=7, additional_embeddings=4),
        lambda: (torch.rand(2, 16), torch.tensor([1, 2]), torch.rand(2, 16), torch.rand(2, 7, 16)),
    ),
    "CogVideoXTransformer3DModel": Row(
        "CogVideoXTransformer3DModel",
        dict(
            **_DIT,
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=8,
            sample_width=8,
            sample_height=8,
            sample_frames=8,
            max_text_seq_length=8,
        ),
        lambda: (torch.rand(2, 2, 4, 8, 8), torch.rand(2, 8, 8), torch.tensor([1, 2])),
    ),
    "LTXVideoTransformer3DModel": Row(
        "LTXVideoTransformer3DModel",
        dict(**_DIT, in_channels=4, out_channels=4, cross_attention_dim=32, caption_channels=32),
        lambda: dict(
            hidden_states=torch.rand(2, 128, 4),
            encoder_hidden_states=torch.rand(2, 8, 32),
            timestep=torch.rand(2),
            encoder_attention_mask=torch.ones(2, 8),
            num_frames=2,
            height=8,
            width=8,
        ),
    ),
}
_KORNIA = {
    "DISK": Row("feature.DISK", {}, lambda: image(64)),
    "HardNet": Row("feature.HardNet", dict(pretrained=False), lambda: image(32, 1)),
    "HardNet8": Row("feature.HardNet8", dict(pretrained=False), lambda: image(32, 1)),
    "HyNet": Row("feature.HyNet", dict(pretrained=False), lambda: image(32, 1)),
    "SOSNet": Row("feature.SOSNet", dict(pretrained=False), lambda: image(32, 1)),
    "TFeat": Row("feature.TFeat", dict(pretrained=False), lambda: image(32, 1)),
    "KeyNet": Row("feature.KeyNet", dict(pretrained=False), lambda: image(64, 1)),
    "OriNet": Row("feature.OriNet", dict(pretrained=False), lambda: image(32, 1)),
    "XFeatModel": Row("feature.xfeat.XFeatModel", {}, lambda: image(64)),
    "ALIKED": Row("feature.aliked.ALIKED", {}, lambda: image(64)),
    "LoFTR": Row("feature.LoFTR", dict(pretrained=None), lambda: ({"image0": image(64, 1), "image1": image(64, 1)},)),
    "EncoderDeFMO": Row("feature.defmo.EncoderDeFMO", {}, lambda: image(64, 6)),
    "DexiNed": Row("models.dexined.DexiNed", dict(pretrained=False), lambda: image(64)),
    "RRDBNet": Row("models.rrdbnet.RRDBNet", dict(num_in_ch=3, num_out_ch=3, num_block=2), lambda: image(32)),
    "SmallSRNet": Row("models.small_sr.SmallSRNet", dict(upscale_factor=2, pretrained=False), lambda: image(32, 1)),
    "TinyViT": Row("models.tiny_vit.TinyViT", dict(num_classes=CLASSES, mobile_sam=False), lambda: image(224)),
    "VisionTransformer": Row(
        "models.vit.VisionTransformer",
        dict(image_size=64, patch_size=16, depth=2, embed_dim=64, num_heads=2),
        lambda: image(64),
    ),
    "MobileViT": Row("models.vit_mobile.MobileViT", {}, lambda: image(256)),
    "EfficientViTBackbone": Row(
        "models.efficient_vit.backbone.EfficientViTBackbone",
        dict(width_list=[8, 16, 32, 64, 128], depth_list=[1, 2, 2, 2, 2], dim=16),
        lambda: image(224),
    ),
    "YuNet": Row("models.yunet.model.YuNet", dict(phase="test", pretrained=False), lambda: image(64)),
}
_VARIOUS = {
    "efficientnet_pytorch": (
        "efficientnet_pytorch",
        {
            f"b{i}": Row(
                "EfficientNet.from_name", dict(model_name=f"efficientnet-b{i}", num_classes=CLASSES), lambda: image(224)
            )
            for i in (0, 1)
        },
    ),
    "facenet-pytorch": (
        "facenet_pytorch",
        {
            "InceptionResnetV1": Row("InceptionResnetV1", dict(classify=True, num_classes=CLASSES), lambda: image(160)),
        },
    ),
    "hiera-transformer": (
        "hiera",
        {
            "Hiera": Row("Hiera", dict(num_classes=CLASSES, stages=(1, 2, 2, 1)), lambda: image(224)),
            "MaskedAutoencoderHiera": Row(
                "hiera_mae.MaskedAutoencoderHiera",
                dict(stages=(1, 2, 2, 1), q_pool=2, decoder_depth=2),
                lambda: image(224),
            ),
        },
    ),
    "mlp-mixer-pytorch": (
        "mlp_mixer_pytorch",
        {
            "MLPMixer": Row(
                "MLPMixer", dict(image_size=64, channels=3, patch_size=8, dim=64, depth=2, num_classes=CLASSES), image
            ),
        },
    ),
    "timesformer-pytorch": (
        "timesformer_pytorch",
        {
            "TimeSformer": Row(
                "TimeSformer",
                dict(dim=64, image_size=64, patch_size=16, num_frames=4, num_classes=CLASSES, depth=2, heads=2),
                lambda: torch.rand(2, 4, 3, 64, 64),
            ),
        },
    ),
    "segment-anything": (
        "segment_anything.modeling",
        {
            "ImageEncoderViT": Row(
                "ImageEncoderViT",
                dict(
                    img_size=256,
                    embed_dim=96,
                    depth=4,
                    num_heads=4,
                    out_chans=32,
                    window_size=7,
                    global_attn_indexes=(1, 3),
                    use_rel_pos=True,
                ),
                lambda: image(256),
            ),
        },
    ),
}


# -- pretrainedmodels, open_clip -------------------------------------------------------------------------------------

_CADENE = (
    "bninception",
    "cafferesnet101",
    "dpn68",
    "fbresnet152",
    "inceptionresnetv2",
    "inceptionv4",
    "nasnetamobile",
    "polynet",
    "resnext101_32x4d",
    "se_resnet50",
    "se_resnext50_32x4d",
    "xception",
)


def _build_cadene(name: str) -> Built:
    model = found(f"pretrainedmodels.{name}")(num_classes=CLASSES, pretrained=None)
    sizes = {"inceptionresnetv2": 299, "inceptionv4": 299, "polynet": 331, "xception": 299}
    return model, image(sizes.get(name, 224))


_CLIPS = (
    "RN50",
    "ViT-B-32",
    "ViT-B-16-plus-240",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "MobileCLIP-B",
    "PE-Core-T-16-384",
    "ViT-B-16-SigLIP",
    "ViT-S-32-alt",
    "ViTamin-S",
    "coca_ViT-B-32",
    "convnext_tiny",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
)


def _build_clip(name: str) -> Built:
    open_clip = importlib.import_module("open_clip")
    config = dict(open_clip.get_model_config(name))
    kind = (
        open_clip.CoCa
        if "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if config.pop("custom_text", False)
        else open_clip.CLIP
    )
    for key in ("custom_text", "vision_cfg", "text_cfg", "multimodal_cfg"):
        part = config.get(key)
        if isinstance(part, dict):
            small = {"layers": 2} if isinstance(part.get("layers"), int) else {}
            config[key] = {**part, **small, **({"vocab_size": 1000} if "vocab_size" in part else {})}
    config.pop("custom_text", None)
    model = kind(**config)
    size = model.visual.image_size
    length = config["text_cfg"].get("context_length", 77)
    return model, (image(size if isinstance(size, int) else size[0]), tokens(length, 900) + 1)


ZOOS: dict[str, Zoo] = {
    zoo.package: zoo
    for zoo in (
        Zoo("pytorchcv", "pytorchcv", _pytorchcv, _build_pytorchcv),
        Zoo("torchvision", "torchvision", _torchvision, _build_torchvision),
        Zoo("transformers", "transformers", lambda: list(_transformers_classes()), _build_transformers),
        Zoo("segmentation_models_pytorch", "segmentation_models_pytorch", _segmentation, _build_segmentation),
        Zoo("ultralytics", "ultralytics", _ultralytics, _build_ultralytics),
        Zoo("spandrel", "spandrel", lambda: list(_spandrel_classes()), _build_spandrel),
        Zoo("vit-pytorch", "vit_pytorch", _vit_pytorch, _build_vit_pytorch),
        of_rows("monai", "monai.networks.nets", _MONAI),
        of_rows("diffusers", "diffusers", _DIFFUSERS),
        of_rows("kornia", "kornia", _KORNIA),
        Zoo("pretrainedmodels", "pretrainedmodels", lambda: _CADENE, _build_cadene),
        Zoo("open_clip_torch", "open_clip", lambda: _CLIPS, _build_clip),
        *(of_rows(package, module, rows) for package, (module, rows) in _VARIOUS.items()),
    )
}

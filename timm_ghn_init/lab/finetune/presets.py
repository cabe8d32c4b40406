"""Hyper-parameters of the paper: those it chose (Table 2) and those it chose from (Section 4)."""

from typing import Any

# optimiser, epochs, initial learning rate, weight decay, image size
_TABLE_2: dict[str, dict[str, tuple[str, int, float, float, int]]] = {
    "resnet50": {
        "rand": ("sgd", 300, 0.01, 0.05, 32),
        "orth": ("sgd", 300, 0.01, 0.05, 32),
        "ghn": ("sgd", 300, 0.01, 0.01, 32),
        "ghn-orth": ("sgd", 300, 0.01, 0.01, 32),
        "pretrained": ("sgd", 200, 0.001, 1e-4, 224),
    },
    "convnext_base": {
        "rand": ("adamw", 300, 0.001, 1e-4, 32),
        "orth": ("adamw", 300, 0.001, 1e-4, 32),
        "ghn": ("adamw", 300, 0.001, 0.1, 32),
        "ghn-orth": ("adamw", 300, 0.001, 0.1, 32),
        "pretrained": ("sgd", 300, 0.0025, 1e-4, 224),
    },
}
# What Table 2 leaves open is as in the authors' code: their ConvNeXt is torchvision's, with its stochastic depth.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet50": {"batch_size": 96},
    "convnext_base": {"batch_size": 48, "drop_path": 0.5},
}
# Table 2 says L = 100 for ConvNeXt; its authors have corrected that to 94, in their own numbering, which is ours.
_SOURCES = {
    "resnet50": {"ghn": "ghn2", "ghn-orth": "ghn2-orth?layer=37&beta=3e-5"},
    "convnext_base": {"ghn": "ghn2", "ghn-orth": "ghn2-orth?layer=94&beta=3e-5"},
}

PRESETS: dict[str, dict[str, Any]] = {
    f"{arch}/{init}": {
        "init": _SOURCES[arch].get(init, init),
        **dict(zip(("opt", "epochs", "lr", "weight_decay", "image_size"), row, strict=True)),
        **_ARCHITECTURES[arch],
    }
    for arch, rows in _TABLE_2.items()
    for init, row in rows.items()
}
"""ARCH/INIT -> fields of `Trial`."""

GRID: dict[str, tuple[Any, ...]] = {
    "opt": ("sgd", "adamw"),
    "epochs": (50, 100, 200, 300),
    "weight_decay": (0.0001, 0.001, 0.01, 0.05, 0.1),
    "image_size": (224, 32),
}
"""Field of `Trial` -> the values that the paper's search tried; the learning rates depend on the optimiser."""

LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "sgd": (0.025, 0.01, 0.005, 0.0025, 0.001),
    "adamw": (0.004, 0.001, 0.0004, 0.0001),
}

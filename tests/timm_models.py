"""timm's architectures on the meta device, or a skip that says which timm has them."""

from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from torch import nn

# Until 1.0.20 many constructors of timm's read values: of rates of stochastic depth, for the most part.
READS_VALUES = Version(timm.__version__) < Version("1.0.21")
LOCAL_DIR = pytest.mark.skipif(Version(timm.__version__) < Version("1.0.17"), reason="local-dir: is of timm 1.0.17")


def on_meta(name: str, **options: Any) -> nn.Module:
    skip_unless_known(name)
    try:
        with torch.device("meta"):
            return timm.create_model(name, **options)
    except (RuntimeError, NotImplementedError) as error:
        skip_if_values_are_read(str(error))
        raise


def skip_unless_known(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")


def skip_if_values_are_read(error: str) -> None:
    """Skip if an error, or a process's traceback, is that of a constructor that cannot run on meta in this timm."""
    if READS_VALUES and "meta tensor" in error:
        pytest.skip(f"timm {timm.__version__} reads values in its constructors, which are on meta: 1.0.21 does not")

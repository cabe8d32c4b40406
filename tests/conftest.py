"""GHNs with reproducible weights: each tensor is filled from its own state-dict name (see tests/parity/README.md)."""

import zlib
from pathlib import Path

import pytest
import torch

from timm_ghn_init.ghn import GHN

GHN2_CONFIG = {
    "max_shape": (64, 64, 16, 16),
    "num_classes": 1000,
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
    "hid": 32,
}
GHN3_CONFIG = {**GHN2_CONFIG, "hypernet": "graphormer", "hid": 64, "heads": 8, "layers": 3}


def seed_weights(ghn: torch.nn.Module) -> torch.nn.Module:
    """Fill every tensor of a GHN by the rule of the parity data."""
    state = ghn.state_dict()
    for name, tensor in state.items():
        t = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if "embed" in name:
            filled = t
        elif t.dim() >= 2:
            filled = t * (2 / t[0].numel()) ** 0.5
        elif name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
            filled = 1 + 0.1 * t
        else:
            filled = 0.1 * t
        tensor.copy_(filled)
    ghn.load_state_dict(state)
    return ghn.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def seeded_ghn2() -> GHN:
    return seed_weights(GHN(**GHN2_CONFIG))


@pytest.fixture(scope="session")
def seeded_ghn3() -> GHN:
    return seed_weights(GHN(**GHN3_CONFIG))


@pytest.fixture(scope="session")
def ghn_file(seeded_ghn2: GHN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded GHN-2 as a checkpoint file, for `file:PATH` sources."""
    from timm_ghn_init.checkpoints import save_ghn

    path = tmp_path_factory.mktemp("ghn") / "seeded-ghn2.safetensors"
    save_ghn(seeded_ghn2, path)
    return path

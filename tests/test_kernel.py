"""The kernel that writes all blocks at once, in Triton's interpreter: bit for bit what the copies write."""

import importlib
from typing import Any

import pytest
import torch

from timm_ghn_init.ghn.tiles import Tile
from timm_ghn_init.graph import Target


@pytest.fixture(scope="module")
def kernel() -> Any:
    pytest.importorskip("triton", reason="comes with PyTorch's CUDA builds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from timm_ghn_init.ghn import kernel

        yield importlib.reload(kernel)


def tile(shape: tuple[int, ...], block: torch.Tensor, **target: Any) -> Tile:
    return Tile(block, Target("p", shape, 0, target.pop("role", "weight"), **target))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TILES = {
    "a vector": tile((10,), randn(4), role="bias"),
    "a vector from a row on": tile((10,), randn(12), role="bias", offset=3),
    "a matrix that is smaller than its block": tile((3, 5), randn(8, 8)[:3, :5]),
    "a matrix of many blocks": tile((130, 70), randn(64, 64)),
    "kernels": tile((20, 9, 3, 3), randn(8, 4, 5, 5)[:, :, :3, :3]),
    "kernels of another layout in memory": tile((20, 9, 3, 3), randn(3, 3, 8, 4).permute(2, 3, 0, 1)),
    "kernels over time": tile((9, 6, 4, 3, 3), randn(4, 4, 3, 3).unsqueeze(2)),
    "rows from one on": tile((9, 6), randn(8, 4), offset=5),
    "experts": tile((5, 12 * 6), randn(8, 4), kernel=(12, 6)),
    "more than a chunk": tile((100, 120), randn(64, 64)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_bits_as_copies(kernel: Any, dtype: torch.dtype) -> None:
    expected = {name: torch.full(t.target.shape, float("nan"), dtype=dtype) for name, t in TILES.items()}
    found = {name: tensor.clone() for name, tensor in expected.items()}
    for name, t in TILES.items():
        t.write_(expected[name])
        assert kernel.can_write(t, found[name])
    kernel.write_all([(t, found[name]) for name, t in TILES.items()])
    for name in TILES:
        wanted = expected[name]
        if dtype == torch.bfloat16:  # which the interpreter does not round to, as a GPU does, but cuts off
            wanted = (TILES[name].full().view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)
        assert torch.equal(found[name], wanted), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found_in_its_place(kernel: Any, value: float) -> None:
    blocks = {name: t.block.clone() for name, t in TILES.items()}
    assert kernel.finite(list(blocks.values())) == [True] * len(blocks)
    large = torch.full((100, 100), 3e38)  # the sum of which is not finite
    for name, block in blocks.items():
        blocks[name] = block.clone()
        blocks[name][(-1,) * block.dim()] = value
        around = torch.full((3, 5), value)
        around[1:, :4] = 1.0
        found = kernel.finite([*blocks.values(), large, around[1:, :4]])
        assert found == [n != name for n in blocks] + [True, True]
        blocks[name] = block


def test_what_is_left_to_copies(kernel: Any) -> None:
    block = tile((4, 4, 3, 3), randn(4, 4, 3, 3))
    assert not kernel.can_write(block, torch.empty(4, 4, 3, 3).to(memory_format=torch.channels_last))
    assert not kernel.can_write(block, torch.empty(4, 4, 3, 3, dtype=torch.float64))
    assert not kernel.can_write(tile((1, 4, 8), randn(1, 4, 8), role="pos_enc"), torch.empty(1, 4, 8))

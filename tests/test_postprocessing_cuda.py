"""GHN-orth post-processing on a GPU."""

import pytest
import torch
from torch import nn

from timm_ghn_init.recipe.noise import correlation_stds
from timm_ghn_init.recipe.orthogonal import cholesky_qr
from timm_ghn_init.recipe.postprocessing import orthogonal_alone, postprocess

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]


def predicted(n: int, c: int) -> torch.Tensor:
    """A tiled 64 x 64 block, scaled as a GHN's prediction is."""
    block = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) * (2 / c) ** 0.5
    return block.repeat(-(-n // 64), -(-c // 64))[:n, :c].contiguous()


def network(*weights: torch.Tensor) -> nn.Sequential:
    layers = [nn.Linear(w.shape[1], w.shape[0]) for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    return nn.Sequential(*layers, nn.Linear(7, 3))


def assert_orthonormal(weight: torch.Tensor) -> None:
    matrix = weight.detach().flatten(1).double()
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    eye = torch.eye(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    torch.testing.assert_close(matrix.T @ matrix, eye, atol=1e-5, rtol=0)


def well_conditioned() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((512, 128), (128, 512), (96, 96), (1, 40))
    return [torch.randn(shape, generator=generator) + 20 * torch.eye(*shape) for shape in shapes]


def test_agrees_with_the_cpu_where_well_conditioned():
    cpu, gpu = network(*well_conditioned()), network(*well_conditioned()).cuda()
    done_cpu = postprocess(cpu, layer=1, device="cpu")
    done_gpu = postprocess(gpu, layer=1)
    for a, b, x, y in zip(cpu, gpu, done_cpu, done_gpu, strict=False):
        assert b.weight.is_cuda
        torch.testing.assert_close(b.weight.cpu(), a.weight, atol=1e-4, rtol=0)
        assert y.correlation_std == pytest.approx(x.correlation_std, rel=1e-4)


def test_predicted_weights_become_orthonormal_by_cholesky(monkeypatch):
    def no_householder(columns):
        raise AssertionError("fell back to Householder")

    monkeypatch.setattr("timm_ghn_init.recipe.postprocessing.orthogonalize_", no_householder)
    model = network(predicted(2048, 512), predicted(512, 2048), predicted(512, 512), predicted(1024, 49)).cuda()
    postprocess(model, layer=1)
    for layer in model[:4]:
        assert_orthonormal(layer.weight)


@pytest.mark.parametrize("matrix", [torch.zeros(20, 8), torch.ones(64, 16), predicted(256, 128)])
def test_deficient_matrices_fall_back(matrix):
    columns = matrix.T.contiguous().cuda()
    _, good = cholesky_qr(columns[None])
    assert not good
    assert_orthonormal(orthogonal_alone(columns).T)


def test_noise_scale():
    for matrix in (predicted(512, 256).cuda(), torch.randn(300, 200, device="cuda"), predicted(256, 512).cuda().T):
        assert correlation_stds(matrix.T[None]).item() == pytest.approx(
            torch.corrcoef(matrix.double()).std().item(), rel=1e-4
        )


def test_same_seed_same_bits_and_random_state_untouched():
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    weights = []
    for seed in (4, 4, 5):
        model = network(predicted(512, 256), predicted(256, 512)).cuda()
        postprocess(model, layer=1, seed=seed)
        weights.append([layer.weight.detach().clone() for layer in model[:2]])
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(torch.cuda.get_rng_state(), states[1])


def test_a_model_on_the_cpu_is_computed_on_the_gpu_and_stays_on_the_cpu():
    cpu, gpu = network(predicted(256, 128)), network(predicted(256, 128)).cuda()
    postprocess(cpu, layer=1)
    postprocess(gpu, layer=1)
    assert not cpu[0].weight.is_cuda
    assert torch.equal(cpu[0].weight, gpu[0].weight.cpu())


def test_half_precision():
    model = network(predicted(256, 128)).cuda().bfloat16()
    postprocess(model, layer=1)
    matrix = model[0].weight.detach().float()
    assert model[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(128, device="cuda"), atol=1e-2, rtol=0)

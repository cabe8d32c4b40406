"""GHN-orth post-processing: Eq. (1) and (2) of the paper and what surrounds them."""

import copy
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from timm_models import on_meta
from torch import nn

from timm_ghn_init.recipe.noise import correlation_std
from timm_ghn_init.recipe.orthogonal import cholesky_qr, orthogonalize_
from timm_ghn_init.recipe.plan import auto_layer
from timm_ghn_init.recipe.postprocessing import (
    Equations,
    _process_at_once,
    list_layers,
    postprocess,
    process,
    process_batch,
    to_process,
)
from timm_ghn_init.utils.progress import Progress


def conv_net(**kwargs) -> nn.Module:
    """Five layers: a tall, a square, a depthwise and a wide one to process, then the classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 48, 3, **kwargs),
        nn.BatchNorm2d(48),
        nn.Conv2d(48, 48, 1, **kwargs),
        nn.Conv2d(48, 48, 5, groups=48, **kwargs),
        nn.Conv2d(48, 32, 3, **kwargs),
        nn.Flatten(),
        nn.Linear(32, 10, **kwargs),
    )


def matrix_form(weight: torch.Tensor) -> torch.Tensor:
    """(rows, columns) with rows >= columns, as the paper takes it for Eq. (1) and (2)."""
    matrix = weight.detach().flatten(1)
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def reference_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    q, r = torch.linalg.qr(matrix.double())
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def randn(n: int, c: int) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(n * 1000 + c))


def well_conditioned(n: int, c: int) -> torch.Tensor:
    return randn(n, c) + 3 * torch.eye(n, c)


def tiled(n: int, c: int) -> torch.Tensor:
    """What a GHN predicts: rank 8 at most, rows and columns repeat."""
    return randn(8, 8).repeat(-(-n // 8), -(-c // 8))[:n, :c].contiguous()


def linear_net(*weights: torch.Tensor) -> nn.Sequential:
    """Linear layers with these weights, and a classifier."""
    layers = [nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype) for w in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    return nn.Sequential(*layers, nn.Linear(7, 3))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def on_cpu(model: nn.Module, **kwargs):
    return postprocess(model, **{"layer": 1, "device": "cpu", "progress": False, **kwargs})


# -- Eq. (2) -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64), (50, 1), (1, 50), (1, 1)])
def test_equals_the_qr_with_the_sign_rule(shape):
    weight = well_conditioned(*shape)
    model = linear_net(weight)
    on_cpu(model, beta=0)
    torch.testing.assert_close(
        matrix_form(model[0].weight).double(), reference_orthogonal(matrix_form(weight)), atol=2e-6, rtol=0
    )


def test_convolutions_are_taken_as_k_by_c_kh_kw():
    model, wide, tall = conv_net(), None, None
    tall, wide = model[0].weight.detach().clone(), model[4].weight.detach().clone()
    assert tall[0].numel() < len(tall) and wide[0].numel() > len(wide)
    on_cpu(model, beta=0)
    for weight, before in ((model[0].weight, tall), (model[4].weight, wide)):
        expected = reference_orthogonal(matrix_form(before))
        torch.testing.assert_close(matrix_form(weight).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (128, 128), (100, 60)])
def test_tiled_weights_become_orthonormal(shape):
    model = linear_net(tiled(*shape))
    on_cpu(model)
    matrix = matrix_form(model[0].weight).double()
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(matrix.shape[1], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0, 3e-5])
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(20, 8), torch.full((20, 8), 0.3), torch.ones(8, 20), torch.full((1, 9), -2.0), torch.zeros(9, 1),
     torch.full((12, 6), 1e-30), tiled(64, 32), torch.eye(10, 5), -torch.eye(5)],
    ids=["zeros", "constant", "ones", "1xn", "nx1", "tiny", "rank 8", "identity", "minus identity"],
)  # fmt: skip
def test_deficient_matrices_still_become_orthonormal(weight, beta):
    model = linear_net(weight)
    (done,) = on_cpu(model, beta=beta)
    matrix = matrix_form(model[0].weight).double()
    assert math.isfinite(done.correlation_std)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(matrix.shape[1], dtype=torch.float64), atol=1e-5, rtol=0)


def test_zeros_on_the_diagonal_of_r_count_as_positive():
    model = linear_net(torch.zeros(20, 8))
    on_cpu(model)
    assert torch.equal(model[0].weight, torch.eye(20, 8))


def test_noise_only():
    weight = tiled(256, 64)
    model = linear_net(weight)
    (done,) = on_cpu(model, beta=1e-3, orthogonal=False)
    noise = (model[0].weight.detach() - weight).double()
    assert noise.std().item() == pytest.approx(1e-3 * done.correlation_std, rel=0.03)
    assert abs(noise.mean().item()) < 3 * noise.std().item() / noise.numel() ** 0.5
    assert (noise.flatten() > 2 * noise.std()).double().mean().item() == pytest.approx(0.02275, rel=0.15)  # normal


# -- the algorithms of Eq. (2) -----------------------------------------------------------------------------------------


def cholesky(columns, shifted=False):
    """None where it gives up."""
    q, good = cholesky_qr(columns[None], shifted=shifted)
    return q[0] if good else None


@pytest.mark.parametrize("algorithm", [cholesky, partial(cholesky, shifted=True), orthogonalize_])
@pytest.mark.parametrize("shape", [(300, 100), (128, 128), (40, 1)])
def test_qr_algorithms_agree(algorithm, shape):
    matrix = well_conditioned(*shape)
    columns = matrix.T.contiguous()
    torch.testing.assert_close(algorithm(columns).T.double(), reference_orthogonal(matrix), atol=2e-6, rtol=0)


@pytest.mark.parametrize("condition", [1e5, 1e7, 1e9, 1e11])
def test_cholesky_qr_is_exact_on_ill_conditioned_matrices(condition):
    generator = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(n, 64, generator=generator, dtype=torch.float64))[0] for n in (256, 64))
    matrix = (u * torch.logspace(0, -math.log10(condition), 64, dtype=torch.float64)) @ v.T
    q = cholesky(matrix.T.contiguous(), shifted=True)
    assert q is not None
    torch.testing.assert_close(q @ q.T, torch.eye(64, dtype=torch.float64), atol=1e-6, rtol=0)
    # q^T A = R, upper triangular with a positive diagonal
    r = q @ matrix
    assert r.tril(-1).abs().max() < 1e-6 * r.diagonal().max()
    assert (r.diagonal() > 0).all()


@pytest.mark.parametrize("matrix", [torch.zeros(20, 5), torch.ones(20, 5), tiled(64, 32)])
def test_cholesky_qr_gives_up_on_rank_deficient_matrices(matrix):
    assert cholesky(matrix.T.contiguous()) is None


def test_cholesky_qr_gives_up_when_a_factorisation_fails(monkeypatch):
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda gram: (factorise(gram)[0], torch.tensor([3])))
    assert cholesky(well_conditioned(20, 5).T.contiguous()) is None


# -- many at once, as on a GPU -----------------------------------------------------------------------------------------


def predicted(*shape):
    """A weight as a GHN predicts it: a block of 64 x 64 channels, again and again."""
    k, c, *kernel = shape
    block = torch.randn(64, 64, *kernel, generator=torch.Generator().manual_seed(k + c)) * (2 / c) ** 0.5
    return block.repeat(-(-k // 64), -(-c // 64), *(1 for _ in kernel))[:k, :c].contiguous()


@pytest.mark.parametrize(
    "shape", [(512, 128), (128, 512), (256, 256), (128, 128, 3, 3), (192, 64, 2, 2), (48, 1, 7, 7)]
)
def test_many_weights_at_once_are_what_qr_gives(shape):
    """Two passes do for tiled weights: condition numbers of 1e5 to 1e8, where QR in float32 has an error of 1e-2."""
    weights = [predicted(*shape), predicted(*shape) * 0.5, predicted(*shape).flip(0)]
    names = ["a", "b", "c"]
    matrices = [weight.flatten(1) if len(weight) >= weight[0].numel() else weight.flatten(1).T for weight in weights]
    columns = torch.stack([matrix.T for matrix in matrices])
    period = 64 * (weights[0][0, 0].numel() if len(weights[0]) >= weights[0][0].numel() else 1)
    with torch.no_grad():
        plain = process_batch(columns, names, 3e-5, False, 7)
        done = process_batch(columns, names, 3e-5, True, 7, period)
    assert plain.good.all() and done.good.all()
    for matrix, noisy, q, sigma in zip(matrices, plain.columns, done.columns, done.sigma, strict=True):
        assert sigma.item() == pytest.approx(torch.corrcoef(matrix.double()).std().item(), rel=1e-5)
        noise = noisy.T.double() - matrix
        assert noise.std().item() == pytest.approx(3e-5 * sigma.item(), rel=0.05)
        torch.testing.assert_close(q.T.double(), reference_orthogonal(noisy.T.double()), atol=1e-6, rtol=0)


def test_all_layers_at_once_are_those_one_by_one():
    """Batches of several shapes and dtypes, and what Cholesky factors cannot do, which is done again by itself."""
    sizes = (96, 64, 64, 64, 32, 5)
    model = nn.Sequential(*(nn.Linear(c, k) for c, k in itertools.pairwise(sizes)))
    for i, layer in enumerate(model):
        layer.weight.data.copy_(well_conditioned(*layer.weight.shape))
        layer.to((torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.float32)[i])
    model[3].weight.data.zero_()
    layers, weights = to_process(model, 1), [layer.weight.clone() for layer in model]
    cpu = torch.device("cpu")

    def read(layer, whole):
        whole.copy_(layer.weight)

    one_by_one, at_once = {}, {}
    with torch.no_grad():
        expected = process(layers, Equations(beta=1e-8), cpu, read, one_by_one, False)
        with Progress("", len(layers), show=False) as bar:
            sigmas = _process_at_once(layers, Equations(beta=1e-8), cpu, read, at_once, bar)
        assert sigmas == pytest.approx(expected, rel=1e-5)
        assert sorted(at_once) == sorted(one_by_one) == [f"{i}.weight" for i in range(4)]
        for i in (0, 1, 2):
            value = at_once[f"{i}.weight"]
            assert value.dtype == weights[i].dtype
            tolerance = 2e-6 if value.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(value, one_by_one[f"{i}.weight"], atol=tolerance, rtol=0)
        q = at_once["3.weight"].double()
    torch.testing.assert_close(q @ q.T, torch.eye(32, dtype=torch.float64), atol=1e-6, rtol=0)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, weights, strict=True))


def test_names_that_no_parameter_has():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"no parameter '0\.wieght'"):
        postprocess(model, layer=1, names=["0.weight", "0.wieght"])
    assert postprocess(model, layer=1, names=["0.bias"]) == []
    assert [done.name for done in postprocess(nn.DataParallel(model), layer=1, names=["module.0.weight"])] == [
        "module.0.weight"
    ]


def test_values_that_are_too_large_without_noise():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.data.copy_(3e38 * randn(8, 8).sign())
    before = model[0].weight.clone()
    with pytest.raises(RuntimeError, match=r"0\.weight .* its values are too large"):
        postprocess(model, layer=1, beta=0)
    assert torch.equal(model[0].weight, before)


def test_all_layers_at_once_refuse_what_is_not_finite():
    model = nn.Sequential(nn.Linear(8, 8).half(), nn.Linear(8, 2))
    layers = to_process(model, 1)

    def read(layer, whole):
        whole.copy_(layer.weight.sign() * 65500)  # the noise goes beyond the largest number of float16

    message = r"0\.weight is not finite any more"
    with pytest.raises(RuntimeError, match=message), torch.no_grad(), Progress("", 1, show=False) as bar:
        _process_at_once(layers, Equations(beta=1000.0, orthogonal=False), torch.device("cpu"), read, {}, bar)


def test_a_wrong_period_is_no_error():
    matrix = randn(300, 200)
    for period in (1, 7, 64, 199, 200, 10**6):
        q, good = cholesky_qr(matrix.T[None].contiguous(), period)
        assert good.all()
        torch.testing.assert_close(q[0].T, reference_orthogonal(matrix), atol=1e-7, rtol=0)


# -- Eq. (1) -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matrix",
    [randn(200, 50), 5 + 0.1 * randn(64, 64), randn(30, 2), tiled(256, 64), tiled(250, 60), tiled(60, 7),
     randn(1, 32) + 0.1 * randn(128, 32), randn(600, 300), 1e-30 * randn(40, 9), 1e30 * randn(40, 9), randn(2, 4),
     randn(40, 64).repeat(3, 1)[:100], randn(20, 9)[[0, 1, 2, 0, 3, 4, 5]]],
)  # fmt: skip
def test_noise_scale_is_the_std_of_the_correlation_matrix(matrix):
    assert correlation_std(matrix) == pytest.approx(torch.corrcoef(matrix.double()).std().item(), rel=1e-5)


def test_noise_scale_correlates_the_rows_of_the_matrix_form():
    weight = torch.randn(16, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(6, 16, 3), nn.Linear(16, 2))
    model[0].weight.data.copy_(weight)
    (done,) = on_cpu(model)
    assert done.correlation_std == pytest.approx(torch.corrcoef(weight.flatten(1).T.double()).std().item(), rel=1e-5)


def test_constant_rows_have_correlation_zero():
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    matrix[2] = 0.1  # its mean is not exactly 0.1 in float32
    correlation = torch.corrcoef(matrix.double())
    correlation[2] = correlation[:, 2] = 0
    assert correlation_std(matrix) == pytest.approx(correlation.std().item(), rel=1e-5)


@pytest.mark.parametrize("matrix", [torch.full((9, 4), 0.1), randn(7, 1), randn(1, 1), torch.zeros(5, 3)])
def test_no_correlation_no_noise(matrix):
    assert correlation_std(matrix) == 0


# -- what is processed, and what is not --------------------------------------------------------------------------------


def test_layers_are_numbered_in_the_order_of_modules():
    model = conv_net()
    assert [name for name, _ in list_layers(model)] == ["0.weight", "2.weight", "3.weight", "4.weight", "6.weight"]
    assert [module for _, module in list_layers(model)] == [model[i] for i in (0, 2, 3, 4, 6)]
    assert [name for name, _ in list_layers(nn.Linear(3, 3))] == ["weight"]


@pytest.mark.parametrize("layer", [1, 2, 4, 5])
def test_only_the_layers_from_l_to_the_last_but_one_change(layer):
    model = conv_net()
    before = weights_of(model)
    done = on_cpu(model, layer=layer)
    names = [name for name, _ in list_layers(model)][layer - 1 : -1]
    assert [(d.layer, d.name) for d in done] == list(enumerate(names, start=layer))
    assert all(d.shape == tuple(before[d.name].shape) for d in done)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in names), name


def test_parameters_keep_identity_and_flags():
    model = conv_net().eval()
    model[2].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = dict(model.named_parameters())
    on_cpu(model)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert parameter.requires_grad == (name != "2.weight")
        assert parameter.is_leaf and parameter.grad_fn is None
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert not model.training and torch.is_grad_enabled()


def test_channels_last_gives_the_same_weights():
    plain, last = conv_net(), conv_net().to(memory_format=torch.channels_last)
    on_cpu(plain)
    on_cpu(last)
    for (name, a), b in zip(plain.named_parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert last[4].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype):
    model = conv_net().to(dtype)
    reference = copy.deepcopy(model).float()
    on_cpu(model)
    on_cpu(reference)
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype)), name


# -- tied weights ------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Layers 1 to 5 of which any can share a weight."""

    def __init__(self, *pairs: tuple[int, int]):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(5))
        for i, j in pairs:
            self.layers[j - 1].weight = self.layers[i - 1].weight


def test_a_shared_parameter_is_processed_once():
    tied, single = Tied((2, 4)), Tied()
    done = on_cpu(tied)
    on_cpu(single)
    assert [d.layer for d in done] == [1, 2, 3]
    assert tied.layers[1].weight is tied.layers[3].weight
    assert torch.equal(tied.layers[1].weight, single.layers[1].weight)


@pytest.mark.parametrize(("pair", "processed"), [((1, 4), [3]), ((3, 5), [4])], ids=["with a lower one", "classifier"])
def test_a_weight_shared_with_a_layer_that_must_stay_stays(pair, processed):
    model = Tied(pair)
    before = weights_of(model)
    assert [d.layer for d in on_cpu(model, layer=3)] == processed
    shared = f"layers.{pair[0] - 1}.weight"
    assert torch.equal(model.state_dict()[shared], before[shared])


def test_a_shared_module_counts_once():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2))
    assert [name for name, _ in list_layers(model)] == ["0.weight", "3.weight"]


# -- seeds -------------------------------------------------------------------------------------------------------------


def processed(model: nn.Module, **kwargs) -> dict[str, torch.Tensor]:
    on_cpu(model, **kwargs)
    return weights_of(model)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_same_seed_same_bits_and_another_seed_other_noise():
    first, again, other = (processed(conv_net(), seed=seed, beta=1e-2, orthogonal=False) for seed in (5, 5, -6))
    assert_same(first, again)
    for name in ("0.weight", "2.weight", "3.weight", "4.weight"):
        assert not torch.equal(first[name], other[name])


def test_bits_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    model = linear_net(tiled(512, 256), tiled(256, 512), tiled(300, 300))
    try:
        torch.set_num_threads(1)
        one = processed(copy.deepcopy(model))
        torch.set_num_threads(2)
        two = processed(copy.deepcopy(model))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert_same(one, two)


def test_number_of_threads_is_restored():
    def in_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads(), in_a_new_thread()
    on_cpu(conv_net())
    assert (torch.get_num_threads(), in_a_new_thread()) == before


def test_noise_depends_on_seed_and_name_only():
    weight = tiled(64, 48)
    alone, among = linear_net(weight), linear_net(weight, tiled(32, 32), tiled(96, 16))
    reordered = nn.Sequential()
    for name in ("2", "1", "0"):
        reordered.add_module(name, among.get_submodule(name))
    reordered.add_module("3", among.get_submodule("3"))
    reordered = copy.deepcopy(reordered)
    first = processed(alone, seed=3)["0.weight"]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(processed(among, seed=3)["0.weight"], first)
    assert torch.equal(processed(reordered, seed=3)["0.weight"], first)


def test_equal_layers_of_other_names_get_other_noise():
    model = linear_net(tiled(32, 32), tiled(32, 32))
    on_cpu(model, beta=1e-2, orthogonal=False)
    assert not torch.equal(model[0].weight, model[1].weight)


def test_global_random_state_is_untouched():
    model, state = conv_net(), torch.get_rng_state()
    on_cpu(model)
    assert torch.equal(torch.get_rng_state(), state)


# -- where to start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "n_layers", "layer"),
    [("resnet50", 54, 37), ("resnet50.a1_in1k", 54, 37), ("convnext_base", 113, 94), ("convnext_base.x", 113, 94),
     ("resnet50", 53, 40), ("resnet50d", 56, 43), ("resnet101", 54, 41), (None, 54, 41), (None, 8, 7), ("", 1, 1)],
)  # fmt: skip
def test_auto_layer(architecture, n_layers, layer):
    assert auto_layer(architecture, n_layers) == layer


@pytest.mark.parametrize(
    ("architecture", "n_layers", "depth", "layer"),
    [("resnet50", 54, 0.25, 14), ("resnet18", 21, 0.25, 6), (None, 54, 0.0, 1), (None, 4, 0.99, 4), (None, 1, 0.5, 1)],
)
def test_auto_layer_of_a_ghn_for_which_it_was_chosen(architecture, n_layers, depth, layer):
    assert auto_layer(architecture, n_layers, depth) == layer


@pytest.mark.parametrize(("name", "n_layers"), [("resnet50", 54), ("convnext_base", 113)])
def test_timm_models_have_the_papers_number_of_layers(name, n_layers):
    assert len(list_layers(on_meta(name))) == n_layers


# -- wrong input: an error that names model, parameter and way out, and nothing written --------------------------------


def spoil(name: str):
    def value(model: nn.Module, number: float) -> None:
        model[4].weight.data[3, 1, 0, 0] = number

    def meta(model: nn.Module) -> None:
        model[4].to("meta")

    def integer(model: nn.Module) -> None:
        model[4].weight = nn.Parameter(torch.ones(32, 48, 3, 3, dtype=torch.int8), requires_grad=False)

    def lazy(model: nn.Module) -> None:
        model[4] = nn.LazyConv2d(32, 3)

    faults = {"meta": meta, "int8": integer, "lazy": lazy}
    numbers = {"nan": math.nan, "inf": -math.inf}
    return faults.get(name) or (lambda model: value(model, numbers[name]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layer": 6}, "Sequential.*1 to 5"), ({"layer": 0}, "1 to 5"), ({"layer": -1}, "1 to 5"),
     ({"layer": 2.5}, "whole number"), ({"layer": "auto"}, "whole number"),
     ({"beta": -1e-5}, "beta=-1e-05.*not negative"), ({"beta": math.nan}, "beta=nan"),
     ({"beta": math.inf}, "beta=inf")],
)  # fmt: skip
def test_wrong_arguments(arguments, message):
    model = conv_net()
    before = weights_of(model)
    arguments = {"layer": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        postprocess(model, **arguments)
    assert_same(weights_of(model), before)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "NaN or infinite.*predict"), ("inf", "NaN or infinite"), ("meta", "meta device.*to_empty"),
     ("int8", "torch.int8.*quantise"), ("lazy", "no shape yet.*forward")],
)  # fmt: skip
def test_wrong_weights(fault, message):
    model = conv_net()
    spoil(fault)(model)
    first = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=rf"Sequential: 4\.weight.*{message}"):
        postprocess(model, layer=1)
    assert torch.equal(model[0].weight, first)


@pytest.mark.parametrize("fault", ["nan", "meta"])
def test_layers_that_are_not_processed_may_hold_anything(fault):
    model = conv_net()
    spoil(fault)(model)
    on_cpu(nn.Sequential(*model[:5]))  # where it is the last layer
    with pytest.raises(ValueError):
        postprocess(model, layer=4)
    on_cpu(nn.Sequential(model[4], *conv_net()), layer=2)  # where it is below L


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="ReLU has no layer"):
        postprocess(nn.ReLU(), layer=1)


def test_nothing_between_l_and_the_classifier():
    assert on_cpu(conv_net(), layer=5) == []


# -- the bar -----------------------------------------------------------------------------------------------------------


def test_progress_bar(capsys):
    on_cpu(conv_net(), progress=True)
    assert "post-processing" in capsys.readouterr().err
    on_cpu(conv_net(), progress=None)
    on_cpu(conv_net(), progress=False)
    assert capsys.readouterr().err == ""

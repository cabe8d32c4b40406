"""Putting off random initialisation: values come from the seed, and what is overwritten is not drawn."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from timm_ghn_init.own_init.deferred import DeferredInit


def partial_views() -> list[Tensor]:
    w = torch.empty(6, 50)
    w[:3].normal_()
    w[3:].uniform_(-1, 1)
    w[0, :20].fill_(7)
    return [w]


def reads() -> list[Tensor]:
    w = torch.empty(40, 40).normal_()
    q, _ = torch.linalg.qr(w)
    return [w, q, w.sum(), w.clone(), torch.cat([w, q])]


def overwritten() -> list[Tensor]:
    a, b, c = torch.empty(100).uniform_(), torch.empty(100).uniform_(), torch.empty(100).uniform_()
    a.zero_()
    b.copy_(torch.arange(100.0))
    c[:50].zero_()
    return [a, b, c]


def writes_from_pending() -> list[Tensor]:
    a, b = torch.empty(64).normal_(), torch.zeros(64)
    b.add_(a)
    a.mul_(b)
    return [a, b]


def other_random_operators() -> list[Tensor]:
    a = torch.empty(64).normal_()
    b = torch.randn(5)
    c = torch.empty(3).normal_()  # fewer than 16 values: another algorithm
    d = torch.empty(64, dtype=torch.float64).uniform_()
    e = torch.randperm(7)
    f = torch.empty(8, 8).t()[:, ::2].uniform_()
    g = torch.empty(64).bernoulli_(0.5).exponential_()
    own = torch.empty(20).normal_(generator=torch.Generator().manual_seed(3))
    return [a, b, c, d, e, f, g, own]


def layers() -> list[Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 17, 3), nn.BatchNorm2d(17), nn.Linear(17, 5), nn.LSTM(5, 6), nn.Embedding(9, 8))
    for p in net.parameters():
        nn.init.trunc_normal_(p, std=0.02)
    nn.init.orthogonal_(net[2].weight)
    nn.init.kaiming_normal_(net[0].weight)
    twin = copy.deepcopy(net)
    nn.init.xavier_uniform_(twin[2].weight)
    return [*net.state_dict().values(), *twin.state_dict().values()]


CASES = [partial_views, reads, overwritten, writes_from_pending, other_random_operators, layers]


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_the_same_values_every_time(make: Callable[[], list[Tensor]]) -> None:
    """They come from the seed of the block, whatever the global generator, which is not advanced."""

    def made(seed: int) -> list[Tensor]:
        before = torch.get_rng_state()
        with DeferredInit(seed):
            values = make()
        assert torch.equal(torch.get_rng_state(), before)
        return values

    values = made(0)
    torch.rand(1)
    assert all(torch.equal(value, other) for value, other in zip(values, made(0), strict=True))
    assert not all(torch.equal(value, other) for value, other in zip(values, made(1), strict=True))


def test_each_operation_sees_the_ones_before() -> None:
    with DeferredInit(0):
        w, q, total, copy_, both = reads()
        a, b = writes_from_pending()
        parts = partial_views()[0]
    assert torch.equal(total, w.sum()) and torch.equal(copy_, w) and torch.equal(both, torch.cat([w, q]))
    torch.testing.assert_close(q @ q.T, torch.eye(40), atol=1e-5, rtol=0)
    assert torch.equal(a, b * b) and b.any()
    assert (parts[0, :20] == 7).all() and parts[3:].abs().max() <= 1 and parts[:3, 20:].abs().max() > 1


def test_one_draw_at_a_time_is_that_of_the_seed() -> None:
    with DeferredInit(7):
        w = nn.init.trunc_normal_(torch.empty(5, 6), std=0.02)
    torch.manual_seed(7)
    assert torch.equal(w, nn.init.trunc_normal_(torch.empty(5, 6), std=0.02))


def test_overwritten_tensors_are_not_drawn() -> None:
    torch.manual_seed(0)
    new = torch.empty(50).uniform_()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    with DeferredInit(1) as deferred:
        a, b, c = (torch.zeros(50).uniform_() for _ in range(3))
        deferred.settle([a], [c])
        assert torch.equal(a, torch.zeros(50)), "the point of it all"
        assert torch.equal(b, torch.empty(50).uniform_(generator=torch.Generator().manual_seed(1)))
        assert torch.equal(c, new), "from the global generator"
        after = torch.randn(3)  # the block is over: everything as always
    torch.set_rng_state(state)
    assert torch.equal(after, torch.randn(3))


def test_a_part_of_a_storage_does_not_drop_the_rest() -> None:
    with DeferredInit(0) as deferred:
        whole = torch.zeros(2, 50).uniform_()
        deferred.settle([whole[0]])
    assert whole.all()


def test_an_error_ends_the_block() -> None:
    with pytest.raises(KeyError), DeferredInit(0):
        torch.empty(50).uniform_()
        raise KeyError
    assert torch.zeros(50).uniform_().max() > 0

"""Putting off random initialisation changes neither the values that are kept nor the global generator."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from timm_ghn_init.own_init.deferred import DeferredInit, draws_are_known, skip


def test_this_pytorch_is_known() -> None:
    """Where it is not, models are built the slow way: say so here first."""
    assert draws_are_known()


@pytest.mark.parametrize("draws", [0, 1, 2, 37, 1 << 15, (1 << 15) + 1, 100_001])
def test_skip(draws: int) -> None:
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    torch.empty(draws).uniform_(generator=one)
    skip(other, draws)
    assert torch.equal(one.get_state(), other.get_state())


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
def test_bit_for_bit(make: Callable[[], list[Tensor]]) -> None:
    torch.manual_seed(0)
    expected, state = make(), torch.get_rng_state()
    torch.manual_seed(0)
    with DeferredInit():
        values = make()
    assert torch.equal(torch.get_rng_state(), state)
    for value, other in zip(values, expected, strict=True):
        assert torch.equal(value, other)


def test_overwritten_tensors_are_not_drawn() -> None:
    torch.manual_seed(0)
    expected = [torch.empty(50).uniform_() for _ in range(2)]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    with DeferredInit() as deferred:
        a, b = torch.zeros(50).uniform_(), torch.zeros(50).uniform_()
        deferred.settle([a])
        assert torch.equal(a, torch.zeros(50)), "the point of it all"
        assert torch.equal(b, expected[1])
        assert torch.equal(torch.get_rng_state(), state)
        after = torch.randn(3)  # the block is over: everything as always
    torch.set_rng_state(state)
    assert torch.equal(after, torch.randn(3))


def test_a_part_of_a_storage_does_not_drop_the_rest() -> None:
    torch.manual_seed(0)
    expected = torch.empty(2, 50).uniform_()
    torch.manual_seed(0)
    with DeferredInit() as deferred:
        whole = torch.empty(2, 50).uniform_()
        deferred.settle([whole[0]])
    assert torch.equal(whole, expected)


def test_an_error_ends_the_block() -> None:
    """The generator is where it would be without the block."""
    torch.manual_seed(0)
    torch.empty(50).uniform_()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    with pytest.raises(KeyError), DeferredInit():
        torch.empty(50).uniform_()
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.empty(50).uniform_().max() > 0


def test_draws_of_another_thread_do_not_repeat() -> None:
    """Many draws at once, while a model is built and what it draws is put off."""
    drawn: list[float] = []
    stop = threading.Event()

    def other() -> None:
        while not stop.is_set():
            drawn.append(torch.rand((), dtype=torch.float64).item())

    thread = threading.Thread(target=other)
    thread.start()
    for _ in range(20):
        with DeferredInit() as deferred:
            layers = [nn.Linear(100, 100) for _ in range(10)]
            deferred.settle([layer.weight for layer in layers])
    stop.set()
    thread.join()
    assert len(set(drawn)) == len(drawn) > 100

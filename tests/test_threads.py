"""Settings of threads are put back, results do not depend on them, and errors come out."""

import pytest
import torch
from torch import nn

from timm_ghn_init import GHN, init_model, trace
from timm_ghn_init.utils.threads import one_thread, one_thread_each


def test_one_thread() -> None:
    n_threads = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == n_threads


def test_one_thread_each() -> None:
    n_threads = torch.get_num_threads()
    seen = one_thread_each(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), range(4), 3)
    assert seen == [(1, False)] * 4
    assert torch.get_num_threads() == n_threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_results_do_not_depend_on_threads(n_threads: int, seeded_ghn2: GHN) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 200, 3), nn.BatchNorm2d(200), nn.Conv2d(200, 70, 1), nn.Flatten(), nn.Linear(630, 9)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        init_model(net, "ghn2-orth?layer=1", ghn=seeded_ghn2, input_size=5)
        values = [p.clone() for p in net.parameters()]
    finally:
        torch.set_num_threads(1)
    init_model(net, "ghn2-orth?layer=1", ghn=seeded_ghn2, input_size=5)
    torch.set_num_threads(before)
    assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values, strict=True))
    assert trace(net, 5).targets

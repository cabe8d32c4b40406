"""Arithmetic that does not depend on what the caller has set: the same model, the same bits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

Setting = tuple[Any, Callable[[Any], object], Any]  # a value, a function that sets it, and the one for whole float32


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Float32 throughout: no gradients, inference mode or autocast, no reduced precision, new tensors on the CPU.

    Args:
        device: where the block computes.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_whole_products())
        yield


@contextmanager
def _whole_products() -> Iterator[None]:
    """No TensorFloat-32 or bfloat16 inside of products.

    This is a setting of the process. It is left alone unless the user has asked for reduced precision; then the first
    block of all threads sets it, and the last one puts it back.
    """
    global _inside
    with _lock:
        if not _inside:
            _reduced[:] = [setting for setting in _settings() if setting[0] not in ("none", setting[2])]
            for _, change, whole in _reduced:
                change(whole)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for before, change, _ in _reduced:
                    change(before)


_lock, _inside = threading.Lock(), 0
_reduced: list[Setting] = []


def _settings() -> Iterator[Setting]:
    """Those of PyTorch that reduce the precision of products."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
        yield torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision, "highest"
        return
    for products in (backends.cuda.matmul, backends.mkldnn.matmul):
        yield products.fp32_precision, partial(setattr, products, "fp32_precision"), "ieee"

"""Arithmetic that does not depend on what the caller has set: the same model, the same bits."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


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
        stack.enter_context(_settings_of_the_process())
        yield


_lock = threading.Lock()
_inside = 0  # how many blocks there are, in all threads
_outside: ExitStack  # puts back what was set before the first of them


@contextmanager
def _settings_of_the_process() -> Iterator[None]:
    """Of several threads the first sets them, and the last puts back what that has found."""
    global _inside, _outside
    with _lock:
        if not _inside:
            with ExitStack() as stack:
                stack.enter_context(_float32_by_default())
                stack.enter_context(_whole_float32())
                _outside = stack.pop_all()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _outside.close()


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """No TensorFloat-32 or bfloat16 inside of products, whichever of PyTorch's settings asked for it."""
    b: Any = torch.backends
    settings = [b, b.mkldnn, b.cudnn, b.cuda.matmul, *(getattr(b.mkldnn, n, b) for n in ("matmul", "conv"))]
    settings = [s for s in (*settings, getattr(b.cudnn, "conv", b)) if hasattr(s, "fp32_precision")]
    if not settings:  # before PyTorch 2.9
        old = torch.get_float32_matmul_precision(), b.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        b.cudnn.allow_tf32 = False
    before = [s.fp32_precision for s in settings]
    for s in settings:
        s.fp32_precision = "ieee"
    try:
        yield
    finally:
        for s, precision in zip(settings, before, strict=True):
            s.fp32_precision = precision
        if not settings:
            torch.set_float32_matmul_precision(old[0])
            b.cudnn.allow_tf32 = old[1]

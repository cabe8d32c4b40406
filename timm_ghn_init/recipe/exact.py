"""Arithmetic that does not depend on what the caller has set: the same model, the same bits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..utils.process_settings import OfTheProcess


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


_settings_of_the_process = OfTheProcess(_float32_by_default, _whole_float32)

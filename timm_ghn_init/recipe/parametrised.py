"""Weights that a module computes from other tensors: weight norm, spectral norm and other parametrisations.

A prediction is meant for the weight that the layer computes with. It is written into what that is computed from: by
the parametrisation's own `right_inverse`, as far as it has one, and with what else has to go with the new weight, the
singular vectors of spectral norm for instance.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..utils.checks import InputError, is_finite

_Hook = WeightNorm | SpectralNorm


class Parametrised(NamedTuple):
    """A tensor that a module computes."""

    module: nn.Module
    attribute: str
    path: str  #: of the module in the model, with a dot at its end unless it is empty
    by: ParametrizationList | _Hook  #: what computes it: of the newer kind, or a hook of the older one

    @property
    def name(self) -> str:
        """The name of the tensor in the model."""
        return self.path + self.attribute

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that it is computed from, by name; the one that a prediction is for comes last."""
        if isinstance(self.by, ParametrizationList):
            own = dict(self.by.named_parameters(recurse=False))
            return {f"{self.path}parametrizations.{self.attribute}.{n}": p for n, p in own.items()}
        suffixes = ("_g", "_v") if isinstance(self.by, WeightNorm) else ("_orig",)
        found = {f"{self.name}{s}": self.module._parameters.get(f"{self.attribute}{s}") for s in suffixes}
        return {n: p for n, p in found.items() if p is not None}

    @property
    def invertible(self) -> bool:
        """Whether it can be set to any value of its shape."""
        return not isinstance(self.by, ParametrizationList) or all(hasattr(m, "right_inverse") for m in self.by)

    def inverse(self, value: Tensor) -> dict[str, Tensor]:
        """The values to write, by the names of parameters and buffers, for the tensor to become `value`."""
        if isinstance(self.by, ParametrizationList):
            return self._right_inverse(self.by, value)
        if isinstance(self.by, WeightNorm):
            return {f"{self.name}_g": torch.norm_except_dim(value, 2, self.by.dim), f"{self.name}_v": value}
        u, v = _singular_vectors(self.by.reshape_weight_to_matrix(value))
        return {f"{self.name}_orig": value, f"{self.name}_u": u, f"{self.name}_v": v}

    def _right_inverse(self, by: ParametrizationList, value: Tensor) -> dict[str, Tensor]:
        """By the parametrisation's own function, if that keeps what it promises.

        Some parametrisations hold only values of a kind, orthogonal matrices for one: they make of a prediction the
        value that they hold. That one they have to give back as it is.
        """
        modules = copy.deepcopy(list(by)), copy.deepcopy(list(by))  # some note down what they were given
        try:
            values = _inverted(modules[0], value)
            held = _computed(modules[0], values)
            again = _computed(modules[1], _inverted(modules[1], held))
            fits = held.shape == value.shape and is_finite(held) and _close(held, again)
            problem = "" if fits else "gives values from which another weight is computed"
        except Exception as error:  # whatever its code raises
            problem = f"raises {type(error).__name__}: {error}"
        if not problem and not all(map(is_finite, values)):
            problem = "gives values that are not finite"
        if problem:
            raise InputError(
                f"{self.name}: the right_inverse of its parametrisation ({', '.join(type(m).__name__ for m in by)}) "
                f"{problem}, so the weight cannot be set. Nothing was written. Correct it, or initialise the model "
                "before registering the parametrisation."
            )
        prefix = f"{self.path}parametrizations.{self.attribute}."
        written: dict[str, Tensor] = {}
        for i, (own, module) in enumerate(zip(modules[0], by, strict=True)):
            before = dict(module.named_buffers())
            changed = {n: b for n, b in own.named_buffers() if not _same(b, before.get(n))}
            written |= {f"{prefix}{i}.{n}": b for n, b in changed.items()}
        return {**dict(zip(self.parameters, values, strict=True)), **written}

    def refresh(self) -> None:
        """Have the module's own copy of the tensor, if it keeps one, follow what it is computed from."""
        if isinstance(self.by, WeightNorm):
            setattr(self.module, self.attribute, self.by.compute_weight(self.module))
        elif isinstance(self.by, SpectralNorm):
            setattr(self.module, self.attribute, self.by.compute_weight(self.module, do_power_iteration=False))


class Scaled(NamedTuple):
    """A parameter that its layer multiplies by a constant (equalised learning rate, arXiv 1710.10196, Section 4.1)."""

    name: str
    parameter: nn.Parameter
    scale: float

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {self.name: self.parameter}

    @property
    def invertible(self) -> bool:
        return True

    def inverse(self, value: Tensor) -> dict[str, Tensor]:
        """The values to write for the layer to compute with `value`."""
        return {self.name: value / self.scale}


Computed = Parametrised | Scaled


def parametrised(model: nn.Module) -> Iterator[Parametrised]:
    """All tensors of a model that are computed from others, in the order of its modules."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        lists = module._modules.get("parametrizations")
        if isinstance(lists, nn.ModuleDict):
            for attribute, by in lists.items():
                if isinstance(by, ParametrizationList):
                    yield Parametrised(module, attribute, prefix, by)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _Hook):
                yield Parametrised(module, hook.name, prefix, hook)


def with_companions(model: nn.Module, reasons: Mapping[str, str]) -> dict[str, str]:
    """Names and reasons, and the same for all that one weight is computed from, which stays together."""
    found = dict(reasons)
    for by in parametrised(model) if found else ():
        reason = next((found[n] for n in by.parameters if n in found), None)
        found |= {} if reason is None else dict.fromkeys(by.parameters, reason)
    return found


def _inverted(modules: Sequence[nn.Module], value: Tensor) -> tuple[Tensor, ...]:
    """The inputs from which parametrisations, applied one after the other, compute a value."""
    for module in reversed(modules):
        module.eval()
        value = module.right_inverse(value)  # type: ignore[operator]
        if isinstance(module, _SpectralNorm) and value.dim() > 1:
            module._u, module._v = _singular_vectors(module._reshape_weight_to_matrix(value))
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _computed(modules: Sequence[nn.Module], values: Sequence[Tensor]) -> Tensor:
    value = modules[0](*values)
    for module in modules[1:]:
        value = module(value)
    return value


def _close(a: Tensor, b: Tensor) -> bool:
    largest = float(a.abs().max()) if a.numel() else 0.0
    return a.shape == b.shape and bool(((a - b).abs() <= 1e3 * torch.finfo(a.dtype).eps * largest).all())


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The first left and the first right one."""
    u, _, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    return u[:, 0].to(matrix.dtype), v[0].to(matrix.dtype)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)

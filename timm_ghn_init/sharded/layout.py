"""The position of a rank's part of a parameter in the whole parameter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..utils.checks import InputError


class Box(NamedTuple):
    """A part of a tensor: where it begins and how far it reaches, for each dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def of(self, whole: Tensor) -> Tensor:
        """This part of a tensor, as a view."""
        for dim, (start, length) in enumerate(zip(self.offset, self.size, strict=True)):
            whole = whole.narrow(dim, min(start, whole.shape[dim]), length)  # an empty part may begin beyond the end
        return whole


@dataclass(frozen=True)
class Layout:
    """The ranks that hold a model's parameters, and what each of them holds. Ranks count from 0 within the mesh.

    Attributes:
        mesh: of all parameters.
        rank: of this process.
    """

    mesh: DeviceMesh
    rank: int

    @property
    def size(self) -> int:
        return self.mesh.size()

    def global_rank(self, rank: int) -> int:
        """The rank in the whole job."""
        return int(self.mesh.mesh.flatten()[rank])

    def box(self, parameter: Tensor, rank: int) -> Box:
        """A rank's part of a parameter."""
        assert isinstance(parameter, DTensor)
        return _box(tuple(parameter.shape), tuple(self.mesh.shape), rank, tuple(parameter.placements))

    def own_box(self, parameter: Tensor) -> Box:
        """The part that this process holds."""
        return self.box(parameter, self.rank)


@lru_cache(maxsize=1 << 14)
def _box(shape: tuple[int, ...], mesh: tuple[int, ...], rank: int, placements: tuple[Any, ...]) -> Box:
    offset, size = [0] * len(shape), list(shape)
    for placement, parts, index in zip(placements, mesh, np.unravel_index(rank, mesh), strict=True):
        if isinstance(placement, Shard):  # as `torch.chunk`; the next dimension of the mesh cuts what this one leaves
            dim = placement.dim
            part = -(-size[dim] // parts)
            start = min(int(index) * part, size[dim])
            offset[dim] += start
            size[dim] = min(part, size[dim] - start)
    return Box(tuple(offset), tuple(size))


def mesh_of(model: nn.Module) -> DeviceMesh | None:
    """The mesh of the first parameter that has one."""
    return next((p.device_mesh for p in model.parameters() if isinstance(p, DTensor)), None)


def layout_of(model: nn.Module, name: str) -> Layout:
    """The layout of a model's parameters.

    Args:
        model: one with at least one DTensor among its parameters.
        name: of the model, for messages.

    Raises:
        ValueError: some parameters are no DTensors, or on another mesh; the mesh has no place for this process, or more
            than two dimensions; a placement other than Shard and Replicate.
    """
    mesh = mesh_of(model)
    assert mesh is not None
    for parameter, p in model.named_parameters():
        problem = _problem(p, mesh)
        if problem:
            raise InputError(f"{name}: {parameter} {problem}")
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # this process is one of a `Meeting` of the mesh
    return Layout(mesh, int(np.ravel_multi_index(coordinate, tuple(mesh.shape))))


def _problem(p: nn.Parameter, mesh: DeviceMesh) -> str | None:
    if not isinstance(p, DTensor):
        return (
            "is no DTensor, while other parameters are: the model is half sharded. Shard the rest too "
            "(`fully_shard(model)` on the root does), or replicate it (`distribute_tensor(..., [Replicate()])`)."
        )
    if p.device_mesh != mesh:
        return f"is on {p.device_mesh}, other parameters on {mesh}. Put all parameters on one mesh."
    if mesh.ndim > 2:
        return f"is on a mesh of {mesh.ndim} dimensions. Meshes of one or two dimensions are supported."
    return _unsupported(p.placements)


def _unsupported(placements: Sequence[Any]) -> str | None:
    for placement in placements:
        if type(placement) not in (Shard, Replicate):  # _StridedShard was no subclass of Shard in all versions
            return (
                f"is placed as {placement}, which has no one place in the whole parameter. Initialise the model before "
                "it is sharded, or place its parameters as Shard or Replicate."
            )
    return None


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, to read and write."""
    return parameter.detach().to_local()  # type: ignore[attr-defined,no-any-return]

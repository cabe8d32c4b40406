"""The position of this process's part of a parameter in the whole parameter."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..utils.checks import InputError


class Box(NamedTuple):
    """A part of a tensor: where it begins and how far it reaches, for each dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """This part of a tensor, as a view."""
        for dim, (start, length) in enumerate(zip(self.offset, self.size, strict=True)):
            whole = whole.narrow(dim, min(start, whole.shape[dim]), length)  # an empty part may begin beyond the end
        return whole


def own_box(parameter: Tensor) -> Box:
    """The part of a parameter that this process holds."""
    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # this process is one of a `Meeting` of the mesh
    return _box(tuple(parameter.shape), tuple(mesh.shape), tuple(coordinate), tuple(parameter.placements))


@lru_cache(maxsize=1 << 14)
def _box(
    shape: tuple[int, ...], mesh: tuple[int, ...], coordinate: tuple[int, ...], placements: tuple[Any, ...]
) -> Box:
    offset, size = [0] * len(shape), list(shape)
    for placement, parts, index in zip(placements, mesh, coordinate, strict=True):
        if isinstance(placement, Shard):  # as `torch.chunk`; the next dimension of the mesh cuts what this one leaves
            dim = placement.dim
            part = math.ceil(size[dim] / parts)
            start = min(index * part, size[dim])
            offset[dim] += start
            size[dim] = min(part, size[dim] - start)
    return Box(tuple(offset), tuple(size))


def check_layout(model: nn.Module, name: str, mesh: DeviceMesh) -> None:
    """Raise a ValueError unless all parameters are on the mesh, of 1 or 2 dimensions, as `Shard` and `Replicate`."""
    for parameter, p in model.named_parameters():
        problem = _problem(p, mesh)
        if problem:
            raise InputError(f"{name}: {parameter} {problem}")


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
    for placement in p.placements:
        if type(placement) not in (Shard, Replicate):  # _StridedShard was no subclass of Shard in all versions
            return (
                f"is placed as {placement}, which has no one place in the whole parameter. Initialise the model before "
                "it is sharded, or place its parameters as Shard or Replicate."
            )
    return None


def local(tensor: Tensor) -> Tensor:
    """The part of a parameter that this process holds, to read and write; a plain tensor whole."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()  # type: ignore[attr-defined]

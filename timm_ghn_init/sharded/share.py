"""One rank's GHN for all ranks: its facts as JSON and its tensors by broadcast, nothing pickled."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..ghn import GHN, Facts
from .layout import Layout


def share_ghn(ghn: GHN | None, facts: Facts, layout: Layout, device: torch.device) -> GHN:
    """The GHN that the first rank of a mesh has, on all of its ranks, as `load_ghn` gives it. All ranks must call it.

    Args:
        ghn: on the first rank.
        facts: of the GHN, on all ranks.
        device: where it is to be.
    """
    if ghn is None:
        with torch.device("meta"):
            ghn = GHN.of(facts)
        ghn.load_state_dict(
            {name: torch.empty(t.shape, dtype=torch.float32, device=device) for name, t in ghn.state_dict().items()},
            assign=True,
        )
        ghn.eval().requires_grad_(False)
    for tensor in ghn.state_dict().values():
        _broadcast(tensor, layout)
    return ghn


def _broadcast(tensor: Tensor, layout: Layout) -> None:
    """Along one dimension of the mesh after the other, each time from those that have it."""
    mesh = layout.mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    passed = tensor.to(communication_device(mesh)).contiguous()
    for dim in range(mesh.ndim):
        if not any(coordinate[dim + 1 :]):
            group = mesh.get_group(dim)
            dist.broadcast(passed, dist.get_global_rank(group, 0), group)
    if passed is not tensor:
        tensor.copy_(passed)


def communication_device(mesh: DeviceMesh) -> torch.device:
    """The device of tensors that the mesh sends."""
    kind = mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

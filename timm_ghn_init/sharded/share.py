"""What one rank has, for all ranks: by broadcast, nothing pickled."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..ghn import GHN, Facts
from .layout import Layout
from .meeting import Meeting


def broadcast(tensors: Sequence[Tensor], owner: int, layout: Layout, meeting: Meeting, about: str) -> None:
    """Fill tensors on all ranks with the values that one rank has. All ranks must call it.

    Args:
        tensors: contiguous, on the `communication_device`.
        owner: the rank within the mesh that has the values.
        about: what is sent, in words for messages.
    """
    own, source = (np.unravel_index(rank, tuple(layout.mesh.shape)) for rank in (layout.rank, owner))
    for dim in range(layout.mesh.ndim):  # along one dimension after the other, each time from those that have it
        if own[dim + 1 :] == source[dim + 1 :]:
            group = layout.mesh.get_group(dim)
            first = dist.get_global_rank(group, int(source[dim]))
            transfers = [dist.broadcast(tensor, first, group, async_op=True) for tensor in tensors]
            for transfer in filter(None, transfers):
                meeting.wait_for(transfer, f"{about} from rank {layout.global_rank(owner)}")


def share_ghn(ghn: GHN | None, facts: Facts, layout: Layout, device: torch.device, meeting: Meeting) -> GHN:
    """The GHN that the first rank of a mesh has, and whose facts all know, on all of them. All ranks must call it."""
    shared: list[GHN] = []
    meeting("memory for the GHN", lambda: shared.append(ghn or _empty(facts, device)))
    tensors = list(shared[0].state_dict().values())
    passed = [tensor.to(communication_device(layout.mesh)).contiguous() for tensor in tensors]
    broadcast(passed, 0, layout, meeting, "the GHN")
    for tensor, values in zip(tensors, passed, strict=True):
        if values is not tensor:
            tensor.copy_(values)
    return shared[0]


def _empty(facts: Facts, device: torch.device) -> GHN:
    """A GHN whose values are still to come."""
    with torch.device("meta"):
        ghn = GHN.of(facts)
    empty = {n: torch.empty(t.shape, dtype=torch.float32, device=device) for n, t in ghn.state_dict().items()}
    ghn.load_state_dict(empty, assign=True)
    return ghn.eval().requires_grad_(False)


def communication_device(mesh: DeviceMesh) -> torch.device:
    """The device of tensors that the mesh sends."""
    kind = mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

"""A model that no rank ever holds whole, in one call."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..initialize import initialise
from ..own_init.deferred import deferred_init
from ..own_init.stand_ins import named_tensors
from ..recipe.place import Options
from ..sharded.blocks import shard_blocks
from ..sharded.meeting import Meeting
from ..sources import Source, parse_source
from ..utils.own_draws import own_draws


def create_sharded(
    model_name: str,
    source: str | Source,
    mesh: DeviceMesh,
    *,
    fully_shard_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    timeout: float | None = None,
    example_inputs: Any = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Build one of timm's architectures on the meta device, shard it with FSDP2, and initialise it. All ranks call it.

    Each of the model's `blocks_of`, and then the model, gets `fully_shard`. Buffers and what a GHN does not predict
    have the values that `timm.create_model(model_name, pretrained=source)` gives them, whatever the mesh; a classifier
    that is not predicted is drawn from the seed too. To find them takes each rank no memory to speak of; a model that
    others than timm have registered is built once on each rank's CPU for it.

    Args:
        model_name: as in `timm.create_model`.
        source: as in `init_model`; no baseline.
        mesh: of one dimension (FSDP) or of two, the first of which replicates (HSDP).
        fully_shard_kwargs: for `fully_shard`, e.g. `mp_policy` or `reshard_after_forward`.
        seed: of all that is random. Default: the source's own, else 0.
        device: where to decode and post-process. Default: that of the mesh.
        timeout: seconds to wait for another rank. Default: 1800.
        example_inputs: as in `init_model`.
        timm_kwargs: for `timm.create_model`.

    Returns:
        The model, in training mode as timm gives it. `model.ghn_report` is the `InitReport`.

    Raises:
        Exception: as `init_model`.

    Example:
        >>> mesh = init_device_mesh("cuda", (64,))
        >>> model = create_sharded("vit_giant_patch14_224", "ghn-orth", mesh)
    """
    import timm

    with Meeting(model_name, mesh) as meeting:
        source = parse_source(source)
        model = _on_meta(model_name, timm_kwargs)
        shard_blocks(model, **{**(fully_shard_kwargs or {}), "mesh": mesh})

        def constructed(names: Collection[str]) -> dict[str, Tensor]:
            create = timm.model_entrypoint(model_name) if timm.is_model(model_name) else None
            number = source.seed_or(seed)
            deferred = deferred_init(create, (), timm_kwargs, number)
            with torch.device("cpu"), deferred or own_draws(number):
                whole = timm.create_model(model_name, **timm_kwargs)
                tensors = named_tensors(whole)
                if deferred is not None:  # no more of its memory is touched than needed
                    deferred.settle([t for n, t in tensors.items() if n not in names])
            return {n: tensors[n].detach().clone() for n in names if n in tensors}

        options = Options(seed=seed, device=device, timeout=timeout, example_inputs=example_inputs)
        initialise(model, source, options, constructed=constructed, meeting=meeting)
    return model


def _on_meta(model_name: str, timm_kwargs: Mapping[str, Any]) -> nn.Module:
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(model_name, **timm_kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        raise RuntimeError(
            f"{model_name}: its constructor reads values, so it cannot be built on the meta device ({error}). "
            f"Many of timm's can from timm 1.0.21 on; this is {timm.__version__}. Or build it on the CPU, shard it and "
            "call init_model."
        ) from error

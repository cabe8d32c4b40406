"""The key of finished weights: where two keys are equal, so are the weights, but for rounding.

It covers all that a prediction and its post-processing depend on, except for where it is computed. CPU and CUDA, two
kinds of CPU and two versions of PyTorch or NumPy round differently: a plain prediction in its last bits, `-orth` in its
third digit, because the QR decomposition of a weight that is nearly of low rank magnifies that by 1 / beta. CUDA also
draws the noise from another generator. But either result is as good as the other, and who downloads weights wants them
whatever they were computed on. The cache, which is to change nothing, tells all of these apart (`arithmetic`).
"""

import hashlib
import json
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from ..ghn import GHN
from ..graph import Graph
from ..sources import Source
from ..version import __version__
from .files import digest

# Counts up with every change after which the same GHN, graph and options give other values: in embedding, decoding,
# tiling, normalising or post-processing, not in tracing, whose result is part of the key. A release is another key
# anyway; this is for what happens between two releases.
ALGORITHM = 1


def weights_key(
    model: nn.Module,
    ghn: str,
    graph: Graph,
    names: Collection[str],
    unnormed: Collection[str],
    source: Source,
    layer: int,
    seed: int,
    changed: Collection[str],
) -> str:
    """The key of what a source predicts for a model.

    Args:
        model: of its parameters, only names, shapes and dtypes count.
        ghn: `ghn_digest` of the GHN.
        graph: of the model.
        names: parameters that are predicted.
        unnormed: those of them that are scaled because no norm follows.
        source: its name does not count (`ghn` does), nor does `layer` or `seed`, nor what they are None for.
        layer: the first that is post-processed. It counts where there is post-processing.
        seed: the one that is really used, likewise.
        changed: parameters that it changes.

    Returns:
        sha256, in hex.
    """
    parameters = {name: [list(p.shape), str(p.dtype)] for name, p in model.named_parameters()}
    post = None
    if source.orth:
        post = [layer, source.beta, source.orthogonal, seed, list(changed)]
    return _sha256(
        {
            "algorithm": ALGORITHM,
            "release": __version__,
            "ghn": ghn,
            "graph": graph_digest(graph),
            "parameters": parameters,
            "predicted": list(names),
            "unnormed": list(unnormed),
            "postprocessing": post,
        }
    )


def graph_digest(graph: Graph) -> str:
    """sha256, in hex, of all that a GHN sees of a graph."""
    return _sha256([graph.dialect, graph.nodes, graph.edges.tolist(), graph.targets])


def ghn_digest(ghn: GHN, frozen: bool = False) -> str:
    """sha256, in hex, of all that a GHN is, its facts and weights, whatever file they came from.

    One that is frozen never changes, so it is not read a second time.
    """
    if frozen and ghn in _known:
        return _known[ghn]
    result = _sha256([ghn.facts.metadata(), digest(ghn.state_dict())])
    if frozen:
        _known[ghn] = result
    return result


def arithmetic(device: torch.device) -> str:
    """Facts that rounding depends on besides the key, in a few characters: the device and the versions."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type}_{_sha256([torch.__version__, np.__version__, where])[:8]}"


_known: WeakKeyDictionary[GHN, str] = WeakKeyDictionary()


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

"""Graphs, embeddings and predictions against what the reference implementations gave (tests/parity/README.md)."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Graph, trace

models = pytest.importorskip("torchvision.models")

FILES = sorted((Path(__file__).parent / "parity").glob("*/*.npz"))


def build(name: str) -> torch.nn.Module:
    """A torchvision classifier; "-nc10" at the end of a name means ten classes."""
    kwargs: dict[str, Any] = {"num_classes": 10 if name.endswith("-nc10") else 1000}
    if name.startswith(("inception", "googlenet")):
        kwargs["init_weights"] = False
    with torch.device("meta"):
        return models.get_model(name.removesuffix("-nc10"), weights=None, **kwargs)


def by_param(graph: Graph) -> dict[str, int]:
    return {node.param: i for i, node in enumerate(graph.nodes) if node.param}


def fingerprint(primitives: Any, params: Any, edges: Any) -> list[Any]:
    """The graph without the order of its nodes: each edge between nodes named by what surrounds them.

    Nodes without a parameter are told apart by the parameters next to them, over two rounds of their neighbourhood.
    """
    label = [f"{p}:{q}" for p, q in zip(primitives, params, strict=True)]
    for _ in range(2):
        around: list[list[str]] = [[] for _ in label]
        for u, v in edges:
            around[v].append("<" + label[u])
            around[u].append(">" + label[v])
        label = [f"{own}({zlib.crc32(repr(sorted(near)).encode())})" for own, near in zip(label, around, strict=True)]
    return sorted((label[u], label[v]) for u, v in edges)


@pytest.fixture(scope="module", params=FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def case(request: pytest.FixtureRequest, seeded_ghn2: GHN, seeded_ghn3: GHN) -> tuple[Any, GHN, Graph]:
    file: Path = request.param
    ghn = {"ghn2": seeded_ghn2, "ghn3": seeded_ghn3}[file.parent.name]
    size = 299 if file.stem.startswith("inception") else 224
    return np.load(file), ghn, trace(build(file.stem), size, ghn.dialect)


def test_graph(case: tuple[Any, GHN, Graph]) -> None:
    expected, _, graph = case
    ours = fingerprint([n.primitive for n in graph.nodes], [n.param for n in graph.nodes], graph.edges.tolist())
    theirs = fingerprint(expected["node_primitive"], expected["node_param"], expected["edges"].tolist())
    assert ours == theirs
    distances = graph.distances()
    assert (distances > 0).sum() == expected["n_edges_with_virtual"]
    assert distances.sum() == expected["sum_of_distances"]


def test_embeddings(case: tuple[Any, GHN, Graph]) -> None:
    expected, ghn, graph = case
    index = by_param(graph)
    rows = [(i, index[p]) for i, p in enumerate(expected["node_param"]) if p]
    theirs, ours = (list(side) for side in zip(*rows, strict=True))
    assert np.array_equal(ghn.node_features(graph)[ours].numpy(), expected["node_in"][theirs])
    assert np.abs(ghn.embed(graph)[ours].numpy() - expected["node_out"][theirs]).max() < 1e-4


def test_predictions(case: tuple[Any, GHN, Graph]) -> None:
    expected, ghn, graph = case
    auxiliary = {n for n in graph.skipped if n.lower().startswith("aux")}  # the reference deletes these heads
    assert set(graph.targets) == set(expected["predicted"])
    assert set(graph.skipped) - auxiliary == set(expected["untouched"])
    predicted = ghn.predict(graph)
    for name, norm, probes in zip(expected["predicted"], expected["norm"], expected["probes"], strict=True):
        values = predicted[name].flatten()
        where = np.random.default_rng(zlib.crc32(name.encode())).integers(0, values.numel(), 64)
        assert np.abs(values[where].numpy() - probes).max() <= 1e-4 * np.abs(probes).max(), name
        assert float(values.double().norm()) == pytest.approx(norm, rel=1e-4), name

"""Drawing: what the picture shows, that it can be read, and that nothing in a model's names breaks it."""

import builtins
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from timm_models import on_meta

from timm_ghn_init.cli import main
from timm_ghn_init.graph import PRIMITIVES, Graph, Node, trace
from timm_ghn_init.lab.draw import draw
from timm_ghn_init.lab.draw.blocks import fold, places
from timm_ghn_init.lab.draw.layout import Layout, layout
from timm_ghn_init.lab.draw.looks import GROUPS, STYLES
from timm_ghn_init.lab.pictures import TIMES

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
SVG = "{http://www.w3.org/2000/svg}"
MODELS = ("resnet18", "densenet121", "inception_v4")  # narrow, dense, branching


@pytest.fixture(scope="module", params=MODELS)
def traced(request: pytest.FixtureRequest) -> Graph:
    return trace(on_meta(request.param))


def chain(names: list[str], extra: tuple[tuple[int, int], ...] = ()) -> Graph:
    """input -> conv -> conv ..., a convolution for each name, and some more edges."""
    nodes = (Node("input", "", None), *(Node("conv", name, (8, 8, 3, 3)) for name in names))
    edges = [(i, i + 1) for i in range(len(names))]
    return Graph(nodes, np.array([*edges, *extra], dtype=np.int64).reshape(-1, 2), {}, {})


def residual(blocks: int, length: int) -> Graph:
    """A chain of blocks, with an edge around each."""
    return chain(["w"] * blocks * length, tuple((i * length, (i + 1) * length) for i in range(blocks)))


def placed(graph: Graph) -> Layout:
    where = places(graph)
    return layout(graph, where, {name: name for place in where for name in place}, 120.0)


def texts(path: Path) -> list[str]:
    return [text.text or "" for text in ElementTree.parse(path).iter(f"{SVG}text")]


def test_legend_and_heading_count(traced: Graph, tmp_path: Path) -> None:
    draw(traced, tmp_path / "g.svg", title="some_net")
    found = texts(tmp_path / "g.svg")
    assert "some_net" in found
    assert any(f"{len(traced.nodes)} nodes, {len(traced.edges)} edges" in text for text in found)
    for primitive in {n.primitive for n in traced.nodes}:
        assert f"{primitive} {sum(n.primitive == primitive for n in traced.nodes)}" in found


def test_labels_in_small_graphs(tmp_path: Path) -> None:
    for n, labelled in ((199, True), (200, False)):
        draw(chain(["w"] * n), tmp_path / "g.svg")
        assert texts(tmp_path / "g.svg").count("conv 8x8x3x3".replace("x", TIMES)) == (n if labelled else 0)


def test_nodes_are_apart_inside_and_below_their_predecessors(traced: Graph) -> None:
    shown = placed(traced)
    xy = np.array(shown.xy)
    gaps = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(xy))
    assert gaps.min() > 16
    assert (xy >= 0).all() and (xy <= (shown.left[-1], max(shown.bottom))).all()
    for u, v in traced.edges.tolist():
        assert xy[v][1] > xy[u][1] or shown.column[v] > shown.column[u]


@pytest.mark.parametrize("n", [1, 2, 10, 3000])
def test_any_length_fits_a_page(n: int) -> None:
    shown = placed(chain(["w"] * n))
    assert 0.5 < shown.left[-1] / (max(shown.bottom) + 150) < 4


@pytest.mark.parametrize("length", [3, 8, 13])
def test_columns_begin_between_residual_blocks(length: int) -> None:
    column = placed(residual(60, length)).column
    firsts = [v for v in range(1, len(column)) if column[v] != column[v - 1]]
    assert len(firsts) > 2
    assert {(v - 1) % length for v in firsts} == {0}


def test_branches_run_straight() -> None:
    """Nodes of an unbranched part share a lane, and parallel branches have their own."""
    edges = [(0, 1), (1, 7), (0, 2), (2, 3), (3, 4), (4, 7), (0, 5), (5, 6), (6, 7)]
    nodes = tuple(Node("conv", f"w{i}", (8, 8, 3, 3)) for i in range(8))
    lane = placed(Graph(nodes, np.array(edges), {}, {})).lane
    assert lane[0] == lane[2] == lane[3] == lane[4] == lane[7]  # the longest branch
    assert lane[5] == lane[6]
    assert len({lane[1], lane[2], lane[5]}) == 3


def test_a_late_source_is_next_to_its_use() -> None:
    graph = chain(["w"] * 30)
    nodes = (*graph.nodes[:20], Node("pos_enc", "pos", (1, 9, 8)), *graph.nodes[20:])
    edges = [(u + (u >= 20), v + (v >= 20)) for u, v in graph.edges.tolist()] + [(20, 25)]
    row = placed(Graph(nodes, np.array(edges), {}, {})).row
    assert row[20] == row[25] - 1


def blocks(numbers: list[int], width: int = 8) -> Graph:
    """Stages of as many residual blocks, each of two convolutions and a sum; the last block of a stage is wider."""
    nodes, edges = [Node("input", "", None)], []
    for stage, number in enumerate(numbers):
        for block in range(number):
            start, size = len(nodes) - 1, width * (1 + (block == number - 1))
            for i in (1, 2):
                nodes.append(Node("conv", f"stages.{stage}.blocks.{block}.conv{i}.weight", (size, size, 3, 3)))
            nodes.append(Node("sum", "", None))
            edges += [(start, start + 1), (start + 1, start + 2), (start + 2, start + 3), (start, start + 3)]
    return Graph(tuple(nodes), np.array(edges), {}, {})


def test_equal_blocks_are_drawn_once(tmp_path: Path) -> None:
    folded = fold(blocks([28, 1, 4]))
    assert folded.times == {"stages.0.blocks.0": 27, "stages.2.blocks.0": 3}
    assert [n.param for n in folded.graph.nodes if n.param][:4:2] == [
        "stages.0.blocks.0.conv1.weight", "stages.0.blocks.27.conv1.weight"
    ]  # fmt: skip
    assert sorted(folded.graph.edges.tolist()) == sorted(blocks([2, 1, 2]).edges.tolist())
    draw(blocks([28, 1, 4]), tmp_path / "g.svg", folded=True)
    assert {"stages.0", f"blocks.0 {TIMES} 27", "blocks.27", "stages.1", f"blocks.0 {TIMES} 3"} <= set(
        texts(tmp_path / "g.svg")
    )


def test_blocks_that_differ_or_are_looked_into_stay() -> None:
    graph = blocks([4])
    assert fold(graph).times == {"stages.0.blocks.0": 3}
    other = list(graph.nodes)
    other[5] = other[5]._replace(shape=(9, 9, 3, 3))
    assert fold(replace(graph, nodes=tuple(other))).times == {}
    jump = np.array([*graph.edges.tolist(), (3, 12)])  # from the first block to the last
    assert fold(replace(graph, edges=jump)).times == {}


@pytest.mark.parametrize(
    ("arch", "block", "times", "nodes"),
    [
        ("convnext_base", "stages.2.blocks.0", 27, 49),
        ("resnet152", "layer3.1", 35, 71),
        ("inception_v4", "features.11", 7, 117),
    ],
)
def test_large_networks_can_be_read(arch: str, block: str, times: int, nodes: int) -> None:
    folded = fold(trace(on_meta(arch)))
    assert folded.times[block] == times
    assert len(folded.graph.nodes) == nodes


def test_frames_contain_what_they_name() -> None:
    graph = blocks([3, 2])
    shown = placed(graph)
    assert sum(not frame.outer for frame in shown.frames) == 5
    for frame in shown.frames:
        x0, y0, x1, y1 = frame.x, frame.y, frame.x + frame.width, frame.y + frame.height
        inside = [n.param for n, (x, y) in zip(graph.nodes, shown.xy, strict=True) if x0 < x < x1 and y0 < y < y1]
        params = [p for p in inside if p]
        assert params and all(frame.name.removesuffix(" ...") in p for p in params)
        assert len(inside) == 3 * (len(params) // 2)  # the sums are in their blocks


def test_heading_names_dialect_and_virtual_edges(tmp_path: Path) -> None:
    draw(blocks([28]), tmp_path / "g.svg", folded=True)
    virtual = int((blocks([28]).distances() > 1).sum())
    found = texts(tmp_path / "g.svg")
    assert any("GHN-2" in t and f"{virtual} virtual edges" in t and "equal blocks are drawn once" in t for t in found)
    draw(replace(blocks([2]), dialect="ghn3"), tmp_path / "g.svg")
    assert "GHN-3" in (tmp_path / "g.svg").read_text()


def test_primitives_differ_without_colour() -> None:
    """Every primitive has a style; two with one marker differ in grey."""
    assert set(PRIMITIVES) == set(STYLES)

    def grey(colour: str) -> float:
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert {group for group, _ in STYLES.values()} == set(GROUPS)
    for (a, (group, colour)), (b, (other, its)) in combinations(STYLES.items(), 2):
        assert group != other or abs(grey(colour) - grey(its)) > 30, (a, b)


HOSTILE = [
    '</title><script>alert("1")</script>',
    "a&b",
    'x" onload="y',
    "back\\slash\\",
    "nul\0esc\x1b",
    "two\nlines",
    "\ud800",
]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    nodes = tuple(Node(name, name, (2, 2)) for name in HOSTILE[:3])
    draw(Graph(nodes, np.array([(0, 1), (1, 2)]), {}, {}), tmp_path / "g.svg", title=HOSTILE[0])
    elements = {element.tag.rpartition("}")[2] for element in ElementTree.parse(tmp_path / "g.svg").iter()}
    assert "script" not in elements and "text" in elements
    assert HOSTILE[0] in texts(tmp_path / "g.svg")
    draw(chain(HOSTILE), tmp_path / "g.png", title="no formula: $\\frac{$")
    assert (tmp_path / "g.png").stat().st_size > 1000


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match=re.escape("[plot]")):
        draw(chain(["w"]), tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []
    assert chain(["w"])._repr_svg_() is None


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_same_graph_same_bytes(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(residual(5, 6), tmp_path / f"{name}.{suffix}", title="t")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_command_folds_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(arch: str, *options: str) -> list[str]:
        assert main(["graph", arch, "-o", str(tmp_path / "g.svg"), *options]) == 0
        return texts(tmp_path / "g.svg")

    large = drawn("convnext_base", "--no-labels")
    assert f"blocks.0 {TIMES} 27" in large
    assert "glob_avg" not in large
    assert {"layer1.1", "glob_avg"} <= set(drawn("resnet18"))
    assert f"layer1.0 {TIMES} 2" in drawn("resnet18", "--fold")


@pytest.mark.parametrize("name", ["g.eps", "g", ".svg", "g.svg.gz"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.pdf") as error:
        draw(chain(["w"]), tmp_path / name)
    assert name in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_made(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "g.svg"
    with pytest.raises(FileNotFoundError, match=re.escape(str(target)) + "'$"):
        draw(chain(["w"]), target)
    assert not target.parent.exists()


def test_a_long_title_is_cut(tmp_path: Path) -> None:
    draw(chain(["w"]), tmp_path / "g.SVG", title="t" * 500)
    assert max(len(text) for text in texts(tmp_path / "g.SVG")) < 200

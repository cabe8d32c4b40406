"""Drawing: what the picture says, that it can be read, and that nothing in a model's names breaks it."""

import builtins
import math
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from timm_models import on_meta

from timm_ghn_init.cli import main
from timm_ghn_init.graph import PRIMITIVES, Graph, Node, trace
from timm_ghn_init.lab.draw import GROUPS, RADIUS, STYLES, TIMES, draw, layout
from timm_ghn_init.lab.draw.blocks import fold
from timm_ghn_init.lab.draw.words import LABEL_SIZE, NAME_SIZE

SVG = "{http://www.w3.org/2000/svg}"
# narrow, dense, branching and long
MODELS = ("resnet18", "densenet121", "inception_v4", "convnext_base")


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


def test_every_node_and_edge_is_drawn_with_its_tooltip(traced: Graph, tmp_path: Path) -> None:
    draw(traced, tmp_path / "g.svg", title="some_net")
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    tooltips = [t.text for t in root.iter(f"{SVG}title")]
    assert len(tooltips) == len(traced.nodes)
    for node, tooltip in zip(traced.nodes, tooltips, strict=True):
        assert tooltip is not None
        assert tooltip.split("\n")[0] == node.primitive
        assert not node.param or node.param in tooltip.split("\n")
    edges = [path for group in root.iter(f"{SVG}g") if group.get("fill") == "none" for path in group]
    assert len(edges) == len(traced.edges)


def test_legend_and_heading_count(traced: Graph, tmp_path: Path) -> None:
    draw(traced, tmp_path / "g.svg", title="some_net")
    texts = [t.text for t in ElementTree.parse(tmp_path / "g.svg").iter(f"{SVG}text")]
    assert "some_net" in texts
    assert any(f"{len(traced.nodes)} nodes, {len(traced.edges)} edges" in t for t in texts if t)
    for primitive in {n.primitive for n in traced.nodes}:
        assert f"{primitive} {sum(n.primitive == primitive for n in traced.nodes)}" in texts


def test_labels_only_where_there_is_room(tmp_path: Path) -> None:
    for n, labelled in ((199, True), (200, False)):
        draw(chain(["w"] * n), tmp_path / "g.svg")
        texts = [t.text for t in ElementTree.parse(tmp_path / "g.svg").iter(f"{SVG}text")]
        assert texts.count("conv 8x8x3x3".replace("x", TIMES)) == (n if labelled else 0)


@pytest.mark.parametrize("folded", [False, True])
def test_labels_touch_no_node(traced: Graph, folded: bool) -> None:
    """Of nodes and of frames, as wide as they are with any font that is usual."""
    scene = layout(traced, "some_net", labels=True, folded=folded)
    assert sum(t.size == LABEL_SIZE for t in scene.texts) == len(scene.graph.nodes)
    xy = np.array(scene.xy)
    for text in (t for t in scene.texts if t.size in (LABEL_SIZE, NAME_SIZE)):
        right, top = text.x + 0.61 * text.size * len(text.text), text.y - 0.8 * text.size
        x, y = xy.clip((text.x, top), (right, text.y)).T - xy.T  # to the nearest point of the label
        assert np.hypot(x, y).min() >= RADIUS * 0.9, text.text


def test_every_edge_ends_in_an_arrow_at_its_node(traced: Graph) -> None:
    scene = layout(traced, "some_net")
    for (_, v), curve in zip(traced.edges.tolist(), scene.curves, strict=True):
        assert len(curve.head) == 3
        assert math.dist(curve.head[0], scene.xy[v]) == pytest.approx(1.15 * RADIUS)


def test_columns_run_down(traced: Graph) -> None:
    xy = layout(traced, "some_net").xy
    columns: dict[float, list[float]] = {}
    for u, v in traced.edges.tolist():
        (x, y), (x2, y2) = xy[u], xy[v]
        assert y2 > y or x2 > x
        columns.setdefault(x, []).append(y)
    assert len({min(ys) for ys in columns.values() if len(ys) > 5}) <= 3  # they begin at one height


def test_nodes_are_apart_and_inside(traced: Graph) -> None:
    scene = layout(traced, "some_net")
    xy = np.array(scene.xy)
    gaps = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(xy))
    assert gaps.min() > 3 * RADIUS
    for points in (scene.xy, *(c.points for c in scene.curves), [t[:2] for t in scene.texts]):
        for x, y in points:
            assert 0 <= x <= scene.width
            assert 0 <= y <= scene.height
    assert 0.6 < scene.width / scene.height < 2.6


@pytest.mark.parametrize("n", [1, 2, 10, 3000])
def test_any_length_is_folded_into_a_page(n: int) -> None:
    scene = layout(chain(["w"] * n), "chain")
    assert 0.8 < scene.width / scene.height < 4
    assert scene.width < 5000


def test_labels_do_not_touch_the_next_lane() -> None:
    """Two long labels side by side: the first must end before the second's marker."""
    nodes = [Node("input", "", None)] + [Node("sep_conv", "w", (1024, 1024, 31, 31))] * 2 + [Node("sum", "", None)]
    scene = layout(Graph(tuple(nodes), np.array([(0, 1), (0, 2), (1, 3), (2, 3)]), {}, {}), "")
    (x1, y1), (x2, y2) = scene.xy[1], scene.xy[2]
    assert y1 == y2
    label = next(t for t in scene.texts if t.text.startswith("sep_conv") and t.x > x1)
    assert label.x + len(label.text) * label.size * 0.6 < x2 - RADIUS


@pytest.mark.parametrize("length", [3, 8, 13])
def test_columns_begin_between_residual_blocks(length: int) -> None:
    """A new column starts right after a block's end, so that no block is torn apart."""
    graph = residual(60, length)
    xy = layout(graph, "").xy
    first_of_column = [v for v in range(1, len(xy)) if xy[v][0] != xy[v - 1][0]]
    assert len(first_of_column) > 2
    assert {(v - 1) % length for v in first_of_column} == {0}


def test_skipping_edges_leave_the_chain() -> None:
    """An edge around a block must not be hidden behind the nodes that it passes."""
    scene = layout(residual(4, 5), "")
    for curve in scene.curves:
        x = [x for x, _ in curve.points]
        if curve.skip:
            assert max(x) - min(x) > 2 * RADIUS
        elif x[0] == x[-1]:
            assert max(x) == min(x)


def test_branches_run_straight() -> None:
    """Nodes of an unbranched part share a lane, and side branches have their own."""
    edges = [(0, 1), (1, 7), (0, 2), (2, 3), (3, 4), (4, 7), (0, 5), (5, 6), (6, 7)]
    nodes = tuple(Node("conv", f"w{i}", (8, 8, 3, 3)) for i in range(8))
    x = [x for x, _ in layout(Graph(nodes, np.array(edges), {}, {}), "").xy]
    assert x[0] == x[2] == x[3] == x[4] == x[7]  # the longest branch
    assert x[5] == x[6]
    assert len({x[1], x[2], x[5]}) == 3


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


def test_equal_blocks_are_drawn_once() -> None:
    folded = fold(blocks([28, 1, 4]))
    assert folded.times == {"stages.0.blocks.0": 27, "stages.2.blocks.0": 3}
    assert [n.param for n in folded.graph.nodes if n.param][:4:2] == [
        "stages.0.blocks.0.conv1.weight", "stages.0.blocks.27.conv1.weight"
    ]  # fmt: skip
    assert sorted(folded.graph.edges.tolist()) == sorted(blocks([2, 1, 2]).edges.tolist())
    scene = layout(blocks([28, 1, 4]), "net", folded=True)
    names = [t.text for t in scene.texts if t.size == NAME_SIZE]
    assert f"blocks.0 {TIMES} 27" in names
    assert {"stages.0", "blocks.27", "stages.1", f"blocks.0 {TIMES} 3"} <= set(names)
    assert "stages.0.blocks.0 and 26 more alike" in scene.note


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


def test_frames_are_around_what_they_name() -> None:
    graph = blocks([3, 2])
    scene = layout(graph, "net")
    assert sum(not f.outer for f in scene.frames) == 5
    assert sum(f.outer for f in scene.frames) >= 2  # a stage has one in each column
    for frame in scene.frames:
        x0, y0, x1, y1 = frame.x, frame.y, frame.x + frame.width, frame.y + frame.height
        (name,) = (
            t.text.removesuffix(" ...")
            for t in scene.texts
            if t.size == NAME_SIZE and x0 < t.x < x0 + 9 and y0 < t.y < y0 + 13
        )
        inside = [n.param for n, (x, y) in zip(graph.nodes, scene.xy, strict=True) if x0 < x < x1 and y0 < y < y1]
        params = [p for p in inside if p]
        assert params
        assert all(name in p for p in params)
        assert len(inside) == 3 * (len(params) // 2)  # the sums lie in their blocks


def test_what_is_drawn_is_said(tmp_path: Path) -> None:
    draw(blocks([28]), tmp_path / "g.svg", folded=True)
    texts = [t.text or "" for t in ElementTree.parse(tmp_path / "g.svg").iter(f"{SVG}text")]
    virtual = int((blocks([28]).distances() > 1).sum())
    assert any("GHN-2" in t and f"{virtual} virtual edges" in t and "equal blocks are drawn once" in t for t in texts)
    assert {"edge to the next row", "edge that skips rows"} <= set(texts)
    draw(replace(blocks([2]), dialect="ghn3"), tmp_path / "g.svg")
    assert "GHN-3" in (tmp_path / "g.svg").read_text()


def test_a_late_source_is_drawn_where_it_is_used() -> None:
    """A position embedding of the last stage does not stand beside the input."""
    graph = chain(["w"] * 30)
    nodes = (*graph.nodes[:20], Node("pos_enc", "pos", (1, 9, 8)), *graph.nodes[20:])
    edges = [(u + (u >= 20), v + (v >= 20)) for u, v in graph.edges.tolist()] + [(20, 25)]
    xy = layout(Graph(nodes, np.array(edges), {}, {}), "").xy
    assert math.dist(xy[20], xy[25]) < math.dist(xy[20], xy[0])


def test_primitives_are_told_apart_without_colour() -> None:
    """Every primitive has a style; two of one marker differ in grey, so for any kind of colour vision."""
    assert set(PRIMITIVES) == set(STYLES)

    def grey(colour: str) -> float:
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert {group for group, _ in STYLES.values()} == set(GROUPS)
    for (a, (group, colour)), (b, (other, its)) in combinations(STYLES.items(), 2):
        assert group != other or abs(grey(colour) - grey(its)) > 30, (a, b)


def test_unknown_primitives_are_drawn(tmp_path: Path) -> None:
    graph = Graph((Node("input", "", None), Node("mamba<3", "w", (2, 2))), np.array([(0, 1)]), {}, {})
    for suffix in ("svg", "dot"):
        draw(graph, tmp_path / f"g.{suffix}")
        assert "mamba" in (tmp_path / f"g.{suffix}").read_text()


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
    draw(chain(HOSTILE), tmp_path / "g.svg", title=HOSTILE[0])
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {"svg", "rect", "g", "path", "circle", "text", "title"}
    tooltips = [t.text or "" for t in root.iter(f"{SVG}title")]
    for name, tooltip in zip(HOSTILE[:4], tooltips[1:], strict=False):
        assert name in tooltip.split("\n")
    assert HOSTILE[0] in [t.text for t in root.iter(f"{SVG}text")]


def test_dot_has_every_node_and_edge(tmp_path: Path) -> None:
    graph = chain(HOSTILE, ((0, 3),))
    draw(graph, tmp_path / "g.dot", title=HOSTILE[2])
    text = (tmp_path / "g.dot").read_text()
    assert len(re.findall(r"^  n\d+ \[", text, re.MULTILINE)) == len(graph.nodes)
    assert {(int(u), int(v)) for u, v in re.findall(r"^  n(\d+) -> n(\d+) ", text, re.MULTILINE)} == {
        tuple(e) for e in graph.edges.tolist()
    }
    tooltips = re.findall(r'tooltip="((?:[^"\\]|\\.)*)"', text)
    for name, tooltip in zip(HOSTILE[:4], tooltips[1:], strict=False):
        assert re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], tooltip).split("\n")[1] == name
    for line in text.splitlines():  # no quote is left open
        assert '"' not in re.sub(r'"(?:[^"\\]|\\.)*"', "", line)


@pytest.mark.skipif(shutil.which("neato") is None, reason="Graphviz is not installed")
def test_graphviz_reads_the_dot(tmp_path: Path) -> None:
    draw(chain(HOSTILE, ((0, 3),)), tmp_path / "g.dot", title=HOSTILE[2])
    out = subprocess.run(["neato", "-n2", "-Tplain", tmp_path / "g.dot"], capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr) == (0, "")
    assert len(re.findall("^node", out.stdout, re.MULTILINE)) == len(HOSTILE) + 1


def test_png(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    graph = chain(["w"] * 40, ((0, 20),))
    title = "no formula: $\\frac{$"
    draw(graph, tmp_path / "g.png", title=title)
    pixels = image.imread(tmp_path / "g.png")[..., :3]
    scene = layout(graph, title)
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(scene.width / scene.height, rel=0.01)
    scale = pixels.shape[1] / scene.width
    for node, (x, y) in zip(graph.nodes, scene.xy, strict=True):  # each marker is where the layout says
        colour = STYLES[node.primitive][1]
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert pixels[int(y * scale), int(x * scale)] == pytest.approx(wanted, abs=0.02)
    assert (pixels[0, 0] == 1).all()  # the background is white, not transparent


def test_png_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match=re.escape('pip install "timm-ghn-init[plot]"')):
        draw(chain(["w"]), tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.pdf", "b.pdf"):
        draw(blocks([3]), tmp_path / name, title="$\\frac{$")
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content == (tmp_path / "b.pdf").read_bytes()


def test_command_folds_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(arch: str, *options: str) -> list[str]:
        assert main(["graph", arch, "-o", str(tmp_path / "g.svg"), *options]) == 0
        return [t.text or "" for t in ElementTree.parse(tmp_path / "g.svg").iter(f"{SVG}text")]

    large = drawn("convnext_base", "--no-labels")
    assert f"blocks.0 {TIMES} 27" in large
    assert "glob_avg" not in large
    assert "layer1.1" in (small := drawn("resnet18"))
    assert "glob_avg" in small
    assert f"layer1.0 {TIMES} 2" in drawn("resnet18", "--fold")


@pytest.mark.parametrize("name", ["g.eps", "g", "svg", ".svg", "g.svg.gz"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png, \.pdf or \.dot") as error:
        draw(chain(["w"]), tmp_path / name)
    assert name in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_suffix_may_be_upper_case(tmp_path: Path) -> None:
    draw(chain(["w"]), tmp_path / "g.SVG")
    assert ElementTree.parse(tmp_path / "g.SVG").getroot().tag == f"{SVG}svg"


def test_no_folder_is_made(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "g.svg"
    with pytest.raises(FileNotFoundError, match=re.escape(str(target)) + "'$"):
        draw(chain(["w"]), target)
    assert not target.parent.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "g.svg"
    target.write_text("old")

    def full(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*g\.svg'$"):
        draw(chain(["w"]), target)
    assert [p.name for p in tmp_path.iterdir()] == ["g.svg"]
    assert target.read_text() == "old"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "g.svg").mkdir()
    with pytest.raises(OSError, match=r"g\.svg'$"):
        draw(chain(["w"]), tmp_path / "g.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["g.svg"]


def test_a_long_title_is_cut(tmp_path: Path) -> None:
    scene = layout(chain(["w"]), "t" * 500)
    (heading,) = (text for text in scene.texts if text.bold)
    assert max(len(t.text) for t in scene.texts) * heading.size * 0.5 < scene.width


def test_same_graph_same_bytes(tmp_path: Path) -> None:
    graph = residual(5, 6)
    for name in ("a.svg", "b.svg"):
        draw(graph, tmp_path / name, title="t")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

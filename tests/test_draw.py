"""Drawing: what the picture says, that it can be read, and that nothing in a model's names breaks it."""

import builtins
import math
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from timm_models import on_meta

from timm_ghn_init.draw import GROUPS, RADIUS, STYLES, TIMES, draw, layout
from timm_ghn_init.graph import PRIMITIVES, Graph, Node, trace

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


@pytest.mark.parametrize("name", ["g.pdf", "g", "svg", ".svg", "g.svg.gz"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.dot") as error:
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
    heading = scene.texts[-4]
    assert max(len(t.text) for t in scene.texts) * heading.size * 0.5 < scene.width


def test_same_graph_same_bytes(tmp_path: Path) -> None:
    graph = residual(5, 6)
    for name in ("a.svg", "b.svg"):
        draw(graph, tmp_path / name, title="t")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

"""Draw the pictures of the documentation anew, with the GHN that ships.

    python benchmarks/pictures.py            all of them
    python benchmarks/pictures.py resnet18   one

benchmarks/results/transfer.svg and shipped-ghn.svg come with their numbers from transfer.py and ship.py.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import timm
import torch
from matplotlib.axes import Axes

from timm_ghn_init import Graph, init_model, trace
from timm_ghn_init.cli import main as command
from timm_ghn_init.lab.draw.looks import GROUPS, OUTLINE, STYLES
from timm_ghn_init.sources import SHIPPED

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def overview() -> None:
    """The graph of a network, a weight that a GHN predicts for it, and the same weight after post-processing."""
    from matplotlib.figure import Figure

    name, part = "layer4.1.conv2.weight", 128
    figure = Figure(figsize=(7.2, 3.0), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 3)
    panels[0].set_title("graph of\nthe network", fontsize=15)
    _chain(panels[0], trace(timm.create_model("resnet18")))
    for axes, source, title in (
        (panels[1], SHIPPED, "predicted\nweights"),
        (panels[2], f"{SHIPPED}-orth", "after -orth,\northogonal"),
    ):
        model = timm.create_model("resnet18")
        init_model(model, source)
        weight = model.get_parameter(name).detach()[:part, :part, 1, 1]
        limit = 2.5 * float(weight.std())
        axes.imshow(weight, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", rasterized=True)
        axes.set_title(title, fontsize=15)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
    figure.get_layout_engine().set(wspace=0.2)
    for axes in panels[:2]:
        arrow = {"arrowstyle": "->", "lw": 2.5, "mutation_scale": 20}
        axes.annotate("", (1.25, 0.5), (1.01, 0.5), xycoords="axes fraction", arrowprops=arrow, annotation_clip=False)
    matplotlib.rcParams["svg.hashsalt"] = "overview"
    figure.savefig(PICTURES / "overview.svg", metadata={"Date": None}, dpi=200)


def _chain(axes: Axes, graph: Graph, rows: int = 14) -> None:
    """The nodes in columns, down and up in their order, with lines for the edges."""
    place = [(i // rows, (i % rows if i // rows % 2 else rows - 1 - i % rows)) for i in range(len(graph.nodes))]
    for u, v in graph.edges.tolist():
        bend = 0.0 if v - u == 1 else 0.35
        arrow = {"arrowstyle": "-", "color": "0.6", "lw": 1, "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", place[v], place[u], arrowprops=arrow)
    for (x, y), node in zip(place, graph.nodes, strict=True):
        group, colour = STYLES[node.primitive]
        axes.plot(x, y, GROUPS[group], color=colour, markeredgecolor=OUTLINE, markeredgewidth=0.4, markersize=6)
    axes.set(xlim=(-0.6, place[-1][0] + 0.6), ylim=(-0.8, rows - 0.2))


def resnet18() -> None:
    command(["graph", "resnet18", "-o", str(PICTURES / "resnet18.svg")])


def convnext_base() -> None:
    command(["graph", "convnext_base", "-o", str(PICTURES / "convnext_base.svg")])


def signal() -> None:
    sources = ["rand", "orth", SHIPPED, f"{SHIPPED}-orth"]
    where = ["-b", "4", "--img-size", "128", "-o", str(PICTURES / "signal.svg")]
    command(["analyze", "signal", "resnet50", "--source", *sources, *where])


def correlations() -> None:
    sources = ["rand", "orth", SHIPPED, f"{SHIPPED}-orth"]
    command(["analyze", "correlations", "resnet50", "--source", *sources, "-o", str(PICTURES / "correlations.svg")])


def embedding() -> None:
    command(["analyze", "embed", "resnet50", "convnext_base", "vit_base_patch16_224", "--source", SHIPPED,
             "-o", str(PICTURES / "embedding.svg")])  # fmt: skip


def tiling() -> None:
    """Part of one weight, predicted and post-processed: 64 rows and columns repeat, then no more."""
    from matplotlib.figure import Figure

    name, part = "stages.3.blocks.1.mlp.fc1.weight", 192
    figure = Figure(figsize=(8.4, 3.7), layout="constrained", facecolor="white")
    titles = {"": "predicted: 64 \N{MULTIPLICATION SIGN} 64 values, repeated", "-orth": "post-processed"}
    for axes, (orth, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        model = timm.create_model("convnext_atto")
        init_model(model, f"{SHIPPED}{orth}")
        weight = model.get_parameter(name).detach().flatten(1)[:part, :part]
        limit = 2.5 * float(weight.std())
        shown = axes.imshow(weight, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="input channel", ylabel="output channel")
        axes.set(xticks=range(0, part + 1, 64), yticks=range(0, part + 1, 64))
        figure.colorbar(shown, ax=axes, shrink=0.8, label="weight")
    figure.suptitle(f"convnext_atto, {name}: {part} of {len(model.get_parameter(name))} output channels", fontsize=10)
    figure.savefig(PICTURES / "tiling.png", dpi=150, metadata={"Software": None})


DRAWN: dict[str, Callable[[], None]] = {
    drawing.__name__: drawing
    for drawing in (overview, resnet18, convnext_base, signal, correlations, embedding, tiling)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(DRAWN)} (default: all)")
    PICTURES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    for name in parser.parse_args().names or DRAWN:
        DRAWN[name]()


if __name__ == "__main__":
    main()

"""Draw the pictures of the documentation anew, with the GHN that ships.

    python benchmarks/pictures.py            all of them
    python benchmarks/pictures.py resnet18   one

benchmarks/results/transfer.svg and shipped-ghn.svg come with their numbers from transfer.py and ship.py.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from timm_ghn_init import init_model
from timm_ghn_init.cli import main as command
from timm_ghn_init.sources import SHIPPED

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def overview() -> None:
    """The graph of a network beside how alike its channels are: what goes in, and what comes out."""
    graph = PICTURES / "convnext_base.svg"
    command(["graph", "convnext_base", "-o", str(graph)])
    plot = PICTURES / "overview-right.svg"
    sources = ["rand", "orth", SHIPPED, f"{SHIPPED}-orth"]
    command(["analyze", "correlations", "convnext_base", "--source", *sources, "--layers", "60,110", "-o", str(plot)])
    parts = [path.read_text(encoding="utf-8") for path in (graph, plot)]
    parts = [part[part.index("<svg") :] for part in parts]
    (w1, h1), (w2, h2) = ((float(n) for n in re.findall(r'viewBox="0 0 (\S+) (\S+)"', part)[0]) for part in parts)
    w2 *= h1 / h2
    left, right = (re.sub(r' width="[^"]*" height="[^"]*"', "", part, count=1) for part in parts)
    left = left.replace("<svg", f'<svg width="{w1:g}" height="{h1:g}"', 1)
    right = right.replace("<svg", f'<svg x="{w1:g}" width="{w2:g}" height="{h1:g}"', 1)
    size = f'width="{w1 + w2:g}" height="{h1:g}"'
    (PICTURES / "overview.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {w1 + w2:g} {h1:g}">'
        f'<rect {size} fill="white"/>{left}{right}</svg>\n',
        encoding="utf-8",
    )
    plot.unlink()


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

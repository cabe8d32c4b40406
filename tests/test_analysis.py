"""Correlations, embeddings, values: the numbers behind the paper's Figures 2 and 5, and the commands that draw them."""

import doctest
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_ghn_init.cli import main
from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import trace
from timm_ghn_init.lab.analysis import (
    channel_correlations,
    check_correlations,
    compare,
    correlations,
    difference,
    embed_graph,
    embeddings,
    place,
    project,
    read_values,
    sampled_reference,
    timm_architecture,
    timm_reference,
)
from timm_ghn_init.lab.analysis.embeddings import Architecture
from timm_ghn_init.lab.analysis.figures import DASHES, PALETTE, correlation_figure, embedding_figure, lines
from timm_ghn_init.lab.finetune import protocol
from timm_ghn_init.lab.pictures import style


def create(pretrained: bool) -> nn.Module:
    return timm.create_model("test_resnet", pretrained=pretrained)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return run


# -- correlations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3, 5, 5), (40, 4), (33, 1, 3, 3)])
def test_correlations_are_those_of_numpy(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlations, "_BLOCK", 8)  # several blocks
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[3] = 2 * weight[0] + 1  # a copy, but for scale and offset
    found = channel_correlations(weight)
    assert found is not None
    pairs = np.corrcoef(weight.reshape(len(weight), -1).numpy())[np.triu_indices(len(weight), 1)]
    assert found.mean == pytest.approx(pairs.mean(), abs=1e-6)
    assert found.std == pytest.approx(pairs.std(), abs=1e-6)
    assert sum(found.histogram) == len(pairs)
    edges = np.linspace(-1, 1, len(found.histogram) + 1)
    assert np.abs(np.array(found.histogram) - np.histogram(pairs.clip(-1, 1), edges)[0]).sum() <= 2  # on an edge
    assert found.histogram[-1] >= 1  # the copy


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_does_not_matter(scale: float) -> None:
    weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    ours, scaled = channel_correlations(weight), channel_correlations(weight * scale)
    assert ours is not None and scaled is not None
    assert scaled.std == pytest.approx(ours.std, rel=1e-5)


def test_a_constant_channel_correlates_with_nothing() -> None:
    weight = torch.tensor([[1.0, 2, 3], [0.1, 0.1, 0.1], [3, 2, 1]])
    found = channel_correlations(weight)
    assert found is not None
    assert (found.mean, found.histogram[0], sum(found.histogram)) == (pytest.approx(-1 / 3), 1, 3)


@pytest.mark.parametrize("shape", [(1, 9), (8, 2), (8, 1, 1, 1)])
def test_nothing_to_correlate(shape: tuple[int, ...]) -> None:
    assert channel_correlations(torch.ones(shape)) is None


def test_compare_tells_initialisations_apart(ghn_file: Path) -> None:
    state = torch.random.get_rng_state()
    inits = ["rand", "orth", f"file:{ghn_file}", f"file:{ghn_file}-orth?layer=1", "timm"]
    data = compare(create, inits, name="test_resnet", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    check_correlations(json.loads(json.dumps(data, allow_nan=False)))
    assert [row["init"] for row in data["inits"]] == inits
    shapes = {layer["name"]: layer["shape"] for layer in data["layers"]}
    assert shapes == {n: list(p.shape) for n, p in create(False).named_parameters() if p.dim() > 1}
    mean = {row["init"]: np.mean([std for std in row["std"][:-1] if std is not None]) for row in data["inits"]}
    rand, orth, ghn, ghn_orth, _ = mean.values()
    assert orth < 0.7 * rand
    assert ghn_orth < 0.7 * ghn
    assert rand < ghn  # what the paper's Figure 2 is about: copies of one block
    assert data["inits"] == compare(create, inits, name="test_resnet", seed=1)["inits"]


def test_layers_are_chosen_and_checked() -> None:
    selected = compare(create, ["rand"])["selected"]
    n = len(compare(create, ["rand"])["layers"])
    assert (selected[0], selected[-1], len(selected)) == (1, n - 1, 4)
    assert compare(create, ["rand"], layers=[2])["selected"] == [2]
    with pytest.raises(ValueError, match=f"no layer {n + 1}: .* from 1 to {n}"):
        compare(create, ["rand"], name="test_resnet", layers=[n + 1])


def test_weights_that_cannot_be_had_are_named() -> None:
    def offline(pretrained: bool) -> nn.Module:
        if pretrained:
            raise OSError("no such\nhost")
        return create(False)

    with pytest.raises(
        ValueError, match=r"pretrained: timm's weights are not available \(no such host\).*Leave.*HF_HOME"
    ):
        compare(offline, ["rand", "pretrained"])
    for wrong in ("he", "orth-orth", "ghn2?layr=1"):
        with pytest.raises(ValueError, match=wrong.split("?")[0]):
            compare(lambda pretrained: pytest.fail("work has begun"), ["rand", wrong])


def corrupted(data: dict[str, Any]) -> list[Any]:
    """What is nearly, but not, a file of correlations."""
    row = data["inits"][0]
    return [
        [],
        {},
        {**data, "kind": "run"},
        {**data, "bins": -1},
        {**data, "arch": None},
        {**data, "layers": [{}]},
        {**data, "layers": data["layers"][1:]},
        {**data, "selected": [len(data["layers"]) + 1]},
        {**data, "selected": ["1"]},
        {**data, "inits": []},
        {**data, "inits": [{**row, "std": row["std"][1:]}]},
        {**data, "inits": [{**row, "std": ["x"] * len(row["std"])}]},
        {**data, "inits": [{**row, "std": [1e308] * len(row["std"])}]},
        {**data, "inits": [{**row, "histogram": [[1]] * len(row["std"])}]},
    ]


@pytest.mark.parametrize("module", [correlations, difference, embeddings, protocol])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_seeds_are_any_integers() -> None:
    data = compare(create, ["orth"], seed=np.int64(3), progress=False)  # type: ignore[arg-type]
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(compare(create, ["orth"], seed=3, progress=False)))
    assert [a.name for a in timm_reference(2, seed=np.int64(3))] == [a.name for a in timm_reference(2, seed=3)]


def test_wrong_numbers_are_refused() -> None:
    data = compare(create, ["rand"])
    for wrong in corrupted(data):
        with pytest.raises(ValueError, match="its "):
            check_correlations(wrong)


def test_command_correlations(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = "analyze correlations test_resnet --source rand orth --layers 2,3 -o"
    status, out, _ = run(*command.split(), tmp_path / "c.svg")
    assert status == 0
    assert "layer 3" in out
    texts = {t.text for t in ElementTree.parse(tmp_path / "c.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"rand", "orth", "correlation", "std of correlations"} <= texts
    data = json.loads((tmp_path / "c.json").read_text())
    check_correlations(data)
    assert data["selected"] == [2, 3]
    assert data["versions"]["timm"] == timm.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "rand", "he"], "Unknown initialisation 'he'"),
        (["--source", "rand", "pretrained"], "pretrained: timm's weights are not available"),
        (["--source", "rand", "--layers", "1,x"], "--layers: '1,x' is not a list of whole numbers"),
        (["--source", "rand", "--layers", "999"], "no layer 999"),
        (["--source", "rand", "-o", "missing/c.json"], "no folder missing"),
    ],
)
def test_mistakes(
    options: list[str],
    message: str,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = "mobilenet_edgetpu_100"  # timm has no weights of it
    status, _, err = run("analyze", "correlations", arch, "-q", "-o", "c.json", *options)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- embeddings --------------------------------------------------------------------------------------------------------


def test_embedding_is_the_mean_over_nodes(seeded_ghn2: GHN) -> None:
    with torch.device("meta"):
        graph = trace(timm.create_model("test_resnet"))
    z = embed_graph(seeded_ghn2, graph)
    assert z == pytest.approx(seeded_ghn2.embed(graph).numpy().mean(axis=0), abs=1e-6)


def test_projection_is_pca() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(30, 2)) * (5, 1)
    turned = flat @ np.linalg.qr(rng.normal(size=(6, 6)))[0][:2] + 7  # a plane in six dimensions
    xy, share = project(turned)
    assert sum(share) == pytest.approx(1)
    assert share[0] > 0.9
    assert xy.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert abs(np.corrcoef(xy.T)[0, 1]) < 1e-9
    between = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (flat, xy)]
    assert between[0] == pytest.approx(between[1])
    assert project(turned)[0] == pytest.approx(xy)
    assert project(turned[:2])[1] == pytest.approx([1, 0])


def test_place_points_out_what_is_given(seeded_ghn2: GHN, caplog: pytest.LogCaptureFixture) -> None:
    def broken(dialect: Any) -> Any:
        raise RuntimeError("cannot run")

    given = timm_architecture("test_resnet.r160_in1k")
    reference = [*sampled_reference(3), Architecture("odd", "odd", broken)]
    with caplog.at_level(logging.WARNING):
        data = place(
            seeded_ghn2, [given], reference, values={"test_resnet.b": 2.0, "test_resnet.a": 3.0, "test 0": 1.0}
        )
    assert "odd is left out: cannot run" in caplog.text
    points = data["points"]
    assert [p["name"] for p in points] == ["test_resnet.r160_in1k", "test 0", "test 1", "test 2"]
    assert [p["given"] for p in points] == [True, False, False, False]
    assert [p["value"] for p in points] == [3.0, 1.0, None, None]
    assert points[0]["group"] == "resnet"
    with pytest.raises(RuntimeError, match="cannot run"):
        place(seeded_ghn2, [reference[-1]], reference)
    with pytest.raises(ValueError, match="three architectures"):
        place(seeded_ghn2, [given], [])


def test_timm_reference() -> None:
    names = [a.name for a in timm_reference(5, ("test_*",))]
    assert len(set(names)) == 5
    assert all(name.startswith("test_") for name in names)
    assert names == [a.name for a in timm_reference(5, ("test_*",))]
    with pytest.raises(ValueError, match="nothing_like_it"):
        timm_reference(5, ("nothing_like_it*",))
    with pytest.raises(ValueError, match="Unknown architecture 'resnet51'"):
        timm_architecture("resnet51")


def test_values(tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text("\ufeffmodel,tag,top1,top5\na,x,1.5,9\nb,y,-,8\nc,z,nan,7\n", encoding="utf-8")
    assert read_values(table) == ("top1", {"a": 1.5})
    assert read_values(table, "top5") == ("top5", {"a": 9.0, "b": 8.0, "c": 7.0})
    for column, message in (("tag", "no number"), ("top9", "no column 'top9'; it has model, tag")):
        with pytest.raises(ValueError, match=message):
            read_values(table, column)
    table.write_bytes(b"")
    with pytest.raises(ValueError, match="no column"):
        read_values(table)
    table.write_bytes(b"model,top1\n\xff,1\n")
    with pytest.raises(ValueError, match="no CSV"):
        read_values(table)


@pytest.mark.parametrize("coloured", [False, True])
def test_command_embed(
    coloured: bool, run: Callable[..., tuple[int, str, str]], tmp_path: Path, ghn_file: Path
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "v.csv").write_text("name,$top$\ntest 0,1\ntest 1,2\n")
    options = ["--values", tmp_path / "v.csv"] if coloured else []
    output = tmp_path / "e.svg"
    source = f"file:{ghn_file}"
    argv = ("analyze", "embed", "test_resnet", "test_vit", "--source", source, "--reference", "networks", "--size", 4)
    status, out, _ = run(*argv, *options, "-o", output)
    assert status == 0
    assert "4 architectures to compare with" in out
    texts = {t.text for t in ElementTree.parse(output).iter("{http://www.w3.org/2000/svg}text")}
    assert {"test_resnet", "test_vit"} <= texts
    assert ("$top$" in texts) is coloured
    data = json.loads((tmp_path / "e.json").read_text())
    assert [len(p["embedding"]) for p in data["points"]] == [32] * 6
    assert data["points"][0]["x"] != data["points"][1]["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["resnet51"], "Unknown architecture 'resnet51'"),
        (["test_resnet", "--reference", "imagenet"], "--reference imagenet"),
        (["test_resnet", "--values", "none.csv"], "none.csv"),
        (["test_resnet", "--column", "top1"], "--column needs --values"),
        (["test_resnet", "--source", "rand"], "without a GHN"),
    ],
)
def test_mistakes_of_embed(
    options: list[str], message: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, _, err = run("analyze", "embed", *options, "-o", tmp_path / "e.json")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


# -- looks -------------------------------------------------------------------------------------------------------------


def test_an_initialisation_looks_the_same_everywhere() -> None:
    looks = lines(
        ["ghn2-orth?layer=3", "rand, lr 0.1", "orth", "timm", "ghn3-t", "pretrained", "rand, lr 0.2", "ghn2-orth"]
    )
    kinds = ("ghn-orth", "rand", "orth", "timm", "ghn", "pretrained")
    assert list(looks.values())[:6] == [PALETTE[kind] for kind in kinds]
    assert looks["rand, lr 0.2"].colour == PALETTE["rand"].colour
    assert looks["ghn2-orth"].colour == PALETTE["ghn-orth"].colour
    assert PALETTE["rand"].colour[1:3] * 3 == PALETTE["rand"].colour[1:]  # grey


def test_pictures_of_groups_and_stars_share_no_colour() -> None:
    points = [
        {"name": f"{g}{i}", "group": f"g{g}", "given": g == 9, "x": g, "y": i, "value": None}
        for g in range(10)
        for i in range(3)
    ]
    with style():
        figure = embedding_figure({"kind": "embeddings", "ghn": "ghn2", "variance": [0.6, 0.2], "points": points})
    axes = figure.axes[0]
    looks = [(tuple(c.get_facecolors()[0][:3]), c.get_paths()[0].vertices.shape) for c in axes.collections]
    assert len({colour for colour, _ in looks}) == len(looks)
    assert axes.get_title(loc="left") == "Graph embeddings of ghn2, among 27 architectures"
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert {"90", "91", "92", "g0 (3)"} <= set(texts)
    assert "2 others (6)" in texts
    assert not list(axes.texts)  # names would lie upon one another and upon dots: the legend has them


def test_l_is_marked_and_layers_count_from_one() -> None:
    data = compare(create, ["rand", "ghn2-fashion-orth?layer=9"])
    with style():
        axes = correlation_figure(data).axes[-1]
        assert "L = 9" in [t.get_text() for t in axes.texts]
        assert axes.get_xticks()[0] == 1


def test_lines_are_told_apart() -> None:
    looks = lines([*"abcdefghijklmnopqrstuvwxyz", "a"])
    assert len(looks) == len(set(looks.values())) == 26
    assert {look.colour for look in looks.values()} == {line.colour for line in PALETTE.values()}
    assert {look.dash for look in looks.values()} <= set(DASHES)

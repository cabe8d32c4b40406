"""Reports, sources and graphs for people: short where they are a value among others, whole where they are looked at."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch

import timm_ghn_init
from timm_ghn_init import InitReport, Source, init_model, parse_source

HOSTILE = '</td><script>alert("1")</script>\x1b[2J'


@pytest.fixture(scope="module")
def report() -> InitReport:
    return init_model(timm.create_model("test_resnet", num_classes=100), "ghn2-fashion-orth?layer=12")


def test_repr_is_short(report: InitReport) -> None:
    assert repr(report) == (
        "InitReport('test_resnet', 'ghn2-fashion-orth?layer=12', 45 of 47 parameters, 97.46% of the values)"
    )
    assert repr(parse_source("ghn2_orth?layer=94")) == "Source('ghn2-orth?layer=94')"


def test_nearly_all_is_not_all(report: InitReport) -> None:
    nearly = replace(report, predicted={"a": "weight"}, skipped={}, sizes={"a": 999_999, "b": 1})
    assert "99.99%" in repr(nearly)
    assert "99.99%" in str(nearly)
    assert "100.00%" in repr(replace(nearly, sizes={"a": 3}))


def test_html_has_every_parameter_folded_away(report: InitReport) -> None:
    root = ElementTree.fromstring(report._repr_html_().replace("<br>", "<br/>"))
    (details,) = root.iter("details")
    assert "open" not in details.attrib
    cells = [[td.text or "" for td in tr.iter("td")] for tr in details.iter("tr")][1:]
    assert [row[0] for row in cells] == list(report.sizes)
    by_name = {row[0]: row[2:] for row in cells}
    assert by_name["layer4.0.conv2.weight"] == ["weight", "yes", ""]
    assert by_name["conv1.0.weight"] == ["weight", "", ""]
    assert by_name["fc.weight"] == ["", "", "classifier of 100 classes, the GHN predicts 10"]


def test_html_of_hostile_names(report: InitReport) -> None:
    html = replace(report, model=HOSTILE, sizes={HOSTILE: 1}, predicted={}, skipped={HOSTILE: HOSTILE})._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert html.count("&lt;script&gt;") == 5  # heading, a reason, its example; a name, its reason


def test_html_of_sources() -> None:
    html = parse_source("ghn2-orth?layer=94")._repr_html_()
    assert "GHN-2 for ImageNet" in html
    assert "arXiv:2110.13100" in html
    assert "<tr><td>layer</td><td>94</td><td>auto</td></tr>" in html
    for source in (Source(), Source("orth"), Source("file:<b>.pt")):
        assert "<b>" not in source._repr_html_()


def test_saved_report_is_the_report(report: InitReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert saved["coverage"] == report.coverage
    for source in ("rand", "ghn2-fashion-orth"):  # a seed is any integer
        seeded = init_model(timm.create_model("test_resnet"), source, seed=np.int64(3))
        seeded.save(tmp_path / "report.json")
        assert json.loads((tmp_path / "report.json").read_text())["seed"] == seeded.seed == 3
    with pytest.raises(OSError, match="nowhere"):
        report.save(tmp_path / "nowhere" / "report.json")


def test_graphs_draw_themselves() -> None:
    with torch.device("meta"):
        graph = timm_ghn_init.trace(timm.create_model("test_resnet"))
    svg = graph._repr_svg_()
    assert svg is not None
    assert f"{len(graph.nodes)} nodes" in svg
    ElementTree.fromstring(svg.encode())


def test_pretrained_cfg_has_a_tag_with_keys() -> None:
    model = timm.create_model("test_resnet", pretrained="ghn2-fashion-orth?layer=12")
    assert model.pretrained_cfg["tag"] == "ghn2-fashion-orth?layer=12"

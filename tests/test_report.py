"""The report: what it says, that it needs nothing else, that it is legible, and that text from files stays text."""

import base64
import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from timm_ghn_init.cli import main
from timm_ghn_init.lab.analysis import BINS, experiments
from timm_ghn_init.lab.analysis.figures import PALETTE, learning_figure
from timm_ghn_init.lab.finetune import Trial
from timm_ghn_init.lab.pictures import style

pytest.importorskip("matplotlib")

HOSTILE = '</text></style></script><script>alert("1")</script><img src=x onerror=alert(2)>'


def a_run(**options: Any) -> dict[str, Any]:
    """A line as finetune writes it, of a short run."""
    trial = Trial(**{"arch": "resnet50", "init": "rand", "epochs": 2, **options})
    return {
        "kind": "run",
        "key": trial.key,
        "trial": asdict(trial),
        "seconds": {"train": 1.0},
        "stem": {"conv1": "7x7 -> 3x3"},
        "images": {"train": 1000},
        "curves": {"train_accuracy": [0.2, 0.6], "validation_accuracy": [0.1, 0.5], "train_loss": [2.0, None]},
        "test_accuracy": 0.5,
        "validation_accuracy": 0.5,
        "command": ["timm-ghn-init", "finetune", "resnet50", "--source", "ghn-orth?layer=37"],
        "versions": {"timm": "1.0"},
        "machine": {"device": "cpu"},
    }


def measured(name: str = "conv1.weight") -> dict[str, Any]:
    """A file of analyze correlations, of one layer."""
    row = {"std": [0.1], "mean": [0.0], "histogram": [[1] * BINS]}
    return {
        "kind": "correlations",
        "arch": name,
        "bins": BINS,
        "selected": [1],
        "layers": [{"layer": 1, "name": name, "shape": [8, 3, 3, 3]}],
        "inits": [{"init": "rand", **row}, {"init": name, **row}],
    }


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Write a results file and report on it: status, page, stderr."""

    def report(records: list[Any], *correlations: Any) -> tuple[int, str, str]:
        runs, page = tmp_path / "runs.jsonl", tmp_path / "r.html"
        runs.write_text("".join(json.dumps(r) + "\n" for r in records))
        argv = ["report", str(runs), "-o", str(page)]
        for i, data in enumerate(correlations):
            (tmp_path / f"c{i}.json").write_text(json.dumps(data))
            argv += ["--correlations", str(tmp_path / f"c{i}.json")]
        status = main(argv)
        return status, page.read_text() if page.exists() else "", capsys.readouterr().err

    return report


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value or "" for n, value in self.attributes if n == name]

    @property
    def pictures(self) -> list[str]:
        """The SVG of each picture."""
        return [base64.b64decode(src.partition(",")[2]).decode() for src in self.values("src")]


def test_table_curves_and_commands(report: Callable[..., tuple[int, str, str]]) -> None:
    runs = [a_run(seed=seed) | {"test_accuracy": accuracy} for seed, accuracy in enumerate((0.5, 0.6))]
    runs += [a_run(init="ghn2-orth") | {"test_accuracy": 0.7}]
    status, text, _ = report(runs, measured())
    page = Page(text)
    assert status == 0
    assert "resnet50 on digits, 1000 labels" in page.text
    assert "55.0 ± 7.1" in page.text
    assert "<b>70.0</b>" in text
    assert "conv1 7x7 -> 3x3" in page.text
    assert "timm-ghn-init finetune resnet50 --source 'ghn-orth?layer=37'" in page.text
    assert "3 runs" in page.text
    assert [label.split()[0] for label in page.values("alt")] == ["Training", "Distribution"]
    learning, correlation = page.pictures
    assert all(f">{text}<" in learning for text in ("Training", "Validation", "rand", "ghn2-orth"))
    assert ">std of correlations<" in correlation


def test_bold_is_what_is_beyond_the_deviation(report: Callable[..., tuple[int, str, str]]) -> None:
    def bold(*rows: tuple[float, ...]) -> list[str]:
        runs = [
            a_run(init=init, seed=seed) | {"test_accuracy": accuracy}
            for init, row in zip(("rand", "orth", "ghn2"), rows, strict=False)
            for seed, accuracy in enumerate(row)
        ]
        return re.findall("<b>([0-9.]+)", report(runs)[1])

    assert bold((0.5, 0.52), (0.6, 0.62)) == ["61.0"]
    assert bold((0.5, 0.52), (0.5, 0.62)) == []  # 5 is less than 8.5
    assert bold((0.5, 0.52), (0.6,), (0.7,)) == ["70.0"]  # the noise of single runs is that of the others
    assert bold((0.5,), (0.6,)) == []  # nobody knows it
    assert bold((0.5, 0.52)) == []


def test_what_a_reader_must_know(report: Callable[..., tuple[int, str, str]]) -> None:
    facts = {"images": {"train": 1000, "test": 800}, "classes": 10, "finished": "2026-01-31T10:00:00+00:00"}
    runs = [a_run(seed=seed) | facts for seed in range(3)] + [a_run(init="orth") | facts]
    page = Page(report([*runs, a_run(init="ghn2") | facts | {"diverged": True, "finished": "2026-02-01T00:00:00"}])[1])
    assert "on 800 test images; guessing has 10 %" in page.text
    assert "Trained 2026-01-31 to 2026-02-01." in page.text
    assert page.text.count("1 of 3: not complete") == 2
    assert "(1 diverged)" in page.text
    assert page.pictures[0].count(">chance<") == 2


def test_curves_share_their_scale(report: Callable[..., tuple[int, str, str]]) -> None:
    """Training ends at 60 %, validation at 50 %: both panels have the same limits."""
    with style():
        figure = learning_figure(experiments([a_run()])[0][0])
    assert figure is not None
    training, validation = figure.axes
    assert training.get_ylim() == validation.get_ylim()
    assert training.get_ylim()[1] > 60 and validation.get_xlim() == training.get_xlim()


def test_page_needs_nothing_else(report: Callable[..., tuple[int, str, str]]) -> None:
    text = report([a_run()], measured())[1]
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "image", "foreignobject", "a"} & set(page.tags)
    assert "default-src 'none'; img-src data:" in text
    assert re.findall(r"@import|url\(", text) == []
    assert {src.partition(",")[0] for src in page.values("src")} == {"data:image/svg+xml;base64"}
    assert page.values("href") == []


def luminance(rgb: np.ndarray) -> float:
    """As WCAG 2 defines it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def inverted(rgb: np.ndarray) -> np.ndarray:
    """CSS's invert(1) hue-rotate(180deg)."""
    grey = np.array([0.213, 0.715, 0.072])
    return np.clip(2 * grey @ (1 - rgb) - (1 - rgb), 0, 1)


def test_colours_follow_the_scheme_and_can_be_seen(report: Callable[..., tuple[int, str, str]]) -> None:
    text = report([a_run()])[1]
    css = text[text.index("<style>") : text.index("</style>")]
    assert "img{filter:invert(1) hue-rotate(180deg)}" in css

    def colour(value: str) -> np.ndarray:
        return np.array([int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)])

    schemes = [dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", part)) for part in css.split("prefers-color-scheme:dark")]
    for scheme, seen in zip(schemes, (lambda rgb: rgb, inverted), strict=True):
        shown = {name: colour(value) for name, value in scheme.items()}
        shown |= {kind: seen(colour(line.colour)) for kind, line in PALETTE.items()}
        for name, rgb in shown.items():
            low, high = sorted((luminance(rgb), luminance(shown["paper"])))
            least = {"paper": 1, "grid": 1, "ink": 7, "faint": 4.5}.get(name, 3)  # WCAG: text 4.5, lines 3
            assert (high + 0.05) / (low + 0.05) >= least, (name, rgb)


def test_hostile_text_stays_text(report: Callable[..., tuple[int, str, str]]) -> None:
    run = a_run(arch=HOSTILE, init=HOSTILE, data=HOSTILE)
    run |= {
        "stem": {HOSTILE: HOSTILE},
        "command": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
        "machine": {HOSTILE: "\0"},
    }
    status, text, _ = report([run], measured(HOSTILE))
    page = Page(text)
    assert status == 0
    assert "script" not in page.tags
    assert page.tags.count("img") == len(page.pictures) == 2
    assert "onerror" not in dict(page.attributes)
    assert page.text.count("alert(2)") > 8
    assert "\0" not in text
    for picture in page.pictures:
        assert "alert(2)" in picture
        assert "script" not in {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()}


def test_formulas_are_no_formulas(report: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = report([a_run()], measured("$\\frac{$"))
    assert status == 0
    assert "$\\frac{$" in Page(text).pictures[1]


UNSOUND: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no trial": lambda r: r.pop("trial"),
    "trial is a list": lambda r: r.update(trial=[]),
    "another key": lambda r: r.update(key="k"),
    "an option that there is not": lambda r: r["trial"].update(x=1),
    "seed is a word": lambda r: r["trial"].update(seed="0"),
    "a list in the trial": lambda r: r["trial"].update(lr=[1]),
    "NaN": lambda r: r["trial"].update(lr=float("nan")),
    "accuracy is text": lambda r: r.update(test_accuracy="0.5"),
    "accuracy in percent": lambda r: r.update(test_accuracy=50),
    "curves is a list": lambda r: r.update(curves=[1]),
    "a number of 400 digits": lambda r: r["trial"].update(epochs=10**400),
    "a curve beyond all shares": lambda r: r["curves"].update(train_accuracy=[1e308]),
    "words in a curve": lambda r: r["curves"].update(train_accuracy=["x"]),
    "images is text": lambda r: r.update(images={"train": "1"}),
    "command is text": lambda r: r.update(command="rm"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_no_run_is_left_out(name: str) -> None:
    wrong = copy.deepcopy(a_run(seed=1))
    UNSOUND[name](wrong)
    found, left_out = experiments([a_run(), wrong, {"kind": "other"}])
    assert left_out == 1
    assert [len(row.runs) for e in found for row in e.rows] == [1]


def test_a_run_without_a_curve_of_accuracies(report: Callable[..., tuple[int, str, str]]) -> None:
    status, page, _ = report([{**a_run(), "curves": {"loss": [1.0]}}])
    assert status == 0 and "accuracy by epoch" not in page


def test_runs_are_sorted() -> None:
    records = [a_run(seed=1), a_run(seed=0), a_run(lr=0.1), a_run(arch="vgg11"), a_run(stage="search", seed=7)]
    again = a_run(seed=1) | {"test_accuracy": 0.9}
    found, left_out = experiments([*records, again])
    assert left_out == 0
    assert [(e.arch, [row.label for row in e.rows]) for e in found] == [
        ("resnet50", ["rand, lr 0.01", "rand, lr 0.1"]),
        ("vgg11", ["rand"]),
    ]
    row = found[0].rows[0]
    assert [run["trial"]["seed"] for run in row.runs] == [0, 1]
    assert row.test[0] == pytest.approx(0.7)


def test_curves_of_runs_that_ended_early() -> None:
    short = a_run(seed=1)
    short["curves"] = {"train_accuracy": [0.4]}
    row = experiments([a_run(), short])[0][0].rows[0]
    assert row.curve("train_accuracy") == [[0.2, 0.4], [0.6]]
    assert row.curve("train_loss") == [[2.0], []]
    assert row.curve("nothing") == []


def test_mistakes(report: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for records, correlations, message in (
        ([], (), "no finished run"),
        ([{"kind": "run"}], (), "no finished run"),
        ([a_run()], ([1],), "c0.json is not an output of analyze correlations"),
        ([a_run()], ({**measured(), "bins": 0},), "its bins cannot be read"),
    ):
        status, text, err = report(records, *correlations)
        assert (status, text, err.count("\n")) == (2, "", 1)
        assert message in err
    assert main(["report", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "r.html")]) == 2


def test_lines_left_out_are_told(report: Callable[..., tuple[int, str, str]]) -> None:
    assert "2 lines of the file" in Page(report([a_run(), {"kind": "run"}, {"kind": "run", "trial": 1}])[1]).text


def test_deep_nesting_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, deep = tmp_path / "runs.jsonl", tmp_path / "c.json"
    runs.write_text(json.dumps(a_run()))
    deep.write_text("[" * 200_000)
    assert main(["report", str(runs), "--correlations", str(deep), "-o", str(tmp_path / "r.html")]) == 2
    runs.write_text("[" * 200_000)
    assert main(["report", str(runs), "-o", str(tmp_path / "r.html")]) == 2
    assert "Traceback" not in capsys.readouterr().err

"""Two sets of weights side by side."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from timm_ghn_init.cli import main
from timm_ghn_init.lab.analysis.difference import differences, summary


def test_numbers() -> None:
    x = torch.tensor([3.0, 4.0])
    first = {"same": x, "turned": x, "shape": x, "a": x, "nil": torch.zeros(2), "one": torch.ones(1)}
    second = {"same": x, "turned": -x, "shape": torch.ones(3), "b": x, "nil": torch.zeros(2), "one": torch.ones(1)}
    rows = {row.name: row for row in differences(first, second)}
    assert list(rows) == ["same", "turned", "shape", "a", "nil", "one", "b"]
    assert rows["turned"].norms == (5, 5)
    assert rows["turned"].distance == 2
    assert rows["turned"].correlation == pytest.approx(-1)
    assert (rows["same"].distance, rows["same"].correlation) == (0, pytest.approx(1))
    assert (rows["nil"].distance, rows["nil"].correlation) == (0, None)
    assert (rows["shape"].distance, rows["a"].shapes, rows["b"].norms) == (None, ((2,), None), (None, 5))
    total = summary(list(rows.values()))
    assert total["equal"] == ["same", "nil", "one"]
    assert (total["different"], total["shape"], total["first"], total["second"]) == (
        ["turned"],
        ["shape"],
        ["a"],
        ["b"],
    )
    assert total["distance"] == pytest.approx(10 / 51**0.5)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.complex(torch.ones(3), torch.zeros(3)), torch.complex(torch.ones(3), torch.ones(3))),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1])),
        (torch.tensor([5e-324], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),
    ],
    ids=["imaginary parts", "large whole numbers", "smallest numbers"],
)
def test_what_double_precision_does_not_show(a: torch.Tensor, b: torch.Tensor) -> None:
    assert summary(differences({"a": a}, {"a": b}))["different"] == ["a"]
    assert summary(differences({"a": a}, {"a": a.clone()}))["equal"] == ["a"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    assert (
        main(["predict", "test_resnet", "--source", "ghn2-fashion-orth", "--num-classes", "10", "-q", "-o", str(path)])
        == 0
    )
    return path


def test_a_file_and_the_source_it_came_from(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Architecture and number of classes are those of the file. Only the classifier is drawn, from the same seed."""
    capsys.readouterr()
    main(["compare", str(file), "ghn2-fashion-orth", "-q", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert {name.partition(".")[0] for name in said["different"]} <= {"fc"}
    assert (said["first"], said["second"], said["shape"]) == ([], [], [])
    assert (said["predicted in A only"], said["predicted in B only"]) == ([], [])


def packed(path: Path) -> None:
    """By another program, which PyTorch would read as other values."""
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path) as plain:
        contents = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in contents.items():
            target.writestr(name, content)


FOREIGN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("x.pt", lambda path: path.write_bytes(b""), "damaged (EOFError"),
    "no pickle": ("x.ckpt", lambda path: path.write_text("hello"), "damaged"),
    "code": (
        "x.bin",
        lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n\x8c\x02id\x85R."),
        "never read: os.system",
    ),
    "packed": ("x.pt", packed, "packed archive"),
    "a list": ("x.pt", lambda path: torch.save([torch.ones(1)], path), "it holds list"),
    "other things": ("x.pth", lambda path: torch.save({"model": {"\x1b": 1}}, path), "not only tensors"),
    "a header": ("x.safetensors", lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{"), "header"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_strangers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, write, says = FOREIGN[name]
    write(tmp_path / file)
    assert main(["compare", str(tmp_path / file), str(tmp_path / file)]) == 2
    error = capsys.readouterr().err
    assert f"{file} cannot be read as weights, tensors by name: " in error and says in error
    assert error[:-1].isprintable()


def test_what_training_scripts_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"w": torch.randn(3, 2), "none": torch.empty(0, 4), "steps": torch.tensor(5)}
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in tensors.items()}}, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "b.pt")
    assert main(["compare", str(tmp_path / "a.pth"), str(tmp_path / "b.pt")]) == 0
    assert "3 of 3 tensors are equal" in capsys.readouterr().out


def test_post_processing_changes_late_layers_only(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", str(file), "rand", "-q", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["predicted in B only"] == []
    assert main(["compare", "ghn2-fashion", "ghn2-fashion-orth?layer=13", "--arch", "test_resnet", "-q"]) == 1
    out = capsys.readouterr().out
    lines = [line.split() for line in out.split("\n\n")[0].splitlines()[1:]]
    late = {f"layer4.0.{name}.weight" for name in ("conv1", "conv2", "downsample.1")}
    assert {line[0] for line in lines} == late
    assert "tensors are equal to the bit" in out


def test_a_checkpoint_of_torch(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "c.pt")
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "c.pt"), str(tmp_path / "c.pt")]) == 0
    assert main(["compare", str(file), str(tmp_path / "c.pt")]) == 1
    assert "of another shape: 2 (fc.bias ...)" in capsys.readouterr().out


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.safetensors", "rand"], "no such file"),
        (["rand", "orth"], "--arch"),
        (["ghn9", "orth", "--arch", "test_resnet"], "ghn9"),
        (["rand", "orth", "--arch", "resnet51"], "resnet51"),
        (["evil.pt", "evil.pt"], "evil"),
        (["text.safetensors", "text.safetensors"], "text"),
    ],
)
def test_mistakes(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    Path("text.safetensors").write_text("no weights")
    assert main(["compare", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err

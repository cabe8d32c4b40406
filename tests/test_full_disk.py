"""A full disk, whatever a command writes: it says so, what was there is intact, and no half file stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from timm_ghn_init.cli import main

resource = pytest.importorskip("resource")

TRAIN = "--data digits --steps 1 --networks 1 --batch-size 2 --pool 2 --hid 8 --device cpu"
TUNE = "--source rand --seeds 1 --epochs 1 --labels 10 --validation 10 -b 5"
TUNE += " --workers 0 --img-size 32 --keep-stem --device cpu"

# Each command, and what it would replace.
COMMANDS = {
    "predict test_resnet --source ghn2-fashion -o FOLDER/x.safetensors": ["x.safetensors"],
    "predict test_resnet --source ghn2-fashion -o FOLDER/out/": ["out/config.json", "out/model.safetensors"],
    "bake --models test_resnet --source ghn2-fashion --out FOLDER": [],
    "graph test_resnet -o FOLDER/x.svg": ["x.svg"],
    "analyze correlations test_resnet --source rand orth -o FOLDER/x.json": ["x.json"],
    "analyze signal test_resnet --source rand -o FOLDER/x.svg": ["x.json"],
    "push test_resnet --source ghn2-fashion --repo me/x": [],
    f"train-ghn {TRAIN} -o FOLDER": [],
    f"finetune test_resnet --data digits {TUNE} -o FOLDER/runs.jsonl": ["runs.jsonl"],
    f"finetune test_convnext --data digits {TUNE} -o FOLDER/runs.jsonl": [],
}
LEFT = (".lock", "log.csv")  # a lock, which nobody may remove, and a log of nothing but its header


@contextmanager
def full_disk() -> Iterator[None]:
    """Files have 200 bytes at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
def test_a_full_disk(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if command.startswith("push"):
        request.getfixturevalue("hub")  # which is asked before anything is written
    if "digits" in command:
        pytest.importorskip("sklearn")
    for name in COMMANDS[command]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    with full_disk():
        status = main(command.replace("FOLDER", str(tmp_path)).split())
    output = capsys.readouterr()
    assert status in (1, 2)
    assert "File too large" in output.out + output.err
    assert "Traceback" not in output.err
    kept = {str(p.relative_to(tmp_path)): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {name for name in kept if not name.endswith(LEFT)} == set(COMMANDS[command])
    assert all(kept[name].read_text() == "{}\n" for name in COMMANDS[command])

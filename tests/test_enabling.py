"""`enable`: timm knows the sources in every program of an environment, and nobody else notices."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import timm_ghn_init
from timm_ghn_init.integration.enabling import FILE

ROOT = Path(timm_ghn_init.__file__).parents[1]
KNOWN = "import timm, sys; print('timm_ghn_init' in sys.modules)"
Run = Callable[..., subprocess.CompletedProcess[str]]


def installed(folder: Path) -> None:
    """What an editable installation leaves in site-packages, and a timm that is imported in no time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__editable__.timm_ghn_init.pth").write_text(f"{ROOT}\n")
    info = folder / "timm_ghn_init-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm-ghn-init\nVersion: 0\n")
    (folder / "timm").mkdir()
    (folder / "timm" / "__init__.py").touch()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    venv.create(tmp_path / "env", symlinks=True)
    return Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(tmp_path / "env")}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the environment's Python, in a folder where nothing lies."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}

    def run(*argv: str, python: str = str(tmp_path / "env" / "bin" / "python"), **env: str) -> Run:
        return subprocess.run([python, *argv], cwd=tmp_path, env=clean | env, capture_output=True, text=True)

    return run


def test_nothing_happens_before_timm_is_imported(environment: Path, run: Run) -> None:
    installed(environment)
    assert run("-c", KNOWN).stdout == "False\n"
    status = run("-m", "timm_ghn_init", "enable", "--status")
    assert (status.returncode, status.stdout) == (1, "not enabled\n")
    finders = int(run("-c", "import sys; print(len(sys.meta_path))").stdout)

    done = run("-m", "timm_ghn_init", "enable")
    assert (done.returncode, done.stdout) == (0, f"{environment / FILE}\n")
    bystander = run("-c", "import sys; print([m for m in sys.modules if 'timm' in m], len(sys.meta_path))")
    assert bystander.stdout == f"[] {finders + 1}\n"  # one look at names, and no module
    assert run("-c", KNOWN).stdout == "True\n"
    status = run("-m", "timm_ghn_init", "enable", "--status")
    assert (status.returncode, status.stdout) == (0, f"enabled by {environment / FILE}\n")

    assert run("-m", "timm_ghn_init", "disable").stdout == f"{environment / FILE}\n"
    assert run("-c", KNOWN).stdout == "False\n"
    assert run("-m", "timm_ghn_init", "disable").stdout == "not enabled\n"


def test_a_package_that_is_gone_or_broken_disturbs_nobody(environment: Path, run: Run) -> None:
    installed(environment)
    run("-m", "timm_ghn_init", "enable")
    (environment / "__editable__.timm_ghn_init.pth").unlink()
    for _ in range(2):
        result = run("-c", KNOWN)
        assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")
        (environment / "timm_ghn_init.py").write_text("raise RuntimeError('broken')")


def test_user_site(tmp_path: Path, run: Run) -> None:
    """The system's Python, whose own folder belongs to somebody else."""
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")  # sys._base_executable: since 3.11 only
    if not python.exists():
        pytest.skip("this environment's Python has no folder of its own")
    base = {"python": str(python), "PYTHONUSERBASE": str(tmp_path / "user")}
    user = Path(run("-m", "site", "--user-site", **base).stdout.strip())
    if tmp_path not in user.parents:
        pytest.skip("this Python has no user site")
    installed(user)
    assert run("-m", "timm_ghn_init", "enable", **base).stdout == f"{user / FILE}\n"
    assert run("-c", KNOWN, **base).stdout == "True\n"
    assert run("-s", "-c", "import sys; print(len(sys.meta_path))", **base).stderr == ""


def test_a_checkout_that_is_not_installed_says_so(environment: Path, run: Run) -> None:
    result = run("-m", "timm_ghn_init", "enable", PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "not installed in" in result.stderr
    assert not (environment / FILE).exists()


@pytest.fixture
def enabled(environment: Path, run: Run) -> Run:
    """The environment with timm as it is, and all else that these tests can import."""
    installed(environment)
    run("-m", "timm_ghn_init", "enable")
    (environment / "timm" / "__init__.py").unlink()
    (environment / "timm").rmdir()
    (environment / "ours.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    return run


def test_spawned_processes_know_the_sources(enabled: Run, tmp_path: Path) -> None:
    """They are started from nothing, and what they run imports nothing of ours."""
    (tmp_path / "work.py").write_text(
        "import multiprocessing\n"
        "def source(name):\n"
        "    import timm\n"
        "    return timm.create_model('test_resnet', pretrained=name).pretrained_cfg['source']\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(source, ('ghn2-fashion',)))\n"
    )
    result = enabled("work.py")
    assert result.stdout == "ghn2-fashion\n", result.stderr


def test_lightning_starts_the_script_once_more(enabled: Run, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    (tmp_path / "train.py").write_text(
        "import lightning, timm, torch\n"
        "class Model(lightning.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = timm.create_model('test_resnet', pretrained='ghn2-fashion')\n"
        "    def on_fit_start(self):\n"
        "        print(f\"rank {self.global_rank}: {self.model.pretrained_cfg['source']}\", flush=True)\n"
        "    def training_step(self, batch, index):\n"
        "        return self.model(batch[0]).square().mean()\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), 0.1)\n"
        "data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, 64, 64)), 2)\n"
        "quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)\n"
        "trainer = lightning.Trainer(strategy='ddp', devices=2, accelerator='cpu', max_steps=1, **quiet)\n"
        "trainer.fit(Model(), data)\n"
    )
    lines = [line for line in enabled("train.py").stdout.splitlines() if line.startswith("rank")]
    assert sorted(lines) == ["rank 0: ghn2-fashion", "rank 1: ghn2-fashion"]


def test_kernels_of_notebooks(enabled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kernel = tmp_path / "jupyter" / "kernels" / "ours" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(tmp_path / "env" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "ours", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    cells = [
        "import timm\nmodel = timm.create_model('test_resnet', pretrained='ghn2-fashion')",
        "model.pretrained_cfg['source']",
        "import timm_ghn_init\ntimm_ghn_init.trace(model)",
        "timm_ghn_init.init_model(model, 'rand')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    done = nbclient.NotebookClient(notebook, kernel_name="ours", timeout=120).execute()
    shown = [cell.outputs[-1]["data"] for cell in done.cells[1:]]
    assert shown[0]["text/plain"] == "'ghn2-fashion'"
    assert "image/svg+xml" in shown[1]
    assert "text/html" in shown[2]

"""What is declared, in setup.cfg and elsewhere, and what is packed."""

import configparser
import datetime
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import timm_ghn_init

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = spec_from_file_location("release", ROOT / "benchmarks" / "release.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def declared() -> dict[str, dict[str, str]]:
    """The lower bounds of setup.cfg, for the package itself ("everything") and for its extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    sections = {"everything": config["options"]["install_requires"], **config["options.extras_require"]}
    bounds = {name: dict(re.findall(r"^([\w-]+)>=([\d.]+)$", text, re.MULTILINE)) for name, text in sections.items()}
    bounds["everything"]["Python"] = config["options"]["python_requires"].removeprefix(">=")
    return bounds


def test_the_table_of_versions_is_that_of_setup_cfg(declared: dict[str, dict[str, str]]) -> None:
    text = (ROOT / "docs" / "requirements.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| `?\[?(\w+)\]?`? \|$", text, re.MULTILINE)
    tabled = declared.keys() - {"libraries", "docs", "dev"}
    expected = {(package, version, extra) for extra in tabled for package, version in declared[extra].items()}
    assert set(rows) == expected and len(rows) == len(expected)


def test_the_conda_recipe_needs_what_setup_cfg_does(declared: dict[str, dict[str, str]]) -> None:
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    text = (ROOT / "conda-recipe" / "meta.yaml").read_text()
    recipe: dict[str, Any] = yaml.safe_load(jinja2.Environment().from_string(text).render(PYTHON="python"))
    assert recipe["package"] == {"name": "timm-ghn-init", "version": timm_ghn_init.__version__}

    def wanted(*extras: str) -> set[str]:
        bounds = {CONDA_NAMES.get(p, p.lower()): v for extra in extras for p, v in declared[extra].items()}
        return {f"{package} >={version}" for package, version in bounds.items()}

    assert set(recipe["requirements"]["run"]) == wanted("everything")
    assert set(recipe["requirements"]["run_constrained"]) == wanted("plot", "finetune", "completion")
    assert recipe["build"]["entry_points"] == ["timm-ghn-init = timm_ghn_init.cli:main"]


def test_one_version_everywhere(release: ModuleType) -> None:
    assert set(release.versions(ROOT).values()) == {timm_ghn_init.__version__}


def test_setting_the_version(release: ModuleType, tmp_path: Path) -> None:
    for name in (*release.PLACES, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- More.\n\n## 0.1.0\n\n- All.\n")
    with pytest.raises(SystemExit, match=r"'v7' is no version"):
        release.set_version(tmp_path, "v7", datetime.date(2030, 1, 2))
    release.set_version(tmp_path, "7.8.9", datetime.date(2030, 1, 2))
    assert set(release.versions(tmp_path).values()) == {"7.8.9"}
    changelog = (tmp_path / "CHANGELOG.md").read_text()
    assert "## Unreleased\n\n## 7.8.9, 2030-01-02\n\n- More.\n\n## 0.1.0" in changelog
    with pytest.raises(SystemExit, match="nothing under"):
        release.set_version(tmp_path, "8.0.0", datetime.date(2030, 1, 3))
    assert set(release.versions(tmp_path).values()) == {"7.8.9"}


def tracked_files() -> list[str]:
    """Files of the project, relative to its root: those that git tracks, or those that an unpacked sdist lists."""
    git = ["git", "-C", str(ROOT)]
    top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
    listed = ROOT / "timm_ghn_init.egg-info" / "SOURCES.txt"
    if top.returncode == 0 and Path(top.stdout.strip()) == ROOT.resolve():
        names = subprocess.check_output([*git, "ls-files", "-z"], text=True).split("\0")
    elif (ROOT / "PKG-INFO").exists() and listed.exists():
        names = [name for name in listed.read_text().split("\n") if ".egg-info/" not in name]
    else:
        pytest.skip("this is neither a git checkout nor an unpacked sdist")
    return [name for name in names if name and (ROOT / name).is_file()]


def repository(folder: Path) -> Path:
    """The project's files, as one commit."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(folder)]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "All"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_only_files_of_the_project_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    checkout = repository(tmp_path / "checkout")
    files = tracked_files()
    for name in ("resnet50.safetensors", "my-env/lib/x.py", ".hypothesis/x", "outputs/last.pth.tar", "tests/y.json"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"0")
    monkeypatch.setattr("test_packaging.ROOT", checkout)
    assert sorted(tracked_files()) == sorted(files)


def test_built_tested_and_the_same_bytes_twice(
    release: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The sdist holds all files, and its own tests run where it is unpacked and installed."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (ROOT / "timm_ghn_init" / "__init__.py").exists():
        pytest.skip("this is an unpacked sdist whose package is tested as installed")
    source = repository(tmp_path / "source")
    release.build(source, tmp_path / "dist")
    files = {f.name: f for f in (tmp_path / "dist").iterdir()}
    version = timm_ghn_init.__version__
    base = f"timm_ghn_init-{version}"
    assert files.keys() == {f"{base}.tar.gz", f"{base}-py3-none-any.whl"}
    with release.tarfile.open(files[f"{base}.tar.gz"]) as tar:
        packed = {m.name.removeprefix(f"{base}/") for m in tar.getmembers() if m.isfile()}
    tracked = subprocess.check_output(["git", "-C", source, "ls-files"], text=True).split()
    assert not set(tracked) - packed
    release.test(tmp_path / "dist", ["tests/test_packaging.py", "-k", "version or recipe"])
    assert "passed" in capfd.readouterr().out


def test_the_description_of_an_index_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    spec = spec_from_file_location("setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    without: Callable[[str], str] = module.without_local_links
    assert without("![a](b.svg)\n\nSee [docs/x.md](docs/x.md), [the y](y/).") == "See `docs/x.md`, the y (`y/`)."
    assert without("[a](https://x) [b](#c)") == "[a](https://x) [b](#c)"
    links = re.findall(r"\]\(([^)]*)\)", given["long_description"])
    assert links and all(link.startswith(("https:", "#")) for link in links)

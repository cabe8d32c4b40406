"""A release, step by step; CONTRIBUTING.md says in which order.

    python benchmarks/release.py version 0.2.0   # wherever it stands
    python benchmarks/release.py build           # dist/: wheel and sdist of the last commit, checked
    python benchmarks/release.py test            # the tests in the sdist of dist/, unpacked and installed

Needs `pip install '.[dev]'`.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = r"[0-9]+\.[0-9]+\.[0-9]+(?:(?:a|b|rc)[0-9]+)?"
# `version.py` is the place that everything reads; these have to be written as well.
PLACES = {
    "timm_ghn_init/version.py": rf'^__version__ = "({VERSION})"$',
    "CITATION.cff": rf"^version: ({VERSION})$",
    "conda-recipe/meta.yaml": rf'^{{% set version = "({VERSION})" %}}$',
}
UNRELEASED = "## Unreleased"
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version").add_argument("version")
    for name in ("build", "test"):
        commands.add_parser(name).add_argument("--dist", type=Path, default=ROOT / "dist", metavar="DIR")
    args, rest = parser.parse_known_args(argv)
    if args.command == "version":
        set_version(ROOT, args.version, datetime.date.today())
    elif args.command == "build":
        build(ROOT, args.dist)
        check(args.dist)
    else:
        test(args.dist, rest)


def set_version(root: Path, version: str, date: datetime.date) -> None:
    """Write a version everywhere, and give what is unreleased in the changelog its name and date.

    Raises:
        SystemExit: it is no version, or there is nothing to release; nothing is written.
    """
    if not re.fullmatch(VERSION, version):
        raise SystemExit(f"{version!r} is no version such as 0.2.0 or 0.2.0rc1.")
    changelog = (root / "CHANGELOG.md").read_text()
    if not re.search(rf"^{UNRELEASED}\n(?!\s*## )", changelog, re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md: there is nothing under {UNRELEASED!r}.")
    for name, pattern in PLACES.items():
        text = (root / name).read_text()
        (match,) = re.finditer(pattern, text, re.MULTILINE)
        (root / name).write_text(text[: match.start(1)] + version + text[match.end(1) :])
    (root / "CHANGELOG.md").write_text(changelog.replace(UNRELEASED, f"{UNRELEASED}\n\n## {version}, {date}", 1))


def versions(root: Path) -> dict[str, str]:
    """The version in each of the places."""
    found = {name: re.findall(pattern, (root / name).read_text(), re.MULTILINE) for name, pattern in PLACES.items()}
    return {name: version for name, (version,) in found.items()}


def build(root: Path, dist: Path) -> None:
    """Build wheel and sdist of the last commit in two fresh copies, and keep them if they are the same to the byte.

    Raises:
        SystemExit: places disagree on the version, or the files differ.
    """
    epoch = subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=root, text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / name for name in ("one", "other")]
        for copy, umask in zip(copies, (0o022, 0o077), strict=True):
            subprocess.run(["git", "clone", "--quiet", root, copy], check=True, umask=umask)
            if len(set(versions(copy).values())) != 1:
                raise SystemExit(f"The version is not the same everywhere: {versions(copy)}.")
            environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
            command = [sys.executable, "-c", BUILD]
            subprocess.run(command, cwd=copy, env=environment, umask=umask, stdout=subprocess.DEVNULL, check=True)
        one, other = ({f.name: _digest(f) for f in (copy / "dist").iterdir()} for copy in copies)
        if one != other:
            raise SystemExit(f"Two builds differ: {one}, {other}.")
        shutil.rmtree(dist, ignore_errors=True)
        shutil.copytree(copies[0] / "dist", dist)
    for name, digest in one.items():
        print(digest, dist / name)


def check(dist: Path) -> None:
    """The complaints that an index, or an installation, would raise."""
    files = [str(f) for f in dist.iterdir()]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    subprocess.run(
        [sys.executable, "-m", "check_wheel_contents", *(f for f in files if f.endswith(".whl"))], check=True
    )


def test(dist: Path, arguments: list[str]) -> None:
    """Unpack the sdist, install it, and run its own tests. The arguments are those of pytest."""
    (sdist,) = dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as tar:
            tar.extractall(folder)
        site, source = Path(folder) / "site", Path(folder) / sdist.name.removesuffix(".tar.gz")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", site, sdist], check=True)
        for path in (source / "timm_ghn_init").rglob("*.py"):  # what is tested is what is installed
            if path.name != "version.py":  # which is read as a file, too
                path.unlink()
        command = [sys.executable, "-m", "pytest", *arguments]
        subprocess.run(command, cwd=source, env={**os.environ, "PYTHONPATH": str(site)}, check=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

"""`doctor`: what is installed, registered and at hand, and what of it is broken; what a bug report should hold."""

import argparse
import importlib
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..sources import KNOWN, SHIPPED, parse_source
from ..version import __version__
from .arguments import Command
from .messages import PROG, one_line, table
from .results import show

Facts = dict[str, Any]

# By the name of the distribution, what is imported of it. All needs the first, some commands the second.
_NEEDED = {name: name for name in ("torch", "timm", "huggingface_hub", "safetensors", "numpy", "filelock", "tqdm")}
_OPTIONAL = {"torchvision": "torchvision", "scikit-learn": "sklearn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
_VARIABLES = re.compile(r"(TIMM_GHN|HF|HUGGING_?FACE|TORCH|CUDA|OMP|XDG_CACHE|(HTTPS?|ALL)_PROXY)(_|$)", re.IGNORECASE)
_SECRET = re.compile(r"TOKEN|PASS|SECRET|KEY|PROXY", re.IGNORECASE)


def add(command: Command) -> None:
    command("doctor", doctor)


def doctor(args: argparse.Namespace) -> int:
    """Say what a bug report should hold: versions, what is registered, devices, cache, default GHN; what is broken.

    Nothing is asked of the network, and no token or password is shown. Exit status 1: something is broken.
    """
    broken: list[str] = []
    found: dict[str, Facts] = {}
    for name, look in _SECTIONS.items():
        try:
            found[name] = look(broken)
        except Exception as error:  # a broken installation may raise anything
            broken.append(f"{name}: {_reason(error)}")
    show(args, {**found, "broken": broken}, lambda: _as_text(found, broken))
    return 1 if broken else 0


def _as_text(found: dict[str, Facts], broken: list[str]) -> str:
    sections = {
        section: table(("", ""), ((name, _cell(value)) for name, value in facts.items())).splitlines()[1:]
        for section, facts in found.items()
    }
    sections["broken"] = broken or ["nothing"]
    return "\n\n".join("\n  ".join((section, *lines)) for section, lines in sections.items())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


# -- the sections ------------------------------------------------------------------------------------------------------


def _installation(broken: list[str]) -> Facts:
    return {
        PROG: __version__,
        "folder": str(Path(__file__).parents[1]),
        "Python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }


def _versions(broken: list[str]) -> Facts:
    bounds = _bounds()
    found = {}
    for name, module in {**_NEEDED, **_OPTIONAL}.items():
        version, problem = _version(name, module)
        if problem is None and version is not None and name in bounds and version not in bounds[name]:
            problem = f"{bounds[name]} is needed"
        found[name] = version or "not installed"
        if problem and (version or name in _NEEDED):
            broken.append(f"{name}{f' {version}' if version else ''}: {problem}")
    return found


def _version(name: str, module: str) -> tuple[str | None, str | None]:
    """The version of a package, None where there is none; and why it cannot be imported."""
    version = None
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(name)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # of a library that is missing, or does not fit another one, in any way
        return version, _reason(error)
    return version or getattr(imported, "__version__", "of an unknown version"), None


def _bounds() -> dict[str, Any]:
    """Which versions are asked for, by package; nothing where that is not recorded, in a checkout for one."""
    try:
        from packaging.requirements import Requirement

        required = map(Requirement, metadata.requires(PROG) or ())
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {r.name: r.specifier for r in required if r.marker is None}


def _registered(broken: list[str]) -> Facts:
    from ..integration import enabling
    from ..integration.registration import register

    lines = enabling.enabled()
    for file in lines:
        if file.read_text(encoding="utf-8", errors="replace") != enabling.LINE:
            broken.append(f"{file}: written by another version of this package; run {PROG} enable again")
    register()
    from ..integration import timm_hooks  # what timm makes of it

    missing = timm_hooks.unwrapped()
    if missing:
        broken.append(f"registered: this timm does not know the sources, {', '.join(missing)} is as it was")
    return {"by import timm_ghn_init": not missing, f"by {PROG} enable": list(map(str, lines))}


def _devices(broken: list[str]) -> Facts:
    import torch

    found: Facts = {"CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch"}
    if not torch.cuda.is_available():
        build = torch.version.cuda or getattr(torch.version, "hip", None)
        found["CUDA"] = f"none here; PyTorch is built for {build}" if build else "PyTorch is built without it"
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {about.major}.{about.minor}"
    if torch.backends.mps.is_available():
        found["mps"] = True
    return found


def _cache(broken: list[str]) -> Facts:
    from ..checkpoints.load import home, is_cached
    from ..weights import cache

    folder = home()
    if not _is_writable(folder):
        broken.append(f"cache: {folder} may not be written to; set TIMM_GHN_HOME to another folder")
    kept = cache.entries()
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0,
        "GHNs": [name for name in KNOWN if is_cached(name)],
        "finished weights": len(kept),
        "bytes of these": sum(entry.size for entry in kept),
        "bytes at most": cache.size_limit(),
        "finished weights are kept": "always" if cache.is_on() else "where it is asked for",
    }


def _is_writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:  # it is made when it is needed
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _hub(broken: list[str]) -> Facts:
    from huggingface_hub import constants

    # `get_token` would ask the user, in some notebooks
    has_token = bool(os.environ.get("HF_TOKEN") or os.path.isfile(constants.HF_TOKEN_PATH))
    return {
        "address": _shown("", constants.ENDPOINT),
        "folder": str(constants.HF_HUB_CACHE),
        "offline": bool(constants.HF_HUB_OFFLINE),
        "token": has_token,
    }


def _default(broken: list[str]) -> Facts:
    from ..checkpoints.load import expected_default, is_cached

    if not is_cached(SHIPPED):
        broken.append(f"default GHN: {SHIPPED}, which ships with this package, is missing from it")
    name, why = expected_default()
    path = parse_source(name).path
    if path is not None and not path.is_file():
        broken.append(f"default GHN: there is no file {path}")
    return {"ghn": name, "because": why, "on this machine": path.is_file() if path else is_cached(name)}


def _environment(broken: list[str]) -> Facts:
    return {name: _shown(name, os.environ[name]) for name in sorted(os.environ) if _VARIABLES.match(name)}


def _shown(name: str, value: str) -> str:
    """A variable's value without what is nobody's business: tokens, and users and passwords of addresses."""
    if _SECRET.search(name):
        return "(set)"
    if "://" in value:
        parts = urlsplit(value)
        value = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return one_line(value.rpartition("@")[2] if "@" in value and not os.path.exists(value) else value)


_SECTIONS: dict[str, Callable[[list[str]], Facts]] = {
    "installation": _installation,
    "versions": _versions,
    "registered": _registered,
    "devices": _devices,
    "cache": _cache,
    "Hugging Face Hub": _hub,
    "default GHN": _default,
    "environment": _environment,
}

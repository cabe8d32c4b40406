"""`doctor`: the content of a bug report: what is installed, registered and available, and what is broken."""

import argparse
import importlib
import os
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..sources import KNOWN, SHIPPED, parse_source
from ..version import __version__
from .arguments import command
from .messages import PROG, one_line, table
from .results import show

Facts = dict[str, Any]

# Distribution -> module. The package needs the first, some commands need the second.
_NEEDED = {name: name for name in ("torch", "timm", "huggingface_hub", "safetensors", "numpy", "filelock", "tqdm")}
_OPTIONAL = {"torchvision": "torchvision", "scikit-learn": "sklearn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
_VARIABLES = re.compile(r"(TIMM_GHN|HF|HUGGING_?FACE|TORCH|CUDA|OMP|XDG_CACHE|(HTTPS?|ALL)_PROXY)(_|$)", re.IGNORECASE)
_SECRET = re.compile(r"TOKEN|PASS|SECRET|KEY|PROXY", re.IGNORECASE)


@command("doctor")
def doctor(args: argparse.Namespace) -> int:
    """Print versions, devices, cache and default GHN, and what is broken; for bug reports.

    It does not use the network and shows no tokens or passwords. Exit status 1: something is broken.
    """
    broken: list[str] = []
    found: dict[str, Facts] = {}
    for name, section in _SECTIONS.items():
        try:
            found[name] = section(broken)
        except Exception as error:  # of any type: the installation is broken
            broken.append(f"{name}: {_reason(error)}")
    show(args, {**found, "broken": broken}, lambda: _as_text(found, broken))
    return 1 if broken else 0


def _as_text(found: dict[str, Facts], broken: list[str]) -> str:
    sections = {section: table(("", ""), facts.items()).splitlines()[1:] for section, facts in found.items()}
    sections["broken"] = broken or ["nothing"]
    return "\n\n".join("\n  ".join((section, *lines)) for section, lines in sections.items())


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
        version, problem = None, ""
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
        try:
            version = version or getattr(importlib.import_module(module), "__version__", "unknown version")
            importlib.import_module(module)
        except Exception as error:  # of any type: the library is missing, or does not fit another one
            problem = _reason(error)
        if version and name in bounds and version not in bounds[name]:
            problem = problem or f"{bounds[name]} is needed"
        found[name] = version or "not installed"
        if problem and (version or name in _NEEDED):
            broken.append(f"{name}{f' {version}' if version else ''}: {problem}")
    return found


def _bounds() -> dict[str, Any]:
    """The required versions, by package; {} if they are not recorded, e.g. in a checkout."""
    try:
        from packaging.requirements import Requirement

        required = map(Requirement, metadata.requires(PROG) or ())
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {r.name: r.specifier for r in required if r.marker is None}


def _registered(broken: list[str]) -> Facts:
    from ..integration import enabling, registration, timm_hooks

    lines = enabling.enabled()
    for file in lines:
        if file.read_text(encoding="utf-8", errors="replace") != enabling.LINE:
            broken.append(f"{file}: written by another version of this package; run {PROG} enable again")
    registration.register()
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
    existing = next(path for path in (folder, *folder.parents) if path.exists())  # the others are made when needed
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        broken.append(f"cache: {folder} is not writable; set TIMM_GHN_HOME to another folder")
    kept = cache.entries()
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "GHNs": [name for name in KNOWN if is_cached(name)],
        "finished weights": len(kept),
        "bytes of these": sum(entry.size for entry in kept),
        "bytes at most": cache.size_limit(),
        "finished weights are kept": "always" if cache.is_on() else "if asked for",
    }


def _hub(broken: list[str]) -> Facts:
    from huggingface_hub import constants

    # not `get_token`: it asks the user in some notebooks
    has_token = bool(os.environ.get("HF_TOKEN") or os.path.isfile(constants.HF_TOKEN_PATH))
    return {
        "address": _without_secrets("", constants.ENDPOINT),
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
    return {name: _without_secrets(name, os.environ[name]) for name in sorted(os.environ) if _VARIABLES.match(name)}


def _without_secrets(name: str, value: str) -> str:
    """A variable's value without tokens, and without users and passwords of addresses."""
    if _SECRET.search(name):
        return "(set)"
    if "://" in value:
        parts = urlsplit(value)
        value = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return one_line(value.rpartition("@")[2] if "@" in value and not os.path.exists(value) else value)


_SECTIONS = {
    "installation": _installation,
    "versions": _versions,
    "registered": _registered,
    "devices": _devices,
    "cache": _cache,
    "Hugging Face Hub": _hub,
    "default GHN": _default,
    "environment": _environment,
}

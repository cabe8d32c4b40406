"""No import to forget: a line in site-packages, run by Python at its start, that registers the sources with timm.

A program that does not use timm only pays for a look at the name of each module that is imported. The package itself
is imported when timm is, and nothing that goes wrong then is anybody's business: where the package has been uninstalled
the line does nothing. Processes that a launcher starts, and kernels of notebooks, read it as well.
"""

import os
import site
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from ..utils.files import replacing

FILE = "timm-ghn-init.pth"
_HOOK = """
class TimmGhnInit:
    def find_spec(name, path=None, target=None):
        if name == "timm":
            sys.meta_path.remove(TimmGhnInit)
            try:
                import timm_ghn_init
            except Exception:
                pass

if not any(getattr(finder, "__name__", "") == "TimmGhnInit" for finder in sys.meta_path):  # some venvs are read twice
    sys.meta_path.insert(0, TimmGhnInit)
"""
LINE = f"import sys; exec({_HOOK!r}, {{'sys': sys}})\n"


def enable() -> Path:
    """Have timm know the sources in every program of this environment.

    Returns:
        The file that does it: in the folder that the package is installed in, or where that may not be written to in
        another that this environment reads.

    Raises:
        RuntimeError: the package is not installed in this environment, or none of its folders may be written to.
        OSError: the file cannot be written.
    """
    folders = _folders()
    homes = [f for f in folders if any(distributions(name="timm-ghn-init", path=[str(f)]))]
    if not homes:
        raise RuntimeError(
            f"timm-ghn-init is not installed in {' or '.join(map(str, folders))}, so other programs would not find it: "
            "install it there, with pip install, first."
        )
    for folder in dict.fromkeys((homes[0], *folders)):
        if os.access(folder, os.W_OK):
            with replacing(folder / FILE) as temporary:
                temporary.write_text(LINE, encoding="utf-8")
            return folder / FILE
    raise RuntimeError(f"{homes[0]} may not be written to. Ask whoever owns it, or install into a venv.")


def disable() -> list[Path]:
    """Undo `enable`.

    Returns:
        The files that were removed.

    Raises:
        OSError: one cannot be removed.
    """
    found = enabled()
    for file in found:
        file.unlink()
    return found


def enabled() -> list[Path]:
    """The files of `enable` that Python reads in this environment."""
    return [file for folder in _folders() if (file := folder / FILE).is_file()]


def _folders() -> list[Path]:
    """Folders in which Python looks for such files: this environment's, then the user's own if that is in use."""
    own = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(p) for p in dict.fromkeys(map(os.path.realpath, (*own, *users))) if os.path.isdir(p)]

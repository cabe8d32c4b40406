"""What the processes of the fetch tests do. Imported by them, so it must not need pytest."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from timm_ghn_init.checkpoints import load as checkpoints
from timm_ghn_init.sources import KNOWN


def fetch_from(url: str, home: str, blob: str) -> None:
    """Fetch `ghn2`, for once the file at `url`, into `home`."""
    os.environ.update(TIMM_GHN_HOME=home, TIMM_GHN_ENDPOINT=url)
    KNOWN["ghn2"] = replace(KNOWN["ghn2"], blob=blob)
    checkpoints.fetch("ghn2")


def peaks_of_memory(downloaded: Path, small: Path, home: Path) -> tuple[int, int]:
    """Bytes that converting a file of the Hub takes, and loading what was converted.

    Args:
        small: a GHN that is loaded before, so that all is imported.
    """
    os.environ["TIMM_GHN_HOME"] = str(home)
    checkpoints.download_from_hub = lambda *_: downloaded  # type: ignore[assignment]
    checkpoints.load_ghn(small)
    kept: list[object] = []

    def memory(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    def peak(do: Callable[[str], object]) -> int:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        before = memory("VmRSS")
        kept.append(do("ghn3-xl"))
        return memory("VmHWM") - before

    return peak(checkpoints.fetch), peak(checkpoints.load_ghn)

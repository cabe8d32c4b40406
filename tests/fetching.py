"""What the processes of the fetch tests do. Imported by them, so it must not need pytest."""

import os
from dataclasses import replace
from typing import Any

from timm_ghn_init.sources import KNOWN


def serve_from(url: str, home: str, blob: str) -> None:
    """Let `ghn2` be the file at `url`, kept in `home`."""
    os.environ.update(TIMM_GHN_HOME=home, TIMM_GHN_ENDPOINT=url)
    KNOWN["ghn2"] = replace(KNOWN["ghn2"], blob=blob)


def fetch_and_say(url: str, home: str, blob: str, start: Any, answers: Any) -> None:
    from timm_ghn_init.checkpoints import load as checkpoints

    serve_from(url, home, blob)
    start.wait(60)
    answers.put(str(checkpoints.fetch("ghn2")))

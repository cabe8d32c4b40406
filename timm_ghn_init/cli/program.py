"""`python -m timm_ghn_init`: a command of the command line, or a script with the sources registered."""

import os
import sys
from collections.abc import Sequence

from ..integration import runner
from ..utils.text import did_you_mean
from . import commands
from . import main as run_command
from .messages import PROG


def main(argv: Sequence[str]) -> int:
    """Run a command of the command line, or a script or module as `__main__`.

    Args:
        argv: what follows `python -m timm_ghn_init`. The first word decides: the name of a command or an option means
            the command line, `-m` is followed by the name of a module, anything else must be a script: a path that
            ends in .py, or the path of an existing file.

    Returns:
        The exit status, 2 for a mistake.

    Raises:
        SystemExit: by the script or by argparse.
        Exception: whatever the script raises.
    """
    first, rest = (argv[0], argv[1:]) if argv else ("", ())
    try:
        if first == "-m" and rest:
            return runner.run_module(rest[0], rest[1:])
        if not first or (first.startswith("-") and first != "-m") or first in commands():
            return run_command(argv)
        if first.endswith(".py") or os.path.isfile(first):
            return runner.run_script(first, rest)
        message = (
            "-m needs the name of a module"
            if first == "-m"
            else (
                f"{first!r} is neither a command ({', '.join(commands())}) nor a script "
                f"(a path that ends in .py, an existing file, or -m MODULE).{did_you_mean(first, commands())}"
            )
        )
    except runner.ScriptError as error:
        message = str(error)
    print(f"{PROG}: error: {message}", file=sys.stderr)
    return 2

"""Run an unchanged script with the sources registered: `python -m timm_ghn_init train.py ARGS...`.

The script finds what `python train.py ARGS...` (or, after `-m`, `python -m package.module ARGS...`) gives it: its own
`__main__`, `sys.argv`, `sys.path[0]`, `__file__`, exit status and tracebacks. Neither torch nor timm is imported before
the script does so.

This file executes scripts; the registration itself is what importing the package does.
"""

import builtins
import importlib
import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import SourceFileLoader
from multiprocessing import spawn
from typing import Any

from ..utils.text import Told


class ScriptError(Told):
    """A script that cannot be opened."""


def run_script(path: str, arguments: Sequence[str]) -> int:
    """Run a file as `python PATH ARGUMENTS...` does. Raises whatever the script raises."""
    file = os.path.join(os.getcwd(), path)  # not normalised: Python does not either
    loader = SourceFileLoader("__main__", file)
    try:
        source = loader.get_data(file)
    except OSError as error:
        raise ScriptError(f"cannot open {file!r}: {error.strerror}") from error
    main = _fresh_main()
    vars(main).update(__file__=file, __loader__=loader, __cached__=None)
    sys.argv[:] = [path, *arguments]
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = os.path.dirname(os.path.realpath(file))  # `python -m` has put the working directory there
    return _execute(main, lambda: exec(loader.source_to_code(source, file), vars(main)))


def run_module(name: str, arguments: Sequence[str]) -> int:
    """Run a module or package as `python -m NAME ARGUMENTS...` does. Raises whatever it raises."""
    main = _fresh_main()
    sys.argv[:] = ["-m", *arguments]  # the first becomes the module's path when it is found
    return _execute(main, partial(runpy._run_module_as_main, name))  # type: ignore[attr-defined]  # as `python -m`


def _fresh_main() -> types.ModuleType:
    """The script's `__main__`; it stays there until the process ends, for what runs at exit and in threads."""
    main = types.ModuleType("__main__")
    # The second name is multiprocessing's, by which children send back objects of the script's classes.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    vars(main).update(__builtins__=builtins)
    return main


def _execute(main: types.ModuleType, run: Callable[[], Any]) -> int:
    _register_in_children()
    try:
        run()
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames(main)
        raise
    return 0


def _hide_our_frames(main: types.ModuleType) -> None:
    """Let the hook that prints an uncaught error see the part of its traceback that is the script's."""
    hook, script = sys.excepthook, vars(main)

    def print_error(kind: Any, value: BaseException, trace: Any) -> None:
        sys.excepthook = hook
        ours = trace
        while ours is not None and ours.tb_frame.f_globals is not script:
            ours = ours.tb_next
        if ours is not None or isinstance(value, SyntaxError):  # which names its place itself
            trace = ours
        hook(kind, value.with_traceback(trace), trace)

    sys.excepthook = print_error


def _register_in_children() -> None:
    """Register the sources in the processes as well that multiprocessing starts from nothing ("spawn", "forkserver").

    Such a process first unpickles what its parent has prepared for it, then imports the script.
    """
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**original(name), __package__: _Import(__package__)}

    spawn.get_preparation_data = get_preparation_data


class _Import:
    """Its unpickling imports a module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.name,)

"""Run the code of the tutorial and the README, and compare what it prints with what the pages show.

    python benchmarks/tutorial.py            all blocks; exit status 1 if one prints something else
    python benchmarks/tutorial.py --update   write what is printed into the pages
    python benchmarks/tutorial.py --quick    without slow blocks

Blocks of a page share one Python namespace and one empty folder. Only durations ("0.48 s") may differ. A block after
the comment `<!-- slow -->` takes long; tests leave it out. Blocks after any other comment are not run.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from timm_ghn_init.cli import main as command

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tutorial.md")
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """Code and the output that the page shows under it.

    Attributes:
        language: "python" or "sh".
        code: as it stands on the page.
        shown: the text under it, None if there is none.
        span: where that text begins and ends in the page.
        slow: whether tests leave it out.
    """

    language: str
    code: str
    shown: str | None
    span: tuple[int, int]
    slow: bool


def blocks(page: str) -> list[Block]:
    """All blocks of a page that are to be run, in their order."""
    found = list(FENCE.finditer(page))
    result = []
    for fence, following in zip(found, [*found[1:], None], strict=True):
        if fence["language"] not in ("python", "sh") or fence["mark"] not in (None, "slow"):
            continue
        output = following if following and following["language"] == "text" else None
        shown, span = (output["code"], output.span("code")) if output else (None, (0, 0))
        result.append(Block(fence["language"], fence["code"], shown, span, fence["mark"] == "slow"))
    return result


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block in this process and return what it prints; `names` is the namespace of Python blocks."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if block.language == "python":
            exec(block.code, names)
        else:
            for line in block.code.replace("\\\n", " ").splitlines():
                printed.write(_run_command(line))
    return printed.getvalue()


def _run_command(line: str) -> str:
    """The output of one `timm-ghn-init` command, with `| head -N` or `| tail -N` applied."""
    words, _, cut = line.partition("|")
    program, *arguments = shlex.split(words, comments=True)
    if program != "timm-ghn-init":
        raise ValueError(f"{program} is not a command of this package")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = command(arguments)
    if status:
        raise RuntimeError(f"{line}: exit status {status}")
    lines = printed.getvalue().splitlines(keepends=True)
    if cut:
        tool, number = cut.split()
        lines = {"head": lines[: -int(number)], "tail": lines[int(number) :]}[tool]
    return "".join(lines)


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d+ s\b", "# s", text)


def check(path: Path, slow: bool = True, update: bool = False) -> list[str]:
    """Run a page and list the blocks that print something else than it shows.

    Args:
        path: of the page.
        slow: run the slow blocks as well.
        update: write what is printed into the page.
    """
    page, names, faults, changes = path.read_text(encoding="utf-8"), {"__name__": "__main__"}, [], []
    for block in blocks(page):
        if block.slow and not slow:
            continue
        printed = run(block, names)
        if block.shown is None or without_times(printed) == without_times(block.shown):
            continue
        changes.append((block.span, printed))
        faults.append(f"{path.name}: this block\n{block.code}prints\n{printed}but the page shows\n{block.shown}")
    if update:
        for (start, end), printed in reversed(changes):
            page = page[:start] + printed + page[end:]
        path.write_text(page, encoding="utf-8")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write what is printed into the pages")
    parser.add_argument("--quick", action="store_true", help="without the slow blocks")
    args = parser.parse_args()
    faults = []
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TIMM_GHN_HOME"] = f"{folder}/home"
            before = os.getcwd()
            os.chdir(folder)
            try:
                faults += check(ROOT / page, not args.quick, args.update)
            finally:
                os.chdir(before)
    print("\n".join(faults) or "All blocks print what the pages show.")
    return 1 if faults and not args.update else 0


if __name__ == "__main__":
    sys.exit(main())

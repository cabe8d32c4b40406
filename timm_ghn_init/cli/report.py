"""`report`: fine-tuning runs as a page."""

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import command, opt
from .files import output_path, writing
from .messages import UserError
from .results import show


@command(
    "report runs.jsonl --correlations correlations.json -o report.html",
    opt("runs", "results of finetune", metavar="RUNS.jsonl"),
    opt(
        "--correlations", "also show this output of analyze correlations; repeatable (default: none)", default=[],
        action="append", metavar="FILE.json",
    ),
    opt("-o --output", "the page", required=True, metavar="REPORT.html"),
)  # fmt: skip
def report(args: argparse.Namespace) -> int:
    """Write the results of finetune as one HTML page: table, curves, correlations, commands."""
    from ..lab.analysis import experiments, page
    from ..lab.finetune.results import read

    output = output_path(args.output, (".html",))
    runs = Path(args.runs)
    if not runs.is_file():
        raise UserError(f"{runs}: there is no such file. finetune ... -o {runs} writes one.")
    found, left_out = experiments(read(runs))
    if not found:
        raise UserError(f"{runs} holds no finished run of finetune.")
    measured = [_read_correlations(Path(path)) for path in args.correlations]
    text = page(found, measured, left_out)
    with writing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    show(args, {"output": output}, str(output))
    return 0


def _read_correlations(path: Path) -> Any:
    from ..lab.analysis import check_correlations

    content = path.read_bytes()
    try:
        data = json.loads(content)
        check_correlations(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not an output of analyze correlations: {error}") from error
    return data

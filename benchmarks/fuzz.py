"""Files that nobody wrote in good faith, for as long as one likes: they are read as a GHN, or refused with one error.

    python benchmarks/fuzz.py --minutes 10

What is tried is what `tests/test_fuzz.py` tries for some seconds: pickles of random instructions, sound files of every
format with bytes changed, safetensors headers. Prints how many there were, how many were refused, the longest that one
took, and by how much the memory of the process grew. An input that ends otherwise is shown by hypothesis, made as small
as it can be.
"""

import argparse
import random
import resource
import sys
import time
from pathlib import Path

from hypothesis import Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile_files import INPUTS, attempt

ROUND = 500  # inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="+", choices=INPUTS, default=list(INPUTS), metavar="KIND")
    args = parser.parse_args()
    print(f"| {'input':<14} | tried | refused | read | slowest, ms | memory, MB |\n|---|---|---|---|---|---|")
    for kind in args.kinds:
        print(row(kind, 60 * args.minutes / len(args.kinds)), flush=True)


def row(kind: str, budget: float) -> str:
    results = {"refused": 0, "read": 0}
    slowest, before, end = 0.0, 0, time.monotonic() + budget

    @settings(max_examples=ROUND, deadline=None, database=None, phases=(Phase.generate, Phase.shrink))
    @given(INPUTS[kind])
    def try_one(data: bytes) -> None:
        nonlocal slowest
        begun = time.process_time()
        results[attempt(data)] += 1
        slowest = max(slowest, time.process_time() - begun)

    while time.monotonic() < end:
        seed(random.getrandbits(64))(try_one)()
        before = before or peak()
        slowest = slowest if sum(results.values()) > ROUND else 0.0  # the first has imported everything
    counts = f"{sum(results.values()):,} | {results['refused']:,} | {results['read']:,}"
    return f"| {kind:<14} | {counts} | {1000 * slowest:.0f} | {(peak() - before) / 1024:.0f} |"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()

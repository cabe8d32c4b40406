"""Whatever is in a file, it is read as a GHN or refused with the one error that is promised; nothing in it is run.

`python benchmarks/fuzz.py` tries the same for as long as one likes.
"""

from collections.abc import Callable

import pytest

pytest.importorskip("hypothesis")

from hostile_files import INPUTS, RAN, attempt, sound_files
from hypothesis import given, settings

EXAMPLES = 200


@pytest.mark.parametrize("kind", INPUTS)
def test_hostile_files(kind: str, record_property: Callable[[str, object], None]) -> None:
    results: list[str] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(INPUTS[kind])
    def try_one(data: bytes) -> None:
        results.append(attempt(data))

    try_one()
    record_property("tried", len(results))
    assert len(results) >= EXAMPLES
    assert results.count("refused") > EXAMPLES / 4


def test_what_is_damaged_was_sound() -> None:
    assert {attempt(data) for name, data in sound_files().items() if "joblib" not in name} == {"read"}


def test_the_payload_works() -> None:
    import pickle

    pickle.loads(b"chostile_files\nran\n)R.")
    assert RAN == [()]
    RAN.clear()

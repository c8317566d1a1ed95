"""Lines of the search while it runs."""

from __future__ import annotations

import pytest

from search.cli.console import Console, SearchBar
from search.trials import EndedTrial
from spaces.candidate import Candidate
from tests.search_tests.measurements import complete_outcome


@pytest.mark.parametrize(
    ("spent", "gain", "expected"),
    [
        (120.0, 0.048, ", about +0.048 to gain | 480 s left"),
        (120.0, None, "at +0.10% loss | 480 s left"),
        (600.0, 0.048, "at +0.10% loss | 0 s left"),
    ],
)
def test_a_line_says_what_the_time_left_may_still_gain(
    spent: float, gain: float | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = complete_outcome(0.2, 5.0, 0.001)
    with SearchBar(Console(quiet=False, as_json=False), 600.0) as bar:
        bar.told(EndedTrial(3, Candidate(), outcome, 2.0), 0.25, gain, outcome.measurement, "3 benchmarked", spent)
    assert expected in "".join(capsys.readouterr())

"""Lines of the search while it runs."""

from __future__ import annotations

import pytest

from search.cli.console import Console, SearchBar
from search.trials import EndedTrial
from spaces.candidate import Candidate
from tests.search_tests.measurements import complete_outcome


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1e-4, ", about +0.048 to gain |"),
        (1e-2, ", about +0.750 to gain |"),
        (None, "at 0.10% loss |"),
        (0.0, "+0.000 to gain"),
    ],
)
def test_a_line_says_what_the_time_left_may_still_gain(
    rate: float | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate for 480 of 600 seconds, and no more than is missing to 1."""
    outcome = complete_outcome(0.2, 5.0, 0.001)
    with SearchBar(Console(quiet=False, as_json=False), 600.0) as bar:
        bar.told(EndedTrial(3, Candidate(), outcome, 2.0), 0.25, outcome.measurement, "3 benchmarked", 120.0, rate)
    said = "".join(capsys.readouterr())
    assert expected in said.replace("+0.10%", "0.10%") and "480 s left" in said

"""Counts of late requests, against a list of what became of each."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.http.lateness import Lateness

MS = 1_000_000


@dataclass
class Known:
    """What became of a request; `end` is None while it runs."""

    start: int
    end: int | None = None
    refused: bool = False
    counts: bool = True


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 30),  # milliseconds since the event before
        st.sampled_from(["begin", "answer", "refuse", "turn away", "fail", "replace", "count"]),
        st.integers(0, 100),
    ),
    max_size=60,
)


@given(EVENTS)
def test_each_request_counts_once(events: list[tuple[int, str, int]]) -> None:
    found, known, now = Lateness(), dict[int, Known](), 0
    found.slo_ms = 20.0
    turned_away = 0
    for step, event, which in events:
        now += step
        running = [number for number, one in known.items() if one.end is None]
        if event == "begin":
            known[found.began(now * MS)] = Known(now)
        elif event == "turn away":
            found.refused()
            turned_away += 1
        elif event == "count":
            assert found.counts(now * MS) == expected(known, now, turned_away)
        elif event == "replace":
            # The requests so far were read by the controller, which replaced the model.
            assert found.counts(now * MS) == expected(known, now, turned_away)
            found.model_replaced()
            for number in running:
                known[number].counts = now - known[number].start > 20
        elif running:
            number = running[which % len(running)]
            known[number].end = now
            if event == "answer":
                found.answered(number, now * MS)
            elif event == "refuse":
                # Overdue where it was looked at in time; refused otherwise: late in both cases.
                found.refused(number)
                known[number].refused = True
            else:
                found.counts(now * MS)
                found.failed(number)
                known[number].counts &= now - known[number].start > 20
    assert found.counts(now * MS) == expected(known, now, turned_away)


def expected(known: dict[int, Known], now: int, turned_away: int) -> tuple[int, int]:
    counted = [one for one in known.values() if one.counts]
    late = [one for one in counted if one.refused or (now if one.end is None else one.end) - one.start > 20]
    ended = [one for one in counted if one.end is not None]
    return turned_away + len(ended) + len([one for one in late if one.end is None]), turned_away + len(late)

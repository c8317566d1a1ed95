"""Counts of late requests, against a list of what became of each."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.control.lateness import Lateness

MS = 1_000_000


@dataclass
class Known:
    """Fate of a request: None while it runs and is not overdue, "late", "in time", or "left out"."""

    start: int
    fate: str | None = None


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
    found, known, ended, now = Lateness(), dict[int, Known](), set[int](), 0
    found.slo_ms = 20.0
    turned_away = 0

    def look() -> None:
        for one in known.values():
            if one.fate is None and now - one.start > 20:
                one.fate = "late"
        fates = [one.fate for one in known.values()]
        late = turned_away + fates.count("late")
        assert found.counts(now * MS) == (late + fates.count("in time"), late)

    for step, event, which in events:
        now += step
        running = [number for number in known if number not in ended]
        if event == "begin":
            known[found.began(now * MS)] = Known(now)
        elif event == "turn away":
            found.refused()
            turned_away += 1
        elif event == "count":
            look()
        elif event == "replace":
            # The controller has read the counts before it replaces the model.
            look()
            found.model_replaced()
            for one in known.values():
                one.fate = one.fate or "left out"
        elif running:
            number = running[which % len(running)]
            one = known[number]
            ended.add(number)
            if event == "answer":
                found.answered(number, now * MS)
                one.fate = one.fate or ("late" if now - one.start > 20 else "in time")
            elif event == "refuse":
                found.refused(number)
                one.fate = one.fate or "late"
            else:
                look()
                found.failed(number)
                one.fate = one.fate or "left out"
    look()

"""Counts between the server and a process that may end at any moment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objectives.shadow.state import Counts, Lost
from objectives.shadow.tally import Tally

# What happens: a drop or a failure in the server, a message with or without its reply, a new process.
EVENTS = st.lists(st.sampled_from(["drop", "fail", "reply", "no reply", "new process"]), max_size=40)


@given(EVENTS)
def test_nothing_is_lost_or_counted_twice_and_the_total_never_falls(events: list[str]) -> None:
    tally = Tally()
    process = Counts()  # what the process, or its file, knows
    dropped = failed = shadowed = 0
    for event in events:
        before = tally.total
        if event == "drop":
            tally.add(Counts(dropped=1))
            dropped += 1
        elif event == "fail":
            tally.add(Counts(failed=1), "it hung")
            failed += 1
        elif event == "reply":
            process = process + tally.hand_over().counts + Counts(shadowed=1)
            shadowed += 1
            assert tally.total.dropped == before.dropped, "also before the reply"
            tally.confirm(process)
        elif event == "no reply":
            tally.hand_over()
            assert tally.total == before
        else:
            tally.take_back()
            assert tally.total == before
        if event == "no reply":
            tally.take_back()
        assert all(now >= then for now, then in zip(vars(tally.total).values(), vars(before).values(), strict=True))
    assert tally.total == Counts(shadowed=shadowed, dropped=dropped, failed=failed)
    tally.forget()
    assert tally.total == Counts() and tally.hand_over() == Lost()


def test_the_newest_reason_of_a_failure_is_handed_over() -> None:
    tally = Tally()
    tally.add(Counts(failed=1), "first")
    tally.hand_over()
    tally.take_back()
    tally.add(Counts(failed=1), "second")
    tally.add(Counts(dropped=1))
    assert tally.hand_over() == Lost(Counts(failed=2, dropped=1), "second")

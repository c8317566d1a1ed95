"""The door beside the scheduler that it stands before: what it shuts out, the scheduler refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.http.intake.door import Door
from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.scheduler import GroupLoad, Scheduler
from spaces.techniques.placement import Admission

# Bytes of a row. An idle replica has time for any request of 60 rows or fewer.
BYTES = 8
MS = 1_000_000


class Entry(NamedTuple):
    rows: int
    submitted_ns: int = 0
    whole: None = None


steps = st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=60)
admissions = st.builds(Admission, queue=st.none() | st.integers(1, 4), deadline_ms=st.none() | st.floats(0.061, 0.2))


@given(replicas=st.integers(1, 3), admission=admissions, steps=steps)
def test_what_the_door_shuts_out_the_scheduler_refuses(replicas: int, admission: Admission, steps: Any) -> None:
    """Requests of 1 us a row come and end in any order; each is shown to the door first."""
    scheduler: Scheduler[Entry] = Scheduler(replicas, None, admission)
    scheduler.admission.learn(10, 10_000)
    door = Door()
    running: list[tuple[int, int]] = []
    for comes, number in steps:
        if not comes:
            if running:
                scheduler.finish(*running.pop(number % len(running)))
            continue
        load = scheduler.load
        shut = door.shut(load, 0, BYTES * number, 0)
        try:
            scheduler.submit([Entry(number)])
        except RefusedError as error:
            door.refused(load, str(error.reason), 0, BYTES * number, 0)
            continue
        assert shut is None
        running += [(at, entry.rows) for at in range(replicas) for entry in _taken(scheduler, at)]


def _taken(scheduler: Scheduler[Entry], replica: int) -> list[Entry]:
    """Take what a replica has queued; it counts as outstanding until it is finished."""
    taken = scheduler.take(replica, 0)
    return list(taken) if isinstance(taken, list) else []


def test_the_door_is_shut_to_as_much_for_a_moment() -> None:
    door, busy = Door(), GroupLoad(2, 100)
    assert door.shut(busy, 0, 10**9, 9 * MS) is None, "nothing was refused"
    door.refused(busy, "queue full", 0, 1000, 9 * MS)
    assert door.shut(busy, 0, 1000, 9 * MS) == door.shut(GroupLoad(3, 150), 19 * MS, 2000, 10 * MS) == "queue full"
    for load, now_ns, length, loop_ns in (
        (busy, 21 * MS, 1000, 9 * MS),
        (busy, 0, 999, 9 * MS),
        (busy, 0, 1000, 8 * MS),
        (GroupLoad(1, 100), 0, 1000, 9 * MS),
        (GroupLoad(2, 99), 0, 1000, 9 * MS),
        (None, 0, 1000, 9 * MS),
    ):
        assert door.shut(load, now_ns, length, loop_ns) is None


def test_what_an_idle_replica_refuses_leaves_the_door_open() -> None:
    door = Door()
    door.refused(GroupLoad(0, 5), "deadline", 0, 10, 0)
    door.refused(GroupLoad(0, 0), "deadline", 0, 1000, 0)
    assert door.shut(GroupLoad(0, 5), 0, 1000, 0) is None

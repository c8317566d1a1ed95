"""The door beside the scheduler that it stands before: what it shuts out, the scheduler refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.http.door import Door
from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.scheduler import GroupLoad, Scheduler
from spaces.techniques.placement import Admission

# Bytes of a row. An idle replica has time for any request of 60 rows or fewer.
BYTES = 8
MS = 1_000_000


class Entry(NamedTuple):
    rows: int
    submitted_ns: int = 0


class Loaded:
    """A pool as the door sees it."""

    def __init__(self, load: GroupLoad | None) -> None:
        self.load = load


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
        shut = door.shut(Loaded(scheduler.load), BYTES * number, 0)  # type: ignore[arg-type]
        try:
            woken = scheduler.submit([Entry(number)])
        except RefusedError as error:
            door.refused(Loaded(scheduler.load), str(error.reason), BYTES * number, 0)  # type: ignore[arg-type]
            continue
        assert shut is None
        assert len(woken) <= 1
        running += [(at, entry.rows) for at in range(replicas) for entry in _taken(scheduler, at)]


def _taken(scheduler: Scheduler[Entry], replica: int) -> list[Entry]:
    """Take what a replica has queued; it counts as outstanding until it is finished."""
    taken = scheduler.take(replica, 0)
    return list(taken) if isinstance(taken, list) else []


def test_the_door_is_open_before_a_refusal_for_shorter_bodies_and_for_less_load() -> None:
    door = Door()
    busy: Any = Loaded(GroupLoad(2, 100))
    assert door.shut(busy, 10**9, 9 * MS) is None
    door.refused(busy, "queue full", 1000, 9 * MS)
    assert door.shut(busy, 1000, 9 * MS) == "queue full"
    assert door.shut(Loaded(GroupLoad(3, 150)), 2000, 10 * MS) == "queue full"  # type: ignore[arg-type]
    assert door.shut(busy, 1000, 8 * MS) is None
    for load, length in ((busy.load, 999), (GroupLoad(1, 100), 1000), (GroupLoad(2, 99), 1000), (None, 1000)):
        assert door.shut(Loaded(load), length, 9 * MS) is None  # type: ignore[arg-type]


def test_what_an_idle_replica_refuses_leaves_the_door_open() -> None:
    door = Door()
    idle: Any = Loaded(GroupLoad(0, 0))
    door.refused(Loaded(GroupLoad(0, 5)), "deadline", 10, 0)  # type: ignore[arg-type]
    door.refused(idle, "deadline", 1000, 0)
    assert door.shut(idle, 1000, 0) is None

"""Children that crash, fault, hang or run out of memory fail their job with a reason, and the next job is served."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from objectives.jobs.protocol import Request
from search.errors import JobError
from search.workers.processes import Done, Worker, call, open_workers, wait
from tests.serve_tests.process import wait_until
from tests.workers_tests.child import Double, Fail, Fault, Infinite, Leave, Number, OutOfMemory, Parts, Sleep, Start

ROOT = Path(__file__).resolve().parents[2]
CHILD = [sys.executable, "-m", "tests.workers_tests.child"]


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    made = Worker("builder", tmp_path / "log", CHILD)
    yield made  # type: ignore[misc]
    made.kill()


def finish(worker: Worker, request: Request[object], limit: float = 20) -> Done:
    worker.start(request, limit)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        wait([worker], 0.1)
        done = worker.poll()
        if done is not None:
            return done
    raise AssertionError("the job never ended")


def test_a_job_gives_its_result_and_progress(worker: Worker, tmp_path: Path) -> None:
    said: list[str] = []
    assert call(worker, Double(21), 20, said.append) == Number(42)
    assert said == ["working"]
    assert "noise on stdout" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("asked", "reason", "killed"),
    [
        (Fail(), "ValueError: bad thing", False),
        (Fault(), "SIGSEGV", False),
        (Leave(), "status 7", False),
        (OutOfMemory(), "SIGKILL (out of memory?)", True),
        (Infinite(), "Out of range float", False),
    ],
)
def test_a_job_that_breaks_says_why_and_the_next_is_served(
    worker: Worker, asked: Request[object], reason: str, killed: bool, tmp_path: Path
) -> None:
    done = finish(worker, asked)
    assert done.killed == killed
    assert not done.lost or done.error in (tmp_path / "log").read_text().splitlines()
    assert done.result is None
    assert done.error is not None
    assert reason in done.error
    assert "\n" not in done.error
    assert finish(worker, Double(1)).result == Number(2)


def test_what_a_child_has_started_ends_with_it(worker: Worker) -> None:
    found = finish(worker, Start()).result
    assert isinstance(found, Number)
    child = int(found.value)
    os.kill(child, 0)
    worker.kill()
    wait_until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet is a zombie, and runs no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it may end between opening and reading
        return False
    return state != "Z"


def test_a_job_that_hangs_is_ended_and_its_stacks_are_logged(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.workers.processes._STACKS_SECONDS", 2.0)
    finish(worker, Double(1))
    done = finish(worker, Sleep(60.0), limit=2.0)
    assert done.error is not None and done.lost and not done.killed
    assert "longer than 2 s" in done.error
    assert "in _sleep" in (tmp_path / "log").read_text()
    assert finish(worker, Double(2)).result == Number(4)


def test_each_announced_part_of_a_job_has_its_time(worker: Worker) -> None:
    finish(worker, Double(1))
    done = finish(worker, Parts(6, 0.5), limit=2.0)
    assert done.result == Number(6) and done.seconds > 2.9
    done = finish(worker, Parts(2, 60.0), limit=2.0)
    assert done.error is not None
    assert re.match(r"A part of the job, which began after \d+ s, took longer", done.error)


def test_the_child_lives_on_from_job_to_job(worker: Worker) -> None:
    assert finish(worker, Sleep()).result == finish(worker, Sleep()).result


def test_time_standing_still_does_not_count(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, later = time.monotonic, 0.0
    monkeypatch.setattr("search.workers.processes.time", SimpleNamespace(monotonic=lambda: clock() + later))
    worker.start(Sleep(), 500)
    worker.pause()
    later = 1000.0
    assert worker.poll() is None, "a paused job is not out of time"
    worker.resume()
    done = None
    while done is None:
        wait([worker], 0.1)
        done = worker.poll()
    assert done.error is None and done.seconds < 500


def test_a_part_that_begins_after_a_pause_has_its_whole_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is paused for 1000 s before its first part is heard of: that has its 2 s, and is ended after them."""
    finish(worker, Double(1))
    clock, later = time.monotonic, 0.0
    made = SimpleNamespace(monotonic=lambda: clock() + later, sleep=time.sleep)
    monkeypatch.setattr("search.workers.processes.time", made)
    worker.start(Parts(2, 60.0), 2.0)
    worker.pause()
    later = 1000.0
    worker.resume()
    end, done = clock() + 20, None
    while done is None and clock() < end:
        wait([worker], 0.1)
        done = worker.poll()
    assert done is not None and done.error is not None and done.seconds < 10
    assert re.match(r"A part of the job, which began after \d+ s, took longer than 2 s", done.error)


def test_a_failed_call_raises_its_reason(worker: Worker) -> None:
    with pytest.raises(JobError, match="bad thing"):
        call(worker, Fail(), 20, lambda line: None)


def test_workers_end_with_their_block_whatever_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.workers.processes.Worker", lambda kind, log: Worker(kind, log, CHILD))
    with pytest.raises(KeyboardInterrupt), open_workers(tmp_path, builders=2) as workers:
        started = [call(worker, Sleep(), 20, print).value for worker in (*workers.builders, workers.meter)]
        assert len(set(started)) == 3
        raise KeyboardInterrupt
    for child in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["builder-0.log", "builder-1.log", "meter.log"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_children_die_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    """Children die even while they stand still."""
    code = f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from search.workers.processes import Worker, wait
from tests.workers_tests.child import Sleep
w = Worker("builder", Path({str(tmp_path / "log")!r}), {CHILD!r})
w.start(Sleep(), 99)
while (done := w.poll()) is None: wait([w], 0.1)
w.start(Sleep(99.0), 99)
w.pause()
print(done.result.value, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not _runs(child))

"""Interference beside a block: read from a written /proc, judged on rows made by hand; a real burner is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement import interference as module
from objectives.measurement.interference import (
    Interference,
    InterferenceMonitor,
    disturbance,
    least_disturbed,
    taken_share,
    undisturbed,
)

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
OURS = 100


class Machine:
    """A /proc in a folder: seconds of each core and of each thread, and a clock of its own. Cores 0 and 2 are allowed.

    Thread (100, n) is one of this process.
    """

    def __init__(self, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.wall, self.cpu = proc, 0.0, 0.0
        self.clock(0, 0)
        (proc / "self").symlink_to(str(OURS))
        clock = SimpleNamespace(perf_counter=lambda: self.wall, process_time=lambda: self.cpu)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})

    def clock(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = wall, cpu

    def cores(self, seconds: Mapping[int, Sequence[float]]) -> None:
        """Seconds (user, nice, system, idle, iowait, irq, softirq, steal) of each core, as man 5 proc has them."""
        lines = [f"cpu{core} {' '.join(str(round(s * TICKS)) for s in of)} 0 0" for core, of in seconds.items()]
        (self.proc / "stat").write_text("\n".join(["cpu  9 9 9 9 9 9 9 9 0 0", *lines, "intr 12 0 0", "ctxt 7", ""]))

    def threads(self, seconds: Mapping[tuple[int, int], tuple[float, float]]) -> None:
        """Seconds (ran, ready and waiting) of each thread."""
        for (process, thread), (ran, waited) in seconds.items():
            folder = self.proc / str(process) / "task" / str(thread)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "schedstat").write_text(f"{round(ran * 1e9)} {round(waited * 1e9)} 17\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path, monkeypatch)
    machine.cores({core: [5, 0, 5, 50, 0, 0, 0, 1] for core in (0, 1, 2, 20)})
    machine.threads({(OURS, 100): (2, 1), (OURS, 101): (3, 0.5), (7, 7): (40, 9), (8, 8): (1, 1)})
    return machine


def test_waiting_is_that_of_our_own_threads(machine: Machine) -> None:
    monitor = InterferenceMonitor(machine.proc)
    machine.threads({(OURS, 100): (2, 1.25), (OURS, 101): (3, 0.625), (7, 7): (40, 99)})
    machine.clock(10, 0)
    assert monitor.stop().waiting == pytest.approx(0.375)


def test_a_thread_of_ours_that_begins_within_the_block_waits_too(machine: Machine) -> None:
    monitor = InterferenceMonitor(machine.proc)
    machine.threads({(OURS, 102): (0.5, 0.75)})
    machine.clock(10, 0.5)
    assert monitor.stop().waiting == pytest.approx(0.75)


def test_foreign_time_is_that_of_the_threads_of_others(machine: Machine) -> None:
    """Ours took 4 s, two neighbours 3 s: of 2 cores and 10 s, 13 are idle. The ticks stand still."""
    monitor = InterferenceMonitor(machine.proc)
    machine.threads({(OURS, 100): (4, 1), (OURS, 101): (5, 0.5), (7, 7): (42, 9), (8, 8): (2, 1)})
    machine.clock(10, 4)
    found = monitor.stop()
    assert (found.wall, found.cpu, found.waiting, found.stolen) == (10, 4, 0, 0)
    assert found.foreign == pytest.approx(3)
    assert found.idle == pytest.approx(13)


def test_the_threads_of_cores_that_are_not_ours_are_no_neighbours(machine: Machine) -> None:
    """Others ran for 30 s, though our two cores were busy for 5 s, of which 4 were ours: 20 ms are a tick on each."""
    monitor = InterferenceMonitor(machine.proc)
    machine.threads({(OURS, 100): (4, 1), (OURS, 101): (5, 0.5), (7, 7): (70, 9), (8, 8): (1, 1)})
    machine.cores({core: [7.5, 0, 5, 57.5, 0, 0, 0, 1] for core in (0, 1, 2, 20)})
    machine.clock(10, 4)
    assert monitor.stop().foreign == pytest.approx(1, abs=0.05)


def test_too_many_threads_to_read_tell_nothing_of_the_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They become fewer within the block, or more; their time until then is none of it."""
    for before, after in ((1, 2000), (2000, 1)):
        monkeypatch.setattr(module, "_MOST_THREADS", before)
        monitor = InterferenceMonitor(machine.proc)
        monkeypatch.setattr(module, "_MOST_THREADS", after)
        machine.clock(machine.wall + 10, machine.cpu + 4)
        assert monitor.stop().foreign == 0


def test_the_time_of_children_is_our_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 7 is a server that this one measures: of the 3 s that others took, 2 are its own; it waited 0.5 s."""
    seconds = {(7, 99): 40.0}
    monkeypatch.setattr(module, "cpu_seconds_of", lambda processes: seconds[processes])
    monitor = InterferenceMonitor(machine.proc, children=(7, 99))
    seconds[7, 99] = 42.0
    machine.threads({(OURS, 100): (4, 1.25), (OURS, 101): (5, 0.5), (7, 7): (42, 9.5), (8, 8): (2, 1)})
    machine.clock(10, 4)
    found = monitor.stop()
    assert (found.cpu, found.waiting) == pytest.approx((6, 0.75))
    assert found.foreign == pytest.approx(1) and found.idle == pytest.approx(13)


def test_the_cpu_time_of_another_process_is_what_it_says_itself() -> None:
    """The time is of all threads of a process, and none once it has ended."""
    burn = "while time.process_time() < 0.05: pass"
    code = f"import sys, time\n{burn}\nprint(time.process_time(), flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        told = float(process.stdout.readline())
        assert told <= module.cpu_seconds_of((process.pid,)) < told + 0.05
        process.communicate()
    assert module.cpu_seconds_of((process.pid,)) == 0


def test_foreign_time_of_what_is_not_seen_is_that_of_the_ticks(machine: Machine) -> None:
    """The cores 0 and 2 were busy 6 and 3.5 of 10 s, 4 of them ours; two ticks of each core are within the error.

    Idle, waiting for a disk and being stolen are not busy, and core 1 is not ours, nor 20 core 2.
    """
    monitor = InterferenceMonitor(machine.proc)
    not_ours = [99, 0, 99, 50, 0, 0, 0, 9]
    busy, less = [8, 1, 6, 55, 1, 0.5, 0.5, 1], [8, 0, 5.5, 55, 1, 0, 0, 1]
    machine.cores({0: busy, 1: not_ours, 2: less, 20: not_ours})
    machine.clock(10, 4)
    found = monitor.stop()
    assert found.foreign == pytest.approx(6 + 3.5 - 4 - 4 / TICKS, abs=1e-9)
    assert found.idle == pytest.approx(2 * 10 - 4 - found.foreign)
    assert found.stolen == 0


def test_what_the_hypervisor_took_is_stolen(machine: Machine) -> None:
    monitor = InterferenceMonitor(machine.proc)
    machine.cores({0: [5, 0, 5, 50, 0, 0, 0, 1.5], 1: [5, 0, 5, 50, 0, 0, 0, 99], 2: [5, 0, 5, 50, 0, 0, 0, 3]})
    machine.clock(10, 4)
    found = monitor.stop()
    assert found.stolen == pytest.approx(2.5)
    assert found.foreign == 0


def test_a_crowd_of_threads_is_not_read_one_by_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_THREADS", 3)
    monitor = InterferenceMonitor(machine.proc)
    machine.threads({(7, 7): (48, 9), (OURS, 100): (2, 2)})
    machine.clock(10, 0)
    found = monitor.stop()
    assert found.foreign == 0, "four threads are too many, and the ticks stood still"
    assert found.waiting == pytest.approx(1), "our own are always read"


def test_a_thread_that_ends_makes_no_negative_time(machine: Machine) -> None:
    monitor = InterferenceMonitor(machine.proc)
    (machine.proc / "7" / "task" / "7" / "schedstat").unlink()
    machine.clock(10, 0)
    assert monitor.stop().foreign == 0


def test_what_the_kernel_does_not_tell_counts_as_none(machine: Machine, tmp_path: Path) -> None:
    (machine.proc / "stat").unlink()
    for file in machine.proc.glob("*/task/*/schedstat"):
        file.write_text("")
    monitor = InterferenceMonitor(machine.proc)
    machine.clock(10, 4)
    found = monitor.stop()
    assert (found.waiting, found.foreign, found.stolen, found.idle) == (0, 0, 0, 16)
    assert not found.busy


def row(waiting: float = 0.0, foreign: float = 0.0, stolen: float = 0.0) -> list[float]:
    """A block of 1 s, half of it ours."""
    return [1.0, 0.5, waiting, foreign, 1.0, stolen, 3.0]


def disturbed(*rows: list[float]) -> list[bool]:
    found: list[bool] = (disturbance(taken_share(np.array(rows)[:, None])) > 1).tolist()
    return found


CALM = [row(waiting=0.01 * (i % 2), foreign=0.01) for i in range(10)]


def test_blocks_of_a_quiet_machine_are_not_disturbed() -> None:
    assert disturbed(*CALM) == [False] * 10


@pytest.mark.parametrize("waiting", [0.1, 0.5, 5.0])
def test_what_the_deployment_itself_waits_decides_nothing(waiting: float) -> None:
    """Blocks in which its own threads waited would be those in which it was slow."""
    assert disturbed(*CALM, row(waiting=waiting))[-1] is False


def test_cpu_time_of_others_above_that_of_calm_blocks_is_a_disturbance() -> None:
    rows = [*CALM, row(foreign=0.07)]
    assert disturbed(*rows) == [False] * 10 + [True]
    assert disturbed(*reversed(rows)) == [True] + [False] * 10
    assert disturbed(*CALM, row(foreign=0.05))[-1] is False


def test_stolen_time_counts_as_that_of_others() -> None:
    assert disturbed(*CALM, row(stolen=0.07))[-1] is True
    assert disturbed(*CALM, row(stolen=0.04, foreign=0.04))[-1] is True, "both together"


def test_a_neighbour_that_is_always_there_disturbs_no_block_in_particular() -> None:
    assert disturbed(*[row(foreign=1.0)] * 10) == [False] * 10
    assert disturbed(*[row(foreign=1.0)] * 10, row(foreign=1.9))[-1] is True


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=12),
    st.sampled_from([0.125, 0.5, 4.0, 64.0]),
    st.randoms(use_true_random=False),
)
def test_the_length_of_blocks_and_their_order_play_no_part(
    shares: list[tuple[float, ...]], seconds: float, random: Any
) -> None:
    rows = np.array([row(*each) for each in shares])
    order = list(range(len(rows)))
    random.shuffle(order)
    found = disturbance(taken_share(rows[:, None]))
    assert np.array_equal(disturbance(taken_share(seconds * rows[:, None])), found), "powers of two scale exactly"
    assert np.array_equal(disturbance(taken_share(rows[order, None])), found[order])


@given(st.lists(st.floats(-3, 5), min_size=1, max_size=12), st.integers(1, 12))
def test_the_least_disturbed_fill_up_what_is_wanted(above: list[float], wanted: int) -> None:
    kept = undisturbed(np.array(above), wanted)
    calm = sum(value <= 1 for value in above)
    assert kept.sum() == max(calm, min(wanted, len(above)))
    left_out = [value for value, is_kept in zip(above, kept, strict=True) if not is_kept]
    assert all(value > 1 for value in left_out)
    assert max([v for v, k in zip(above, kept, strict=True) if k]) <= min(left_out, default=9)


def test_the_cpu_share_is_one_where_nothing_waited() -> None:
    assert Interference(2, 0.72, 0.28, 0, 0, 0, 0).cpu_share == pytest.approx(0.72)
    assert Interference(2, 0.5, 0, 0, 0, 0, 0).cpu_share == 1
    assert Interference(2, 0, 0, 0, 0, 0, 0).cpu_share == 1


class Scripted:
    """Monitors in the order in which they are made, with the share that others took."""

    def __init__(self, *taken: float) -> None:
        self.rows = [row(foreign=share) for share in taken]

    def __call__(self) -> Any:
        return SimpleNamespace(stop=lambda: Interference(*self.rows.pop(0)))


@pytest.mark.parametrize(
    ("taken", "result"),
    [
        pytest.param([0.2], 0, id="as calm as the rest"),
        pytest.param([0.9, 0.2], 1, id="repeated once"),
        pytest.param([0.9, 0.5, 0.7], 1, id="the least disturbed of three"),
    ],
)
def test_a_disturbed_run_is_repeated_at_most_twice(taken: list[float], result: int) -> None:
    numbers, script = iter(range(9)), Scripted(*taken)
    assert least_disturbed(lambda: next(numbers), 0.18, script) == result
    assert next(numbers) == len(taken)
    numbers, script = iter(range(9)), Scripted(*taken)
    assert least_disturbed(lambda: next(numbers), 0.18, script, tries=1) == 0
    assert next(numbers) == 1


def test_no_run_is_repeated_after_the_end() -> None:
    numbers = iter(range(9))
    assert least_disturbed(lambda: next(numbers), 0.18, Scripted(0.9, 0.9), end=time.monotonic()) == 0
    assert next(numbers) == 1


CROWDED = """
import os, subprocess, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
burn = "import time; print(flush=True); end = time.monotonic() + 30\\nwhile time.monotonic() < end: pass"
with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as burner:
    try:
        burner.stdout.readline()
        from objectives.measurement.interference import InterferenceMonitor
        monitor = InterferenceMonitor()
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        found = monitor.stop()
    finally:
        burner.kill()
print(found.waiting > 0, found.foreign > 0, found.busy)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count run delays")
def test_a_burner_on_the_only_core_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", CROWDED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_process_that_ends_while_it_is_looked_at_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the process is listed, and gone when it is opened."""
    scan = os.scandir

    def gone(path: Any = ".") -> Any:
        if str(path).endswith("/7/task"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", gone)
    monitor = InterferenceMonitor(machine.proc)
    machine.clock(1, 0)
    assert monitor.stop().foreign == pytest.approx(0.0)

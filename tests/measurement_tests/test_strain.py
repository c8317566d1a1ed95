"""What a machine did beside a block: read from a written /proc, judged on rows made by hand; a real burner is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement import strain as module
from objectives.measurement.strain import DisturbedError, Strain, Watch, calm_blocks, disturbed

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
        """(user, nice, system, idle, iowait, irq, softirq, steal) of each, as man 5 proc has them."""
        lines = [f"cpu{core} {' '.join(str(round(s * TICKS)) for s in of)} 0 0" for core, of in seconds.items()]
        (self.proc / "stat").write_text("\n".join(["cpu  9 9 9 9 9 9 9 9 0 0", *lines, "intr 12 0 0", "ctxt 7", ""]))

    def threads(self, seconds: Mapping[tuple[int, int], tuple[float, float]]) -> None:
        """(ran, ready and waiting) of each."""
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
    watch = Watch(machine.proc)
    machine.threads({(OURS, 100): (2, 1.25), (OURS, 101): (3, 0.625), (7, 7): (40, 99)})
    machine.clock(10, 0)
    assert watch.strain().waiting == pytest.approx(0.375)


def test_a_thread_of_ours_that_begins_within_the_block_waits_too(machine: Machine) -> None:
    watch = Watch(machine.proc)
    machine.threads({(OURS, 102): (0.5, 0.75)})
    machine.clock(10, 0.5)
    assert watch.strain().waiting == pytest.approx(0.75)


def test_foreign_time_is_that_of_the_threads_of_others(machine: Machine) -> None:
    """Ours took 4 s, two neighbours 3 s: of 2 cores and 10 s, 13 are idle. The ticks stand still."""
    watch = Watch(machine.proc)
    machine.threads({(OURS, 100): (4, 1), (OURS, 101): (5, 0.5), (7, 7): (42, 9), (8, 8): (2, 1)})
    machine.clock(10, 4)
    strain = watch.strain()
    assert (strain.wall, strain.cpu, strain.waiting, strain.stolen) == (10, 4, 0, 0)
    assert strain.foreign == pytest.approx(3)
    assert strain.idle == pytest.approx(13)


def test_foreign_time_of_what_is_not_seen_is_that_of_the_ticks(machine: Machine) -> None:
    """In 10 s the cores 0 and 2 were busy 6 and 3.5 s, 4 of them ours; two ticks of each core are within the error.

    Idle, waiting for a disk and being stolen are not busy, and core 1 is not ours, nor 20 core 2.
    """
    watch = Watch(machine.proc)
    not_ours = [99, 0, 99, 50, 0, 0, 0, 9]
    busy, less = [8, 1, 6, 55, 1, 0.5, 0.5, 1], [8, 0, 5.5, 55, 1, 0, 0, 1]
    machine.cores({0: busy, 1: not_ours, 2: less, 20: not_ours})
    machine.clock(10, 4)
    strain = watch.strain()
    assert strain.foreign == pytest.approx(6 + 3.5 - 4 - 4 / TICKS, abs=1e-9)
    assert strain.idle == pytest.approx(2 * 10 - 4 - strain.foreign)
    assert strain.stolen == 0


def test_what_the_hypervisor_took_is_stolen(machine: Machine) -> None:
    watch = Watch(machine.proc)
    machine.cores({0: [5, 0, 5, 50, 0, 0, 0, 1.5], 1: [5, 0, 5, 50, 0, 0, 0, 99], 2: [5, 0, 5, 50, 0, 0, 0, 3]})
    machine.clock(10, 4)
    strain = watch.strain()
    assert strain.stolen == pytest.approx(2.5)
    assert strain.foreign == 0


def test_a_crowd_of_threads_is_not_read_one_by_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_THREADS", 3)
    watch = Watch(machine.proc)
    machine.threads({(7, 7): (48, 9), (OURS, 100): (2, 2)})
    machine.clock(10, 0)
    strain = watch.strain()
    assert strain.foreign == 0, "four threads are too many, and the ticks stood still"
    assert strain.waiting == pytest.approx(1), "our own are always read"


def test_a_thread_that_ends_makes_no_negative_time(machine: Machine) -> None:
    watch = Watch(machine.proc)
    (machine.proc / "7" / "task" / "7" / "schedstat").unlink()
    machine.clock(10, 0)
    assert watch.strain().foreign == 0


def test_what_the_kernel_does_not_tell_counts_as_none(machine: Machine, tmp_path: Path) -> None:
    (machine.proc / "stat").unlink()
    for file in machine.proc.glob("*/task/*/schedstat"):
        file.write_text("")
    watch = Watch(machine.proc)
    machine.clock(10, 4)
    strain = watch.strain()
    assert (strain.waiting, strain.foreign, strain.stolen, strain.idle) == (0, 0, 0, 16)
    assert not strain.disturbed


def row(waiting: float = 0.0, foreign: float = 0.0, idle: float = 1.5, stolen: float = 0.0) -> list[float]:
    """A block of 1 s, half of it ours."""
    return [1.0, 0.5, waiting, foreign, idle, stolen, 3.0]


def judged(*rows: list[float]) -> list[bool]:
    found: list[bool] = disturbed(np.array(rows)).tolist()
    return found


CALM = [row(waiting=0.01 * (i % 2), foreign=0.01, idle=0.4) for i in range(10)]


def test_a_calm_arm_is_not_disturbed() -> None:
    assert judged(*CALM) == [False] * 10


def test_a_neighbour_on_a_free_core_does_no_harm() -> None:
    assert judged(*CALM, row(waiting=0.1, foreign=0.9, idle=1.0))[-1] is False


def test_threads_that_wait_for_one_another_are_not_disturbed() -> None:
    assert judged(*CALM, row(waiting=0.9, foreign=0.02, idle=0.0))[-1] is False


def test_waiting_while_others_run_and_no_core_is_free_is_a_disturbance() -> None:
    rows = [*CALM, row(waiting=0.05, foreign=0.1, idle=0.4)]
    assert judged(*rows) == [False] * 10 + [True]
    assert judged(*reversed(rows)) == [True] + [False] * 10, "a block is judged wherever it stands"


def test_an_arm_is_compared_with_its_own_calm() -> None:
    """One whose replicas wait for one another in each block, while a small neighbour runs."""
    own = [row(waiting=0.1, foreign=0.05, idle=0.2) for _ in range(10)]
    assert judged(*own) == [False] * 10
    assert judged(*own, row(waiting=0.14, foreign=0.05, idle=0.2))[-1] is True


def test_an_arm_that_was_never_calm_is_disturbed_throughout() -> None:
    assert judged(*[row(waiting=0.3, foreign=0.5, idle=0.1)] * 10) == [True] * 10
    assert judged(*[row(waiting=0.3, foreign=0.2, idle=0.1)] * 10) == [False] * 10, "the neighbour takes too little"
    assert judged(*[row(waiting=0.14, foreign=0.5, idle=0.1)] * 10) == [False] * 10, "the arm hardly waits"


def test_stolen_time_above_that_of_calm_blocks_is_a_disturbance_by_itself() -> None:
    assert judged(*CALM, row(stolen=0.11))[-1] is True
    assert judged(*CALM, row(stolen=0.09))[-1] is False
    always = [row(stolen=0.05)] * 10
    assert judged(*always, row(stolen=0.14), row(stolen=0.16)) == [False] * 11 + [True]


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=12),
    st.sampled_from([0.125, 0.5, 4.0, 64.0]),
    st.randoms(use_true_random=False),
)
def test_the_length_of_blocks_and_their_order_play_no_part(
    shares: list[tuple[float, ...]], seconds: float, random: Any
) -> None:
    rows = np.array([row(*each) for each in shares])
    order = list(range(len(rows)))
    random.shuffle(order)
    found = disturbed(rows)
    assert np.array_equal(disturbed(seconds * rows), found), "powers of two scale exactly"
    assert np.array_equal(disturbed(rows[order]), found[order])


def test_the_cpu_share_is_one_where_nothing_waited() -> None:
    assert Strain(2, 0.72, 0.28, 0, 0, 0, 0).cpu_share == pytest.approx(0.72)
    assert Strain(2, 0.5, 0, 0, 0, 0, 0).cpu_share == 1
    assert Strain(2, 0, 0, 0, 0, 0, 0).cpu_share == 1


class Scripted:
    """Watches in the order in which they are made, with a row each."""

    def __init__(self, rows: Sequence[list[float]]) -> None:
        self.rows = iter(rows)

    def __call__(self) -> Any:
        return SimpleNamespace(strain=lambda: Strain(*next(self.rows)))


QUIET, BURDENED = row(), row(waiting=0.5, foreign=0.5, idle=0.0)


def test_disturbed_blocks_are_run_again_and_left_out() -> None:
    numbers = iter(range(100))
    script = Scripted([BURDENED, QUIET, BURDENED, BURDENED, QUIET, QUIET])
    assert calm_blocks(lambda: next(numbers), 3, script) == [1, 4, 5]
    assert next(numbers) == 6, "no more than are needed"


def test_blocks_are_compared_with_the_calmest_of_the_same_run() -> None:
    """Replicas that always wait for one another while a small neighbour runs; the second block waits for more."""
    numbers = iter(range(100))
    waits = [0.1, 0.14, 0.1, 0.1]
    script = Scripted([row(waiting=wait, foreign=0.05, idle=0.2) for wait in waits])
    assert calm_blocks(lambda: next(numbers), 3, script) == [0, 2, 3]


def test_a_machine_that_stays_busy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TIMES", 3)
    numbers = iter(range(100))
    script = Scripted([QUIET, *[BURDENED] * 20])
    with pytest.raises(DisturbedError, match="Only 1 of 6 blocks were undisturbed, 2 are needed"):
        calm_blocks(lambda: next(numbers), 2, script)
    assert next(numbers) == 6


def test_no_more_blocks_are_given_than_were_asked_for() -> None:
    """The second block waits 0.03 of its time longer than the first, which is too much until the third does too."""
    numbers = iter(range(100))
    script = Scripted([row(waiting=wait, foreign=0.05, idle=0.2) for wait in (0.0, 0.03, 0.03)])
    assert len(calm_blocks(lambda: next(numbers), 2, script)) == 2


CROWDED = """
import os, subprocess, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
burn = "import time; print(flush=True); end = time.monotonic() + 30\\nwhile time.monotonic() < end: pass"
with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as burner:
    try:
        burner.stdout.readline()
        from objectives.measurement.strain import Watch
        watch = Watch()
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        strain = watch.strain()
    finally:
        burner.kill()
print(strain.waiting > 0, strain.foreign > 0, strain.disturbed)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count run delays")
def test_a_burner_on_the_only_core_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", CROWDED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_process_that_ends_while_it_is_looked_at_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is listed and gone when it is opened."""
    scan = os.scandir

    def gone(path: Any = ".") -> Any:
        if str(path).endswith("/7/task"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", gone)
    watch = Watch(machine.proc)
    machine.clock(1, 0)
    assert watch.strain().foreign == pytest.approx(0.0)

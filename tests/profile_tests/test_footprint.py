"""Memory from the kernel's own words, CPU time of a known worker, money in closed form."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement import load_generator as traffic
from objectives.measurement.load_generator import Submit
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.profile import footprint
from objectives.measurement.profile.footprint import cpu_seconds_per_1000, money_per_million, peak_memory_bytes

STATUS = """Name:\tpython
VmPeak:\t  900000 kB
VmSize:\t  800000 kB
VmHWM:\t   51234 kB
VmRSS:\t   40000 kB
Threads:\t3
"""


def test_the_peak_is_the_kernels_high_water_mark(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    assert peak_memory_bytes(tmp_path) == 51234 * 1024


def test_a_kernel_that_does_not_tell_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS.replace("VmHWM", "VmOther"))
    with pytest.raises(RuntimeError, match="VmHWM") as caught:
        peak_memory_bytes(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def alone(submit: Submit) -> LiveTarget:
    return LiveTarget(submit, served_together=1, outstanding=1, one_by_one=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_the_peak_of_this_process_grows_with_what_it_holds() -> None:
    before = peak_memory_bytes()
    held = bytearray(64_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > len(held)


def test_a_thousand_requests_take_the_cpu_time_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request takes 4 ms of which the CPU works 1: 1 s for 1000 of them."""
    clock = SimpleNamespace(wall=0, cpu=0)
    kernel = SimpleNamespace(
        perf_counter_ns=lambda: clock.wall,
        perf_counter=lambda: clock.wall / 1e9,
        process_time=lambda: clock.cpu / 1e9,
    )
    for module in (footprint, traffic):
        monkeypatch.setattr(module, "time", kernel)

    def answered() -> None:
        clock.wall += 4_000_000
        clock.cpu += 1_000_000

    def submit(request: Mapping[str, Any]) -> Any:
        return SimpleNamespace(finished_ns=0, result=answered)

    # The two in flight at the end are waited for after the rate is taken: 2 of 75.
    assert cpu_seconds_per_1000(alone(submit), [{"x": [0.0]}]) == pytest.approx(1.0, rel=0.03)


def test_a_worker_that_burns_a_millisecond_is_seen() -> None:
    def submit(request: Mapping[str, Any]) -> Any:
        end = time.process_time() + 0.001
        while time.process_time() < end:
            pass
        return SimpleNamespace(finished_ns=0, result=lambda: None)

    assert 0.8 < cpu_seconds_per_1000(alone(submit), [{"x": [0.0]}]) < 4


def test_cpu_time_where_all_is_refused_is_an_error_of_one_clear_line() -> None:
    class DeclinedError(Exception):
        refused = True

    def declined() -> None:
        raise DeclinedError

    with pytest.raises(RuntimeError, match="refused"):
        cpu_seconds_per_1000(alone(lambda request: SimpleNamespace(finished_ns=0, result=declined)), [{"x": [0.0]}])


def test_money_is_the_price_of_the_time_that_a_million_takes() -> None:
    """At 1000 requests a second a million take 1000 s, which at 3.60 an hour cost 1."""
    assert money_per_million(1000, 3.6) == pytest.approx(1.0)


@given(st.floats(1, 1e6), st.floats(0.01, 100))
def test_money_goes_as_the_price_and_against_the_rate(rps: float, price: float) -> None:
    hours = 1e6 / rps / 3600
    assert money_per_million(rps, price) == pytest.approx(hours * price)

"""The roofline by its closed form, and the shape of a measured one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement.profile import roofline as module
from objectives.measurement.profile.profile import NodeCost, summarize
from objectives.measurement.profile.roofline import Roofline, group_roofs, measure_roofline
from spaces.model_structure import Group
from spaces.serialization import from_plain, to_plain

positive = st.floats(1e-3, 1e6)


@given(peak=positive, bandwidth=positive, flops=st.integers(0, 10**12), moved=st.integers(0, 10**12))
def test_the_slower_of_arithmetic_and_traffic_is_the_time(
    peak: float, bandwidth: float, flops: int, moved: int
) -> None:
    roof = Roofline(peak, bandwidth, 1)
    both = roof.perfect_ms(flops, moved)
    assert both >= roof.perfect_ms(flops, 0) and both >= roof.perfect_ms(0, moved)
    assert both in (roof.perfect_ms(flops, 0), roof.perfect_ms(0, moved))


def test_the_ridge_is_where_both_take_as_long() -> None:
    """The ridge of 100 GFLOP/s and 50 GB/s is at two operations a byte."""
    roof = Roofline(100.0, 50.0, 1)
    assert roof.perfect_ms(100_000_000, 50_000_000) == pytest.approx(1.0)
    assert roof.perfect_ms(200_000_000, 50_000_000) == pytest.approx(2.0)
    assert roof.perfect_ms(100_000_000, 200_000_000) == pytest.approx(4.0)


def test_a_groups_perfect_time_is_the_sum_of_its_nodes() -> None:
    """One node bound by arithmetic and one by traffic: 1 ms and 2 ms, in 6 ms taken."""
    nodes = [NodeCost("a", "Gemm", "mlp", 2.0, 10**8, 0), NodeCost("b", "Add", "mlp", 4.0, 0, 10**8)]
    group = Group("mlp", "linear", ("mlp.0",), 1, (), "left whole")
    made = summarize(nodes, (group,), {}, 200, 7.0, 1)
    roofs = group_roofs(made, Roofline(100.0, 50.0, 1))
    assert roofs["mlp"].perfect_ms == pytest.approx(3.0)
    assert roofs["mlp"].efficiency == pytest.approx(0.5)
    assert roofs["engine"].efficiency is None and roofs["other"].efficiency is None


@pytest.mark.parametrize("peaks", [(0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_peaks_that_are_none_are_refused(peaks: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"{peaks[0]}.*{peaks[1]}"):
        Roofline(*peaks, None)


def test_a_measured_roofline_is_finite_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    roof = measure_roofline(threads=1, working_set=1)
    assert roof.threads == 1
    assert from_plain(Roofline, to_plain(roof)) == roof


def test_the_kernels_that_are_timed_compute_what_they_should() -> None:
    x, w = np.ones((3, 4), np.float32), np.full((4, 2), 2.0, np.float32)
    assert module._session("MatMul", {"x": x}, w, 1).run(None, {"x": x})[0].tolist() == (x @ w).tolist()
    pair = {"x": np.arange(5, dtype=np.float32), "y": np.ones(5, np.float32)}
    assert module._session("Add", pair, None, 1).run(None, pair)[0].tolist() == [1, 2, 3, 4, 5]

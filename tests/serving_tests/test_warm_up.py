"""Warm-up of the engines of a bundle: which sizes run before a server takes it, and that a plan times the same."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.arrays import Arrays
from objectives.records import Artifact
from objectives.serving import warm_up
from objectives.serving.bundle import open_verified
from objectives.serving.bundle_files import MODEL, BundleError
from objectives.serving.http.model import Model
from objectives.serving.pool import pool
from objectives.serving.pool.pending_result import rows_of
from objectives.serving.warm_up import row_quantiles, sizes_of
from search.plan.deployments import opening_seconds
from spaces.candidate import Candidate
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement, Route
from tests.serve_tests.bundles import EXAMPLE_ROWS, INPUTS, draw_request, write_toy

TWO = Placement(InstanceGroup(replicas=2, threads=1))
# Of 1000 requests of 1 to 1000 rows, which no lognormal distribution has.
QUANTILES = row_quantiles([{"x": np.zeros(rows)} for rows in range(1, 1001)])


class Engines:
    """Engines of all pools that are opened meanwhile: the rows of the runs of each, in the order of opening."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self.run_seconds, self.fail_above = 0.0, 10**9
        opened = pool.open_replica

        def open_counted(*given: Any) -> Any:
            engine = opened(*given)
            run, own = engine.run, list[int]()
            self.rows.append(own)

            def counted(inputs: Arrays) -> Any:
                own.append(rows := rows_of(inputs))
                time.sleep(self.run_seconds)
                if rows > self.fail_above:
                    raise ValueError(f"{rows} rows are too many")
                return run(inputs)

            engine.run = counted
            return engine

        monkeypatch.setattr(pool, "open_replica", open_counted)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave each warm-up more time than a busy machine takes."""
    monkeypatch.setattr(warm_up, "SECONDS", 600.0)


def write_known(folder: Path, placement: Placement = TWO) -> Path:
    return write_toy(folder / "bundle", placement, row_quantiles=QUANTILES)


def test_quantiles_are_those_of_the_requests() -> None:
    assert (QUANTILES[0], QUANTILES[64], QUANTILES[-1]) == (1, pytest.approx(500, abs=1), 1000)
    assert sorted(QUANTILES) == QUANTILES and len(QUANTILES) == 129


@pytest.mark.usefixtures("unhurried")
def test_every_replica_of_a_server_runs_the_largest_size_first_and_others_spread_over_the_requests(
    engines: Engines, tmp_path: Path
) -> None:
    bundle = write_known(tmp_path)
    engines.rows.clear()
    Model.open(bundle).close()
    one, two = engines.rows
    for rows in (one, two):
        assert rows[0] == 1000 and len(set(rows[:20])) == 20
        # A step of van der Corput's sequence halves the gaps: after 16 of them none is above a sixteenth.
        assert np.diff(sorted(rows[1:17]), append=1000).max() <= 1000 / 16 + 8
    # Behind them comes the example, whose scores are compared.
    assert one[20:] == two[20:] == [EXAMPLE_ROWS]


def test_what_opens_no_server_and_a_bundle_without_sizes_run_the_example_alone(
    engines: Engines, tmp_path: Path
) -> None:
    bundle, unknown = write_known(tmp_path), write_toy(tmp_path / "unknown", TWO)
    engines.rows.clear()
    open_verified(bundle)[1].close()
    Model.open(unknown).close()
    assert engines.rows == [[EXAMPLE_ROWS]] * 4


def test_warm_up_ends_after_a_second_for_all_replicas_together(engines: Engines, tmp_path: Path) -> None:
    bundle = write_known(tmp_path)
    engines.run_seconds = 0.2
    engines.rows.clear()
    Model.open(bundle).close()
    assert max(map(len, engines.rows)) <= 4  # of half a second, and the example


@pytest.mark.usefixtures("unhurried")
def test_limits_of_admission_do_not_stop_it_and_a_size_that_fails_is_told(engines: Engines, tmp_path: Path) -> None:
    limited = Placement(InstanceGroup(threads=1), admission=Admission(1, 0.001))
    bundle = write_known(tmp_path, TWO)
    engines.rows.clear()
    Model.open(bundle, lambda _: limited).close()
    assert len(engines.rows[0]) >= 20
    engines.fail_above = 900
    with pytest.raises(BundleError, match="1000 rows are too many"):
        Model.open(bundle)


def test_routed_and_split_and_batched_requests_run_as_the_replicas_get_them() -> None:
    small, large = InstanceGroup(threads=1), InstanceGroup("openvino", threads=2)
    routed = Placement(small, route=Route(300, large))
    assert max(sizes_of(routed, small, QUANTILES)) <= 300 < min(sizes_of(routed, large, QUANTILES))
    split = Placement(InstanceGroup(replicas=4, threads=1), split_rows=200)
    assert sizes_of(split, split.instance_group, QUANTILES)[0] == 250
    assert max(sizes_of(split, split.instance_group, QUANTILES)) <= 250
    batched = Placement(batching=Batching(2048, 100))
    assert sizes_of(batched, batched.instance_group, QUANTILES)[:2] == [2048, 1000]
    small_batches = Placement(batching=Batching(64, 100))
    assert sizes_of(small_batches, small_batches.instance_group, QUANTILES)[:2] == [1000, 64]
    assert sizes_of(small_batches, small_batches.instance_group, []) == []
    warm = replace(batched, keep_warm_ms=2.0)
    assert sizes_of(warm, warm.instance_group, QUANTILES)[:3] == [2048, 1, 1000]
    assert sizes_of(warm, warm.instance_group, []) == []
    # All sizes where each needs kernels of its own.
    by_size = Placement(InstanceGroup("openvino", threads=1))
    assert set(sizes_of(by_size, by_size.instance_group, QUANTILES)) == set(QUANTILES)


@pytest.mark.usefixtures("unhurried")
def test_a_plan_times_the_opening_of_a_server_warm_up_included(engines: Engines, tmp_path: Path) -> None:
    requests = [draw_request(rows) for rows in (40, 120, 70)]
    model = write_toy(tmp_path / "toy").with_name("toy-model") / MODEL
    side = (Artifact("key", str(model), {}, 0, 0.0), Candidate(placement=TWO))
    engines.rows.clear()
    engines.run_seconds = 0.02
    seconds = opening_seconds(tmp_path, model, side, INPUTS, requests)
    written, *opened = engines.rows[:2], *engines.rows[2:]
    assert written == [[40], []]  # the example's scores, when the bundle is made
    assert [rows[:3] for rows in opened] == [[120, 40, 70]] * 6  # two replicas, three times
    assert seconds > 7 * 0.02

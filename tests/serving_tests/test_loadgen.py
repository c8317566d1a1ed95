"""Clock and load generator, compared with MLPerf's LoadGen. Run by name: `pytest -m loadgen`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")

from objectives.measure.deployment import quiet, warm_up
from objectives.measurement.load_generator import closed_loop
from objectives.serving.pool import Pool
from tests.benchmarks import loadgen
from tests.benchmarks.models import baseline_model, lognormal_requests

pytestmark = pytest.mark.loadgen

SECONDS, ROUNDS = 0.5, 3
REQUESTS = lognormal_requests(200, seed=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    model: Path = baseline_model(tmp_path_factory.mktemp("baseline"))
    with quiet(), Pool.open(model, loadgen.PLACEMENT) as pool:
        warm_up(pool.submit, REQUESTS, loadgen.PLACEMENT)
        yield pool


@pytest.mark.parametrize("scenario", ["SingleStream", "Server"])
def test_both_clocks_tell_the_same_percentiles(pool: Pool, scenario: str) -> None:
    service = float(np.median(closed_loop(pool.submit, REQUESTS)))
    rate = loadgen.LOAD * loadgen.capacity(pool.submit, REQUESTS)
    single = scenario == "SingleStream"
    asked = loadgen.single_stream(service, SECONDS) if single else loadgen.server(rate, SECONDS)
    run, agreements = loadgen.clocks(pool.submit, REQUESTS, asked, service)
    assert run.verdict == "VALID"
    assert [a.percent for a in agreements] == list(loadgen.PERCENTS)
    missed = [str(a) for a in agreements if not a.kept]
    if missed and run.disturbed:
        pytest.skip("the machine is busy with something else")
    assert not missed


def test_both_generators_offer_the_same_load() -> None:
    service, load = 2.0, loadgen.LOAD
    with quiet(), Pool(loadgen.PLACEMENT, lambda instance_group: loadgen.Waiting(service)) as waiting:
        rounds = loadgen.generators(waiting.submit, REQUESTS, 1e3 * load / service, SECONDS, ROUNDS)
    assert [r.verdict for r in rounds] == ["VALID"] * ROUNDS
    theirs, ours = (float(np.mean([getattr(r, deployment) for r in rounds])) for deployment in ("theirs_ms", "ours_ms"))
    apart = abs(ours / theirs - 1)
    if apart > loadgen.GENERATORS_AGREE and any(r.disturbed for r in rounds):
        pytest.skip("the machine is busy with something else")
    assert apart <= loadgen.GENERATORS_AGREE


def test_a_run_that_is_too_short_is_invalid(pool: Pool) -> None:
    """Each query is issued once and timed once, and LoadGen's verdict is read back whatever it is."""
    asked: Any = loadgen.server(500.0, 0.1)
    asked.max_query_count = 20
    asked.min_query_count = 10
    run = loadgen.drive(pool.submit, REQUESTS, asked)
    assert run.verdict == "INVALID"
    assert len(run.numbers) == len(run.ours_ms) == 20
    assert set(run.numbers) <= set(range(len(REQUESTS)))
    assert (run.ours_ms > 0).all()

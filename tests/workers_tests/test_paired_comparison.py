"""Waiting for a quality: which worker evaluates, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from objectives.jobs.protocol import Request
from objectives.measurement.arrivals import Traffic
from objectives.measurement.statistics import fewest_samples
from objectives.records import Artifact, Prepared
from objectives.task import Task
from search.cli.console import Console
from search.config.study_file import load
from search.workers.meter_jobs import MeterJobs
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Done
from spaces.candidate import Candidate
from spaces.model_structure import ModelStructure
from spaces.serialization import to_plain
from tests.search_tests.measurements import complete_outcome
from tests.workers_tests.scripted import done, job_of


class Asked:
    """Answers each job at once, and remembers how long it might have taken."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.limits = answers, dict[str, float]()
        self.busy, self.progress = False, list[str]()

    def start(self, request: Request[object], limit_seconds: float) -> None:
        self.request, self.limits[job_of(request)] = request, limit_seconds

    def poll(self) -> Done:
        return done(self.request, self.answers[job_of(self.request)])


@pytest.mark.parametrize("percentile", [50, 95, 99])
def test_a_visit_of_the_search_is_shorter_and_shows_the_percentile(percentile: int) -> None:
    config = load("ml-100k", [f"slo.percentile={percentile}"])
    parts: Any = (None, None)
    screen, final, confirm = (
        MeterJobs(config, *parts, Traffic()).window(length) for length in ("screen", "final", "confirm")
    )
    fewest = fewest_samples(percentile)
    assert all(window.blocks * window.requests >= fewest for window in (screen, final, confirm))
    assert screen.probe_requests >= max(300, fewest)
    slow = screen.at(0.1)
    assert fewest <= slow.blocks * slow.requests < screen.blocks * screen.requests or percentile == 99
    longest = screen.most * screen.blocks * screen.requests
    assert longest < final.most * final.blocks * final.requests / 2 and screen.visits == 1 < final.visits
    assert (final.requests, final.probe_requests, final.most) == (confirm.requests, max(500, fewest), 3.0)


@pytest.mark.parametrize("custom_metric", [False, True])
def test_a_ranking_of_many_users_may_take_as_long_as_learning(
    tmp_path: Path, custom_metric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.workers.processes.wait", lambda workers, seconds: None)
    baseline = Artifact("base", "base/model.onnx", {}, 5000, 0.0)
    prepared = Prepared(
        "k", "h", ModelStructure(()), {}, (), baseline, "split", {}, 3, {}, {}, None, 0.9, custom_metric=custom_metric
    )
    task = Task(str(tmp_path), "dcn-v2", "ml-100k", "auc", 200, 0.6, 1000, 0)
    config = load("ml-100k", ["workers.fit_seconds=700", "workers.job_seconds=70"])
    measured = complete_outcome().measurement
    assert measured is not None
    quality = {"quality": to_plain(measured.quality)}
    meter: Any = Asked()
    builder: Any = Asked(evaluate=quality, score={"candidates": ["c.npy"], "baseline": "b.npy"}, custom_metric=quality)
    pairs = PairedComparison(MeterJobs(config, task, prepared, Traffic()), builder, meter, Console(True, True))
    found = pairs.evaluate((baseline, Candidate()), "test")
    assert found == measured.quality
    assert (meter.limits, builder.limits) == (
        {},
        {"score": 700, "custom_metric": 700} if custom_metric else {"evaluate": 700},
    )
    if custom_metric:
        assert (builder.request.scored.candidates, builder.request.scored.baseline) == (("c.npy",), "b.npy")

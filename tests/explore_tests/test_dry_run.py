"""A dry run over stages that end as given: their order, what a failure says, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.jobs.protocol import Request
from objectives.jobs.requests import ExportResponse, FitResponse
from objectives.measurement.profile.profile import GroupCost, Profile
from objectives.records import Artifact, InputSpec, Prepared
from search.cli.console import Console
from search.config.study_file import load
from search.errors import ConfigError, JobError
from search.explore import dry_run as module
from search.explore.dry_run import DryRun, dry_run
from search.home import Home
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim
from tests.workers_tests.scripted import job_of

STAGES = ["prepare", "profile", "fit", "export", "score", "service_curve", "benchmark"]
STRUCTURE = ModelStructure(
    (Group("mlp", "linear", ("mlp.0",), 10, (PrunableDim("mlp.0", 32, (AxisSlice("mlp.0.weight", 0),)),)),)
)
BASELINE = Artifact("base", "base/model.onnx", {"mlp": "fp32"}, 5000, 0.0)


class Jobs:
    """Workers whose jobs fail as often as given, each with the words of its error."""

    def __init__(self, folder: Path, failures: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.failures = Home(folder), failures
        self.requests: list[Request[Any]] = []
        monkeypatch.setattr(module, "call", self.call)

    @property
    def names(self) -> list[str]:
        return [job_of(request) for request in self.requests]

    def call(self, worker: Any, request: Request[Any], limit_seconds: float, say: Any) -> Any:
        self.requests.append(request)
        job = job_of(request)
        if self.failures.get(job, 0) > 0:
            self.failures[job] -= 1
            raise JobError(f"no {job} today")
        profile = Profile(200, 1.0, None, (GroupCost("mlp", "linear", 1.0, 1.0, 1, 1, 1),), (), ())
        return {
            "prepare": Prepared(
                "k", "holdout", STRUCTURE, {}, (InputSpec("item", "int64", (), 5),), BASELINE, "", {}, 3, {}, {}
            ),
            "profile": SimpleNamespace(profile=profile),
            "fit": FitResponse(False, 0.25),
            "export": ExportResponse(BASELINE, False),
        }.get(job)

    def run(self, **settings: Any) -> DryRun:
        self.home.claim()
        config = load("ml-100k", [f"{key}={value}" for key, value in settings.items()])
        workers: Any = SimpleNamespace(builder=None, meter=None)
        return dry_run(config, self.home, workers, Console(quiet=True, as_json=False))


def test_every_stage_is_run_once_and_nothing_is_left_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, {}, monkeypatch)
    found = jobs.run()
    assert jobs.names == STAGES
    assert set(found.seconds) == {
        "prepare", "profile", "fit", "export", "evaluate", "service curve", "benchmark"
    }  # fmt: skip
    assert found.batch_seconds == 0.25
    task: Any = jobs.requests[0]
    assert task.task.most_batches == 3 and task.task.cache.is_relative_to(jobs.home.mlruns / "cache")
    benchmark: Any = jobs.requests[-1]
    assert Path(benchmark.recording).is_relative_to(task.task.cache)
    assert list((jobs.home.mlruns / "cache").iterdir()) == []


def test_a_candidate_that_fails_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, {"export": 1}, monkeypatch)
    jobs.run()
    assert jobs.names[:4] == STAGES[:4] and jobs.names[-4:] == STAGES[-4:]
    fits: list[Any] = [request for request in jobs.requests if job_of(request) == "export"]
    assert len({(request.candidate.weights.id, request.candidate.precision) for request in fits}) == 2


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("prepare", "The dry run ended at prepare: no prepare today; correct the recommender"),
        ("profile", "The dry run ended at profile: no profile today; correct the recommender"),
        ("fit", "the last ended at fit: no fit today; leave what failed out of space"),
        ("export", "candidates got through every stage, the last ended at export: no export today; leave what failed"),
        ("score", "the last ended at evaluate: no score today; leave what failed out of space"),
        ("benchmark", "the last ended at benchmark: no benchmark today; leave what failed out of space"),
    ],
)
def test_a_failure_says_the_stage_and_what_to_do(
    job: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, {job: 100}, monkeypatch)
    with pytest.raises(JobError, match=said) as raised:
        jobs.run()
    assert len(str(raised.value).splitlines()) == 1
    assert list((jobs.home.mlruns / "cache").iterdir()) == []


def test_a_space_that_the_model_does_not_have_is_refused_as_a_run_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"space\.pruning\.tower: unknown"):
        Jobs(tmp_path, {}, monkeypatch).run(**{"space.pruning": "{tower: [0.0, 0.5]}"})

"""Scheduling without a model: trials in every stage, and a whole search over scripted workers."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from objectives.jobs.protocol import Request
from objectives.jobs.requests import GroupBenchmarkRequest
from objectives.measurement.arrivals import Traffic
from objectives.records import Artifact, Footprint, InputSpec, Prepared, SimulatedRatios
from objectives.task import Task
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.errors import JobError
from search.explore import benchmark_groups
from search.explore.benchmark_groups import BenchmarkQueue
from search.explore.explorer import EXHAUSTED, Explorer
from search.explore.running_trial import RunningTrial, next_job, waiting_for_network
from search.explore.screening import Screening
from search.study import Study
from search.trials import EndedTrial
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Done
from spaces.candidate import Candidate
from spaces.domains import Choice, Float
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim
from spaces.search_space import SearchSpace
from spaces.serialization import to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.weights import Weights
from tests.explore_tests.curves import cost_model, curve_answer
from tests.search_tests.measurements import complete_outcome, in_memory, small_space
from tests.workers_tests.scripted import done, job_of


def running(number: int, stage: Any, ratio: float = 0.5, flying: bool = False) -> RunningTrial:
    weights = Weights(pruning=Pruning((("mlp", ratio),)), distillation=Distillation(2.0, 0.5, 1))
    trial: Any = SimpleNamespace(number=number)
    return RunningTrial(trial, Candidate(weights), stage, worker=SimpleNamespace() if flying else None)  # type: ignore[arg-type]


def test_measuring_comes_before_building() -> None:
    running_trials = [running(0, "fit"), running(1, "evaluate"), running(2, "curve"), running(3, "benchmark")]
    chosen = next_job(running_trials, 1, True)
    assert chosen is not None
    assert chosen.number == 2
    chosen = next_job(running_trials, 1, False)
    assert chosen is not None
    assert chosen.number == 1


def test_the_same_weights_are_not_fitted_twice_at_once() -> None:
    running_trials = [running(0, "fit", 0.5, flying=True), running(1, "fit", 0.5), running(2, "fit", 0.25)]
    chosen = next_job(running_trials, 1, False)
    assert chosen is not None
    assert chosen.number == 2
    assert next_job(running_trials[:2], 1, True) is None


def test_slices_wait_for_the_fit_that_trains_their_network() -> None:
    """Other trials do not wait, and neither do slices of the other network where two builders are free."""

    def sliced(number: int, flying: bool = False, **of: Any) -> RunningTrial:
        weights = Weights(distillation=Distillation(2.0, 0.5, 0, elastic_epochs=3), **of)
        return replace(running(number, "fit_network", flying=flying), candidate=Candidate(weights))

    first, second = (sliced(n, n == 0, pruning=Pruning((("mlp", ratio),))) for n, ratio in enumerate((0.5, 0.25)))
    assert next_job([first, second], 1, True) is None
    assert waiting_for_network([first, second]) == [first, second] and waiting_for_network([second]) == []
    fitted = [replace(one, stage="fit") for one in (first, second)]
    chosen = next_job(fitted, 1, True)
    assert chosen is not None and chosen.number == 1, "slices of a trained network do not wait for each other"
    other = sliced(2, architecture=Architecture((("width", 8),)))
    assert waiting_for_network([first, second, other]) == [first, second, other]
    assert next_job([first, second, other], 1, True) is None, "one builder stays free for other trials"
    for third, builders in ((running(2, "fit"), 1), (other, 2)):
        chosen = next_job([first, second, third], builders, True)
        assert chosen is not None and chosen.number == 2


def test_nothing_to_do_is_none() -> None:
    assert next_job([], 2, True) is None
    assert next_job([running(0, "fit")], 0, True) is None


class Scripted:
    """A worker that answers at once; `script` may turn a job into an error."""

    def __init__(self, kind: str, log: list[tuple[str, str]], script: Mapping[str, Any]) -> None:
        self.kind, self.log, self.script, self.busy = kind, log, script, False
        self.progress: list[str] = []
        self.limits: dict[str, float] = {}

    def start(self, request: Request[object], limit: float) -> None:
        assert not self.busy
        self.busy, self.request = True, request
        self.limits[job_of(request)] = limit
        self.log.append((self.kind, job_of(request)))

    def poll(self) -> Done:
        self.busy = False
        return done(self.request, self.script[job_of(self.request)](to_plain(self.request)))

    def pause(self) -> None:
        self.log.append((self.kind, "pause"))

    def resume(self) -> None:
        self.log.append((self.kind, "resume"))

    def kill(self) -> None:
        self.busy = False


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    space = small_space()
    structure = ModelStructure(
        (Group("mlp", "linear", ("mlp.0",), 10, (PrunableDim("mlp.0", 4, (AxisSlice("mlp.0.weight", 0),)),)),)
    )
    baseline = Artifact("base", "base/model.onnx", {"mlp": "fp32"}, 5000, 0.0)
    prepared = Prepared(
        "k",
        str(tmp_path / "holdout"),
        structure,
        {},
        (InputSpec("item", "int64", (), 5),),
        baseline,
        "split",
        {},
        3,
        {},
        {},
    )
    return {
        "config": load("ml-100k", ["sampler=tpe"]),
        "task": Task(str(tmp_path), "dcn-v2", "ml-100k", "auc", 200, 0.6, 1000, 0),
        "prepared": prepared,
        "space": space,
        "study": Study("s", in_memory(), ["latency_p95", "throughput", "quality"], Limits(0.01), 0),
    }


def search(
    parts: dict[str, Any],
    script: Mapping[str, Any],
    trials: int,
    limits: dict[str, float] | None = None,
    reserve: Callable[[], float] = lambda: 0.0,
    now: Callable[[], float] = time.monotonic,
    tick: Callable[[float], None] = lambda seconds: None,
    spent: float = 0.0,
) -> Any:
    """Run a search over scripted workers, which never wait."""
    log: list[tuple[str, str]] = []
    told: list[EndedTrial] = []
    builders: Any = [Scripted("builder", log, script), Scripted("builder", log, script)]
    meter: Any = Scripted("meter", log, script)
    jobs = MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())
    workers = builders, meter, 1
    costs = cost_model(jobs, Path(parts["task"].home))
    clock: Any = SimpleNamespace(now=now, wait=lambda workers, seconds: None)
    explorer = Explorer(jobs, costs, parts["space"], parts["study"], *workers, told.append, tick, reserve, clock)
    end = explorer.run(60, trials, spent)
    for worker in (*builders, meter):
        (limits if limits is not None else {}).update(worker.limits)
    return end, told, log


def timed(p95_ratio: float = 0.5, throughput: float = 2.0) -> dict[str, Any]:
    """The meter's numbers of one candidate."""
    measured = complete_outcome(p95_ratio, throughput).measurement
    assert measured is not None
    footprint = Footprint(900, 50_000_000, 1.5)
    return {
        "latency": to_plain(measured.latency),
        "throughput": to_plain(measured.throughput),
        "footprint": to_plain(footprint),
    }


def each(numbers: Callable[[int], Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Return the meter's script of a benchmark, from the numbers by trial; a text is why a trial has none."""

    def scripted(arguments: Mapping[str, Any]) -> Any:
        return response([numbers(int(Path(name).stem.removeprefix("trial-"))) for name in arguments["recordings"]])

    return scripted


def response(found: list[Any]) -> dict[str, Any]:
    """Return the meter's response to a benchmark, from the numbers of the candidates."""
    return {
        "benchmarks": [None if isinstance(one, str) else one for one in found],
        "failures": [one if isinstance(one, str) else None for one in found],
    }


def answers(**changes: Any) -> dict[str, Any]:
    measured = complete_outcome().measurement
    artifact = to_plain(Artifact("x", "x/model.onnx", {"mlp": "fp32"}, 900, 0.0))
    good = {
        "fit": lambda a: {"reused": False},
        "fit_network": lambda a: {"reused": False},
        "export": lambda a: {"artifact": artifact, "reused": True},
        "evaluate": lambda a: {"quality": to_plain(measured.quality), "reused": False},
        "service_curve": lambda a: curve_answer(0.5),
        "group_benchmark": each(lambda trial: timed()),
    }  # fmt: skip
    return good | changes


def test_a_search_takes_each_trial_through_every_stage(parts: dict[str, Any]) -> None:
    end, told, log = search(parts, answers(), 8)
    assert "budget" in end
    complete = [t for t in told if t.outcome.state == "complete"]
    assert len(complete) >= 6
    others = [t.outcome.reason or "" for t in told if t.outcome.state != "complete"]
    assert all("made before" in reason or "simulated at" in reason for reason in others)
    assert complete[0].outcome.measurement == complete_outcome().measurement.__class__(
        **{**vars(complete_outcome().measurement), "footprint": complete[0].outcome.measurement.footprint}
    )
    assert complete[0].outcome.measurement.footprint == Footprint(900, 50_000_000, 1.5)
    assert all(t.outcome.reused == ("export",) for t in complete)
    assert {kind for kind, job in log if job in ("service_curve", "group_benchmark")} == {"meter"}
    assert {kind for kind, job in log if job in ("fit", "export", "evaluate")} == {"builder"}


def test_the_time_goes_on_where_an_earlier_run_ended(parts: dict[str, Any]) -> None:
    ticks: list[float] = []
    search(parts, answers(), 3, tick=ticks.append, spent=1000.0)
    assert ticks and 1000.0 <= min(ticks) < 1060.0


def test_builders_stand_still_while_the_clock_runs(parts: dict[str, Any]) -> None:
    _, _, log = search(parts, answers(), 6)
    timing = False
    for kind, job in log:
        if job in ("service_curve", "group_benchmark"):
            timing = True
        elif kind == "builder" and job == "resume":
            timing = False
        elif job in ("fit", "export"):
            assert not timing, "nothing is built during a timing"


def test_nothing_is_proposed_while_the_clock_runs(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposal takes time of a core, which would be part of what is measured."""
    looks, timing, asked = Counter[int](), set[int](), []
    poll, ask = Scripted.poll, Study.ask

    def slow(worker: Scripted) -> Done | None:
        key = id(worker.request)
        if job_of(worker.request) in ("service_curve", "group_benchmark"):
            looks[key] += 1
            if looks[key] <= 2:
                timing.add(key)
                return None
            timing.discard(key)
        return poll(worker)

    def noted(study: Study, *arguments: Any) -> Any:
        asked.append(len(timing))
        return ask(study, *arguments)

    monkeypatch.setattr(Scripted, "poll", slow)
    monkeypatch.setattr(Study, "ask", noted)
    search(parts, answers(), 8)
    assert len(asked) >= 8 and not any(asked)


def test_learning_and_judging_may_take_longer_than_other_jobs(parts: dict[str, Any]) -> None:
    """Ranking many users for each score takes as long as learning does."""
    limits: dict[str, float] = {}
    parts["config"] = load("ml-100k", ["workers.fit_seconds=700", "workers.job_seconds=70"])
    for trials in (2, 8):
        search(parts, answers(), trials, limits)
    assert {job: limits[job] for job in ("fit", "export", "evaluate", "service_curve", "group_benchmark")} == {
        "fit": 700,
        "export": 70,
        "evaluate": 700,
        "service_curve": 70,
        "group_benchmark": 70,
    }


def test_a_job_that_fails_is_a_failed_trial_and_the_search_goes_on(parts: dict[str, Any]) -> None:
    count = iter(range(1000))
    flaky = lambda a: "SIGSEGV" if next(count) % 2 else {"reused": False}  # noqa: E731
    _, told, _ = search(parts, answers(fit=flaky), 10)
    failed = [t for t in told if t.outcome.state == "failed"]
    assert failed
    assert all(t.outcome.reason == "SIGSEGV" for t in failed)
    assert any(t.outcome.state == "complete" for t in told)


@pytest.mark.parametrize("job", ["fit", "export", "evaluate", "service_curve", "group_benchmark"])
def test_a_job_that_is_killed_is_run_once_more(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Its first process is killed, as where memory runs out; the trial ends as if it had not been.

    Benchmarks of several trials are killed too, and tried again as halves.
    """
    poll, killed, jobs = Scripted.poll, list[str](), Counter[str]()

    def dying(worker: Scripted) -> Done:
        found = poll(worker)
        if job_of(worker.request) != job:
            return found
        jobs[repr(worker.request)] += 1
        together = isinstance(worker.request, GroupBenchmarkRequest) and len(worker.request.candidates) > 1
        if killed and not together:
            return found
        if not together:
            killed.append(repr(worker.request))
        return replace(found, result=None, error="was ended by SIGKILL", lost=True, killed=True)

    monkeypatch.setattr(Scripted, "poll", dying)
    _, told, _ = search(parts, answers(), 16)
    assert killed and not [trial for trial in told if trial.outcome.state == "failed"]
    assert jobs[killed[0]] >= 2


def test_a_job_that_is_killed_twice_is_a_failed_trial(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    poll = Scripted.poll

    def dying(worker: Scripted) -> Done:
        found = poll(worker)
        if job_of(worker.request) != "fit":
            return found
        return replace(found, result=None, error="was ended by SIGKILL", lost=True, killed=True)

    monkeypatch.setattr(Scripted, "poll", dying)
    _, told, log = search(parts, answers(), 6)
    failed = [trial for trial in told if trial.outcome.state == "failed"]
    assert failed and all("SIGKILL" in (trial.outcome.reason or "") for trial in failed)
    assert log.count(("builder", "fit")) == 2 * len(failed)


def _elastic(space: SearchSpace) -> SearchSpace:
    return replace(space, weights=replace(space.weights, elastic_epochs={"pruned": 3}, fine_tuning=Choice((0,))))


def test_other_trials_go_on_while_an_elastic_network_is_trained(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline's own weights are exported, evaluated and benchmarked meanwhile.

    The network takes long, and no slice of it is fitted before it has been trained.
    """
    parts["space"] = _elastic(parts["space"])
    looks, during, poll = [0], [], Scripted.poll

    def slow(worker: Scripted) -> Done | None:
        job = job_of(worker.request)
        if job == "fit_network" and looks[0] < 200:
            looks[0] += 1
            return None
        if 0 < looks[0] < 200:
            during.append(job)
        return poll(worker)

    monkeypatch.setattr(Scripted, "poll", slow)
    _, told, log = search(parts, answers(), 14)
    assert log.count(("builder", "fit_network")) == 1
    assert {"export", "evaluate", "group_benchmark"} <= set(during) and "fit" not in during
    sliced = [t for t in told if t.candidate.weights.elastic and t.outcome.state == "complete"]
    assert len(sliced) >= 2 and sum("network" in t.outcome.seconds for t in told) == 1


def test_what_would_be_a_slice_is_trained_separately_once_its_network_failed(parts: dict[str, Any]) -> None:
    """The trial whose job failed fails, others that waited are asked for again, and a later run does not try again."""
    parts["space"] = _elastic(parts["space"])
    script = answers(fit_network=lambda a: "its loss is nan")
    for trials in (6, 6, 8):
        networks = [("builder", "fit_network")] * (not parts["study"].failed_networks)
        _, _, log = search(parts, script, trials)
        assert [job for job in log if job[1] == "fit_network"] == networks
        assert parts["study"].failed_networks == {"pruned": "its loss is nan"}
    ended = parts["study"].ended()
    sliced = [t for t in ended if t.candidate.weights.elastic]
    assert [t.outcome.reason for t in sliced if t.outcome.state == "failed"] == ["its loss is nan"]
    assert all("asked for again" in (t.outcome.reason or "") for t in sliced if t.outcome.state == "stopped")
    separate = [t for t in ended if t.candidate.weights.origin == "pruned" and t not in sliced]
    assert any(t.outcome.state == "complete" for t in separate)


def test_other_samplers_train_one_cycle_unless_more_are_given(parts: dict[str, Any]) -> None:
    space = parts["space"]
    parts["space"] = replace(space, weights=replace(space.weights, cycles=Choice((1, 2, 3))))
    _, told, _ = search(parts, answers(), 12)
    assert len(told) >= 12 and {len(t.candidate.weights.trainings) for t in told} == {0, 1}
    parts["config"] = load("ml-100k", ["sampler=tpe", "space.distillation.cycles=3"])
    _, told, _ = search(parts, answers(), 12)
    assert max(len(t.candidate.weights.trainings) for t in told) > 1


def test_a_fit_may_take_its_time_for_each_cycle_and_each_shape(parts: dict[str, Any]) -> None:
    config = load("ml-100k", ["workers.fit_seconds=10"])
    jobs = MeterJobs(config, parts["task"], parts["prepared"], Traffic())
    learning, pruning = Distillation(2.0, 0.5, 1), Pruning((("mlp", 0.5),))

    def limit(**given: int) -> float:
        return jobs.fit_limit_seconds(Weights(pruning=pruning, distillation=replace(learning, **given)))  # type: ignore[arg-type]

    assert (limit(), limit(cycles=3), limit(elastic_epochs=2)) == (10, 30, 50)


def test_a_full_disk_ends_the_search(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that ended before stay; no other trial is begun."""
    search(parts, answers(), 3)
    study, poll = parts["study"], Scripted.poll
    complete, ended = len(study.measured_trials()), len(study.ended())

    def full(worker: Scripted) -> Done:
        return replace(poll(worker), result=None, error="FullDiskError: The disk is full", full_disk=True)

    monkeypatch.setattr(Scripted, "poll", full)
    with pytest.raises(JobError, match="The disk is full"):
        search(parts, answers(), 50)
    assert len(study.measured_trials()) == complete
    # What was under way is asked for again; some may have ended by their cost alone.
    waiting = study._study.get_trials(states=(TrialState.WAITING,))
    assert any("candidate" in trial.user_attrs for trial in waiting)
    assert len(study.ended()) < ended + 10


def test_an_infinite_measurement_is_a_failed_trial(parts: dict[str, Any]) -> None:
    measured = to_plain(complete_outcome().measurement)
    broken = timed() | {"latency": measured["latency"] | {"p95_ratio": float("inf")}}
    _, told, _ = search(parts, answers(group_benchmark=each(lambda trial: broken)), 2)
    assert all(t.outcome.state == "failed" and "p95_ratio" in (t.outcome.reason or "") for t in told)


def test_a_small_space_ends_the_search(parts: dict[str, Any]) -> None:
    """Two widths and four placements of the baseline's weights: eight choices at most, none twice, then an end."""
    space = parts["space"]
    parts["space"] = replace(space, weights=replace(space.weights, pruning={}))
    end, told, _ = search(parts, answers(), 500)
    assert "50" in end
    complete = [t.candidate.id for t in told if t.outcome.state == "complete"]
    assert 4 <= len(complete) == len(set(complete)) <= 8
    assert all(t.outcome.reason for t in told if t.outcome.state == "stopped")


def test_what_failed_is_not_run_again(parts: dict[str, Any]) -> None:
    """Every choice of a small space is run once, also one that cannot be measured."""
    space = parts["space"]
    parts["space"] = replace(space, weights=replace(space.weights, pruning={}))
    late = answers(group_benchmark=each(lambda trial: "BehindError: late" if trial % 2 else timed()))
    end, told, _ = search(parts, late, 500)
    failed = [t.candidate.id for t in told if t.outcome.state == "failed"]
    assert end == EXHAUSTED and failed and len(failed) == len(set(failed))
    told = search(parts, late, 500)[1]
    assert not [t for t in told if t.outcome.state == "failed"], "nor in a later run"


def test_a_trial_that_loses_too_much_stands_for_no_other_training(parts: dict[str, Any]) -> None:
    """The dry run's candidate is measured whatever it loses; another training of its shape may keep the limit."""
    study = parts["study"]
    shape = Candidate(Weights(pruning=Pruning((("mlp", 0.5),)), distillation=Distillation(2.0, 0.5, 1)))
    other = shape.trained_with(7)
    for candidate, loss in ((Candidate(), 0.0), (shape, 0.013)):
        trial, _ = study.ask(parts["space"])
        trial.set_user_attr("candidate", to_plain(candidate))
        study.tell(trial.number, complete_outcome(0.5, loss=loss), 1.0)
    study.note(resolution=0.005)
    better, same = running(8, "evaluate"), running(9, "evaluate")
    for one, loss in ((better, 0.009), (same, 0.012)):
        measured = complete_outcome(loss=loss).measurement
        assert measured is not None
        one.candidate, one.quality = other, measured.quality
    screening = Screening(parts["config"], study)
    assert screening.equalled(better) is None
    assert "loses no more" in str(screening.equalled(same, [better])), "that of one which waits is within the limit"


def test_each_point_is_benchmarked_in_one_visit(parts: dict[str, Any]) -> None:
    """Points of the front are benchmarked in more visits when the search is over."""
    asked: list[int] = []

    def numbers(trial: int) -> Any:
        asked.append(trial)
        return timed(0.5 - 0.01 * len(asked), 2.0)

    def scripted(arguments: Mapping[str, Any]) -> Any:
        assert arguments["window"]["visits"] == 1 and arguments["window"]["blocks"] == 20
        return each(numbers)(arguments)

    _, told, _ = search(parts, answers(group_benchmark=scripted), 8)
    complete = [t for t in told if t.outcome.state == "complete"]
    assert len(complete) > 3 and Counter(asked) == Counter(t.number for t in complete)
    assert all((t.outcome.timings or "").endswith(f"trial-{t.number}.npz") for t in complete)


def test_candidates_are_benchmarked_in_groups_beside_one_baseline(parts: dict[str, Any]) -> None:
    """A run ends with a group of those that are left."""
    groups: list[list[str]] = []

    def scripted(arguments: Mapping[str, Any]) -> Any:
        groups.append(arguments["recordings"])
        assert len(arguments["candidates"]) == len(arguments["weighed"]) == len(arguments["recordings"])
        return each(lambda trial: timed(0.9 - 0.01 * trial, 2.0))(arguments)

    search(parts, answers(group_benchmark=scripted), 2)
    assert list(map(len, groups)) == [2]
    _, told, _ = search(parts, answers(group_benchmark=scripted), 15)
    complete = [t for t in told if t.outcome.state == "complete"]
    assert sum(map(len, groups)) == len(complete) + 2 and len(groups) < len(complete)
    assert all(t.outcome.measurement.latency.p95_ratio == pytest.approx(0.9 - 0.01 * t.number) for t in complete)
    seconds = {len(group): 0.1 / len(group) for group in groups}
    assert {t.outcome.seconds["time"] for t in complete} <= set(seconds.values()), "each has its share of the time"


def test_a_group_is_due_sooner_the_less_time_benchmarks_have_taken(parts: dict[str, Any]) -> None:
    """The four trials of which most is expected come first, and none while benchmarks have had half of the time."""
    jobs = MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())
    search(parts, answers(), 2)
    queue = BenchmarkQueue(jobs, parts["study"], Screening(parts["config"], parts["study"]))
    waiting = [running(number, "benchmark", 0.1 * number) for number in range(1, 9)]
    for one in waiting:
        one.artifact = Artifact("x", "x/model.onnx", {}, 900, 0.0)
        p95 = 1 / one.number
        one.simulated = SimulatedRatios(p95, 1 / p95, p95, p95, p95, 1 / p95)

    def taken(count: int, elapsed: float, now: bool = False) -> list[int]:
        return [one.number for one in queue.take(waiting[:count], now, elapsed)]

    assert taken(1, 100.0) == [] == taken(0, 100.0, now=True)
    assert taken(1, 100.0, now=True) == [1]
    assert taken(2, 100.0) == [2, 1]
    assert taken(8, 100.0) == [8, 7, 6, 5]
    queue.request(waiting[:1])
    assert [(one.number, why) for one, why in queue.end(Done(None, "SIGSEGV", 40.0))] == [(1, "SIGSEGV")]
    # They have had 40 s: of 120 s, of 80 s and of less.
    assert taken(2, 120.0) == [] and taken(3, 120.0) == [3, 2, 1]
    assert taken(3, 80.0) == [] and taken(4, 80.0) == [4, 3, 2, 1]
    assert taken(8, 79.0) == []
    # One takes 0.05 s here.
    assert [len(queue.take(waiting, True, 100.0, left)) for left in (1.0, 0.12, 0.07, 0.01, -1.0)] == [4, 3, 2, 1, 1]


def test_an_interruption_while_a_group_is_recorded_loses_none_of_it(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []

    def interrupted(explorer: Explorer, ended: EndedTrial) -> None:
        recorded.append(ended.number)
        raise KeyboardInterrupt

    made = Explorer.__init__

    def make(explorer: Explorer, *arguments: Any) -> None:
        made(explorer, *arguments)
        explorer._record = lambda ended: interrupted(explorer, ended)

    monkeypatch.setattr(Explorer, "__init__", make)
    with pytest.raises(KeyboardInterrupt):
        search(parts, answers(), 4)
    states = [t.outcome.state for t in parts["study"].ended()]
    assert len(recorded) == 1 and states == ["complete"] * 4


def test_a_group_that_fails_is_benchmarked_in_halves(parts: dict[str, Any]) -> None:
    """One candidate crashes the meter: the others have their numbers."""
    asked: list[list[int]] = []

    def scripted(arguments: Mapping[str, Any]) -> Any:
        asked.append([int(Path(name).stem.removeprefix("trial-")) for name in arguments["recordings"]])
        return "SIGSEGV" if 3 in asked[-1] else each(lambda trial: timed(0.9 - 0.01 * trial, 2.0))(arguments)

    _, told, _ = search(parts, answers(group_benchmark=scripted), 4)
    failed = {t.number: t.outcome.reason for t in told if t.outcome.state == "failed"}
    complete = {t.number for t in told if t.outcome.state == "complete"}
    assert failed == {3: "SIGSEGV"} and len(complete) == 3 and 3 not in complete
    first, *halves = asked
    assert len(first) == 4 and [3] in halves and {number for half in halves for number in half} == set(first)


def test_the_baseline_is_in_the_first_group_and_in_its_first_half(parts: dict[str, Any]) -> None:
    """Nothing is kept of a study that ends before its baseline is measured."""
    jobs = MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())
    queue = BenchmarkQueue(jobs, parts["study"], Screening(parts["config"], parts["study"]))
    waiting = [running(number, "benchmark", 0.1 * (number + 1)) for number in range(8)]
    for one in waiting:
        one.artifact = Artifact("x", "x/model.onnx", {}, 900, 0.0)
    waiting[0].simulated = SimulatedRatios(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    group = queue.take(waiting, True, 1.0)
    assert group[0] is waiting[0]
    queue.request(group)
    assert list(queue.end(Done(None, "SIGKILL", 1.0))) == []
    assert queue.take(waiting, False, 1.0)[0] is waiting[0]


def test_a_half_of_a_group_has_only_those_that_still_wait(parts: dict[str, Any]) -> None:
    """The second half of a group is due after the first, whose numbers may have ended some of it."""
    jobs = MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())
    queue = BenchmarkQueue(jobs, parts["study"], Screening(parts["config"], parts["study"]))
    waiting = [running(number, "benchmark", 0.1 * number) for number in range(1, 5)]
    for one in waiting:
        one.artifact = Artifact("x", "x/model.onnx", {}, 900, 0.0)
    queue.request(waiting)
    assert list(queue.end(Done(None, "SIGSEGV", 1.0))) == []
    assert queue.take(waiting, False, 1.0) == waiting[:2]
    assert queue.take(waiting[3:], False, 1.0) == waiting[3:]
    assert queue.take([], False, 1.0) == []


def test_what_waits_for_its_benchmark_is_dropped_for_a_better_one(parts: dict[str, Any]) -> None:
    """Each trial is simulated to be faster than the one before, by more than the margin."""
    times = iter(0.8 * 0.7**number for number in range(1000))
    search(parts, answers(), 2)
    script = answers(
        service_curve=lambda a: curve_answer(next(times)), group_benchmark=each(lambda trial: timed(0.9, 1.1))
    )
    _, told, _ = search(parts, script, 12)
    reasons = [t.outcome.reason or "" for t in told if t.outcome.state == "stopped" and t.outcome.evaluated]
    assert any(re.search(r"; trial \d+ is simulated at .* at no higher loss", reason) for reason in reasons)


def test_the_last_group_is_benchmarked_when_the_time_is_over(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trials were evaluated when the time is over: they are worth one more benchmark, of as many as fit."""
    search(parts, answers(), 2)
    evaluated: list[int] = []
    benchmarked: list[int] = []

    def counted(arguments: Mapping[str, Any]) -> Any:
        evaluated.append(1)
        return answers()["evaluate"](arguments)

    def timed_group(arguments: Mapping[str, Any]) -> Any:
        benchmarked.append(1)
        return answers()["group_benchmark"](arguments)

    # Each takes 0.05 s, and 0.07 s are left.
    now = lambda: 0.0 if len(evaluated) < 3 else 60.0 if benchmarked else 59.93  # noqa: E731
    monkeypatch.setattr(benchmark_groups, "_FEWEST", 100)
    end, told, log = search(parts, answers(evaluate=counted, group_benchmark=timed_group), 50, now=now)
    assert end == "the budget is spent"
    assert [job for _, job in log].count("group_benchmark") == 1
    assert len([t for t in told if t.outcome.state == "complete"]) == 2


def test_a_group_waits_for_a_search_that_goes_on_after_all(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first group at the end leaves a smaller front, whose final benchmark takes less: another one is its end."""
    search(parts, answers(), 2)
    clock = SimpleNamespace(now=0.0)
    groups: list[float] = []
    # Each is a little faster than the one before, so that none is dominated.
    times = iter(0.5 * 0.99**number for number in range(10_000))

    def timed_group(arguments: Mapping[str, Any]) -> Any:
        groups.append(clock.now)
        return each(lambda trial: timed(0.5 - 0.0001 * trial, 2.0))(arguments)

    def evaluated(arguments: Mapping[str, Any]) -> Any:
        clock.now += 2.0
        return answers()["evaluate"](arguments)

    curve = lambda a: curve_answer(next(times))  # noqa: E731
    script = answers(group_benchmark=timed_group, evaluate=evaluated, service_curve=curve)
    reserve = lambda: 50.0 if not groups else 0.0  # noqa: E731
    monkeypatch.setattr(BenchmarkQueue, "expected_seconds", lambda queue, waiting: 1.0)
    # None is complete before the time is over.
    monkeypatch.setattr(benchmark_groups, "_FEWEST", 100)
    end, told, _ = search(parts, script, 500, reserve=reserve, now=lambda: clock.now)
    assert end == "the budget is spent" and groups[0] < 20 and groups[-1] > 50
    assert not [t for t in told if "the run ended" in (t.outcome.reason or "") and t.outcome.evaluated]


def test_a_search_leaves_the_reserved_time(parts: dict[str, Any]) -> None:
    """Nothing is begun where the reserve is all of the time, and it is asked for again after each trial."""
    reserves = iter([0.0] * 3 + [60.0] * 100)
    end, told, _ = search(parts, answers(), 50, reserve=lambda: next(reserves))
    assert end == "the budget is spent" and 1 <= len(told) < 50
    assert next(reserves) == 60.0


def test_a_benchmark_knows_how_the_visits_of_earlier_ones_differed(parts: dict[str, Any]) -> None:
    """The variance between visits is pooled with what was believed before.

    That of the baseline's visits has two degrees of freedom, by the formula of `statistics`. The earlier belief has
    four, and a deviation of 16%.
    """
    noises: list[Any] = []
    visits = (0.9, 1.0, 1.2)
    found = timed(0.9)
    found["latency"] |= {"p95_visits": list(visits)}

    def scripted(arguments: Mapping[str, Any]) -> Any:
        noises.append(arguments["noise"]["p95"])
        return each(lambda trial: found)(arguments)

    for _ in range(2):
        search(parts, answers(group_benchmark=scripted), 1)
    assert noises[0] == {"variance": pytest.approx(0.16**2), "degrees": 4}
    variance = statistics.variance(math.log(ratio) for ratio in visits)
    assert noises[1] == {"variance": pytest.approx((4 * 0.16**2 + 2 * variance) / 6), "degrees": 6}


def test_the_first_candidate_is_timed_whatever_it_loses(parts: dict[str, Any]) -> None:
    """Later candidates that are known to lose too much are stopped, and not built again."""
    quality = to_plain(replace(complete_outcome().measurement.quality, loss=0.5, loss_interval=(0.4, 0.6)))
    _, told, log = search(parts, answers(evaluate=lambda a: {"quality": quality, "reused": False}), 12)
    states = {t.number: t.outcome.state for t in told}
    measured = [number for number, state in states.items() if state == "complete" and number > 0]
    first = min(measured)
    stopped = [t for t in told if t.outcome.state == "stopped" and t.number > first + 2]
    assert stopped, "two more may have been under way"
    assert all("loss of 50.00%" in (t.outcome.reason or "") for t in stopped if t.outcome.artifact)
    assert [job for _, job in log].count("group_benchmark") >= 1


def slow(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return curve_answer(4.9)


def test_weights_that_cost_too_much_are_not_trained(parts: dict[str, Any]) -> None:
    _, first, _ = search(parts, answers(), 2)
    _, told, _ = search(parts, answers(service_curve=slow), 12)
    stopped = [t for t in told if t.outcome.state == "stopped" and t.outcome.simulated]
    assert stopped
    assert all((t.outcome.reason or "").startswith("pruned: simulated at") for t in stopped)
    trained = {t.candidate.weights.id for t in (*first, *told) if t.outcome.state == "complete"}
    new = [t for t in stopped if t.candidate.weights.distillation and t.candidate.weights.id not in trained]
    assert new and all(set(t.outcome.seconds) == {"cost"} and t.outcome.artifact is None for t in new)
    again = Study("s", parts["study"]._storage, ["latency_p95", "throughput", "quality"], Limits(0.01), 0)
    parts["study"] = again
    known = {t.candidate.id for t in stopped}
    _, later, _ = search(parts, answers(service_curve=slow), 4)
    assert not [t for t in later if t.candidate.id in known and "made before" not in (t.outcome.reason or "")]


def test_the_cost_comes_before_training_and_evaluation(parts: dict[str, Any]) -> None:
    """The weights whose cost is compared have the shape, and no training; the trained ones are not compared again."""
    exports: list[tuple[str, int]] = []

    def exported(arguments: Mapping[str, Any]) -> Any:
        weights = arguments["candidate"]["weights"]
        if weights["distillation"]:
            exports.append((str(weights["pruning"]["ratios"]), weights["distillation"]["epochs"]))
        return answers()["export"](arguments)

    search(parts, answers(export=exported), 2)
    _, told, log = search(parts, answers(export=exported), 10)
    known = [t for t in told if t.outcome.simulated]
    compared = [t for t in known if "cost" in t.outcome.seconds]
    assert compared and sum(job == "service_curve" for _, job in log) == len(compared)
    (first, _), *others = exports
    for place, (shape, epochs) in enumerate(others):
        assert epochs == 0 or shape == first or (shape, 0) in others[:place]
    assert any(epochs == 0 for _, epochs in others)


def test_a_cost_that_is_known_is_not_compared_again(parts: dict[str, Any]) -> None:
    """Candidates that differ in their training only cost the same, in a later run of the study too."""
    domains = {"temperature": Float(1.0, 8.0), "teacher_weight": Float(0.0, 1.0), "feature_weight": Choice((0.0,))}
    weights = replace(parts["space"].weights, pruning={"mlp": Choice((0.5,))}, distillation=domains)
    parts["space"] = replace(parts["space"], weights=weights)
    told, compared = [], 0
    for _ in range(2):
        _, some, log = search(parts, answers(service_curve=slow), 20)
        told += some
        compared += sum(job == "service_curve" for _, job in log)
    stopped = [t for t in told if t.outcome.state == "stopped" and t.outcome.simulated]
    kinds = {(t.candidate.weights.pruning, t.candidate.precision, t.candidate.placement) for t in stopped}
    # Two candidates of the same cost may be under way at once, in each of the runs; one has the baseline's curve.
    assert len(kinds) - 1 <= compared <= len(kinds) + 4 < len(stopped)


def test_of_trainings_of_one_shape_only_one_that_loses_less_is_benchmarked_again(parts: dict[str, Any]) -> None:
    """The loss falls with each evaluation, by less than the data can show but for the tenth."""
    domains = {"temperature": Float(1.0, 8.0), "teacher_weight": Float(0.0, 1.0), "feature_weight": Choice((0.0,))}
    weights = replace(parts["space"].weights, pruning={"mlp": Choice((0.5,))}, distillation=domains)
    precision = replace(parts["space"].precision, widths={"mlp": Choice(("fp32",))})
    placement = replace(parts["space"].placement, layout=Choice(("1xauto",)))
    parts["space"] = SearchSpace(weights, precision, placement)
    parts["study"].note(resolution=0.002)
    calls = iter(range(1000))

    def evaluated(arguments: Mapping[str, Any]) -> dict[str, Any]:
        number = next(calls)
        loss = 0.008 - 0.0001 * min(number, 9) - (0.004 if number >= 10 else 0.0)
        measured = complete_outcome(loss=loss).measurement
        assert measured is not None
        return {"quality": to_plain(measured.quality), "reused": False}

    told = [t for trials in (2, 30) for t in search(parts, answers(evaluate=evaluated), trials)[1]]
    trained = [t for t in told if t.candidate.weights.distillation and t.outcome.evaluated]
    losses = [t.outcome.evaluated.loss for t in trained if t.outcome.state == "complete"]
    assert len(trained) > 12 and 2 <= len(losses) <= 3, "one or two of the first run, before any was measured"
    assert losses[-1] < losses[-2] - 0.002
    stopped = [t for t in trained if t.outcome.state == "stopped"]
    assert all("differs in its training only" in (t.outcome.reason or "") for t in stopped)


def test_weights_that_cannot_be_exported_untrained_are_trained(parts: dict[str, Any]) -> None:
    def exported(arguments: Mapping[str, Any]) -> Any:
        untrained = (arguments["candidate"]["weights"]["distillation"] or {}).get("epochs") == 0
        return "ParityError: all scores are equal" if untrained else answers()["export"](arguments)

    _, told, _ = search(parts, answers(export=exported), 8)
    assert not [t for t in told if t.outcome.state == "failed"]
    trained = [t for t in told if t.candidate.weights.distillation is not None]
    assert trained and {t.outcome.state for t in trained} == {"complete"}


@pytest.mark.parametrize(
    ("other", "model_bytes", "stopped"),
    [
        ("model_bytes", 900, True),
        ("model_bytes", None, False),
        ("peak_memory_bytes", 900, False),
    ],
)
def test_an_objective_beside_latency_is_known_before_training_where_it_is_of_the_file(
    other: str, model_bytes: int | None, stopped: bool, parts: dict[str, Any]
) -> None:
    """A slow candidate is stopped if its file is known to be no smaller than the baseline's, which has 900 bytes."""
    objectives = ("latency_p95", other)
    parts["config"] = parts["config"].model_copy(update={"objectives": objectives})
    parts["study"] = Study("b", parts["study"]._storage, objectives, Limits(0.01), 0)
    script = answers(service_curve=lambda a: curve_answer(4.9, model_bytes))
    search(parts, script, 2)
    _, told, _ = search(parts, script, 8)
    reasons = [t.outcome.reason or "" for t in told if t.outcome.state == "stopped" and t.outcome.informative]
    assert bool(reasons) == stopped
    assert all(re.match(r"pruned: simulated at \S+x p95 and 1x bytes of the baseline", each) for each in reasons)
    untrained = [t for t in told if t.outcome.state == "stopped" and set(t.outcome.seconds) == {"cost"}]
    assert bool(untrained) == stopped


def test_every_other_time_weights_that_there_are_run_in_another_way(parts: dict[str, Any]) -> None:
    _, told, _ = search(parts, answers(), 40)
    drawn = [t.candidate for t in told if t.outcome.state == "complete" and t.candidate.weights.distillation]
    often = Counter(c.weights.id for c in drawn)
    assert max(often.values()) > 1, "pruning ratios are continuous: no weights come twice by chance"
    assert len(often) > 3
    assert len({c.id for c in drawn}) == len(drawn)

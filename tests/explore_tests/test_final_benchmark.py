"""The final benchmark: which points it measures, in which visits, and that the front's numbers are its own."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.jobs.requests import VisitRequest, VisitResponse, WeighRequest
from objectives.measurement import recording
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Window
from objectives.measurement.recording import Recording, Visit, read_recording, write_recording
from objectives.records import Footprint, Interval, Latency, SimulatedRatios, Throughput
from search.cli.console import Console
from search.config.loss_limits import Limits
from search.errors import JobError
from search.explore import benchmark_groups
from search.explore import final_benchmark as module
from search.explore.final_benchmark import FinalBenchmark, grouped, participants
from search.home import Home
from search.study import Study
from search.study_front import study_front
from search.verdict import verdict
from search.workers.meter_jobs import MeterJobs
from spaces.candidate import Candidate
from spaces.weights import Weights
from tests.explore_tests.test_explorer import parts
from tests.measurement_tests.test_recording import random_search, random_timings
from tests.search_tests.measurements import complete_outcome, in_memory, small_space

__all__ = ["parts"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of rates are not looked at here, and their resamples take most of the time."""
    monkeypatch.setattr(recording, "RESAMPLES", 10)


class Meter:
    """A meter that writes recordings: of a candidate by its number the throughput ratio that is planted, else 3."""

    def __init__(self, planted: dict[int, float], failing: Callable[[list[int], int], bool] = lambda *_: False) -> None:
        self.planted, self.failing = planted, failing
        self.visits: list[tuple[int, list[int]]] = []
        self.windows: list[Window] = []
        self.weighed = 0

    def __call__(self, worker: object, request: Any, limit: float, say: object) -> Any:
        if isinstance(request, WeighRequest):
            self.weighed += 1
            return Footprint(1000, 2_000_000, 0.5)
        assert isinstance(request, VisitRequest) and limit == 120.0
        numbers = [int(Path(path).stem.removeprefix("trial-")) for path in request.recordings]
        self.visits.append((request.number, numbers))
        self.windows.append(request.window)
        if self.failing(numbers, request.number):
            raise JobError("gone")
        for number, path in zip(numbers, map(Path, request.recordings), strict=True):
            random = np.random.default_rng([number, request.number])
            capacity = 1000 * self.planted.get(number, 3.0)
            visit = Visit(random_timings(random), random_search(capacity, random), random_search(1000.0, random))
            earlier = read_recording(path).visits if path.exists() else ()
            write_recording(Recording((*earlier, visit), None, 95, 0), path)
        return VisitResponse((1,) * len(numbers))


def stopped_in_its_second_visit() -> Meter:
    """Return a meter that is stopped once, by the first request of the second visit."""

    stops = [1]

    def stopped(_: list[int], visit: int) -> bool:
        if visit in stops:
            stops.clear()
            raise KeyboardInterrupt
        return False

    return Meter({}, failing=stopped)


def taken(meter: Meter) -> list[list[int]]:
    """Return the trials of each visit."""
    return [sorted(t for of, points in meter.visits if of == visit for t in points) for visit in range(3)]


def study_of(parts: dict[str, Any], outcomes: dict[str, tuple[float, float, float]]) -> Study:
    """A study of these trials in their order: p95 ratio, throughput ratio, and loss; `tuned` is a reference point."""
    study: Study = parts["study"]
    space = small_space()
    baseline, pruned, *_ = space.starts()
    for number, (name, numbers) in enumerate(outcomes.items()):
        if name == "reference":
            study.enqueue_reference("logistic regression", Candidate(Weights(reference="logistic_regression")))
        else:
            study.enqueue(pruned | {"pruning.mlp": 0.25 + 0.01 * number} if number else baseline)
        trial, _ = study.ask(space)
        assert trial.number == number
        study.tell(number, complete_outcome(*numbers, key=name), number)
    return study


def final_of(
    parts: dict[str, Any], study: Study, meter: Meter, monkeypatch: pytest.MonkeyPatch, home: Path, visits: int = 1
) -> FinalBenchmark:
    timing = parts["config"].timing.model_copy(update={"final_blocks": 20 * visits})
    parts["config"] = parts["config"].model_copy(update={"timing": timing})
    monkeypatch.setattr(module, "call", meter)
    jobs = MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())
    session: Any = SimpleNamespace(config=parts["config"], home=Home(home), study=study)
    worker: Any = None
    return FinalBenchmark(session, jobs, worker, Console(quiet=True, as_json=False))


OUTCOMES = {
    "baseline": (1.0, 1.0, 0.0),
    "reference": (0.9, 0.9, 0.005),
    "lucky": (0.1, 5.0, 0.001),
    "dominated": (0.2, 4.0, 0.001),
    "exact": (0.5, 3.0, 0.0),
    "lossy": (0.05, 9.0, 0.02),
}


def test_the_front_and_the_reference_points_take_part(parts: dict[str, Any]) -> None:
    study = study_of(parts, OUTCOMES)
    assert [trial.number for trial in participants(study)] == [0, 1, 2, 4]


def test_a_lucky_visit_keeps_no_other_out_of_the_final_benchmark(parts: dict[str, Any]) -> None:
    """It was simulated far slower than a single visit found it, so that it may well be no better than another."""
    study = study_of(parts, {"baseline": (1.0, 1.0, 0.0)})
    others = [(p95, 1 / p95, p95) for p95 in (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)]
    for p95, throughput, simulated in [(0.1, 8.0, 0.6), *others]:
        trial, _ = study.ask(small_space())
        outcome = complete_outcome(p95, throughput, key=str(p95))
        measured, told = outcome.measurement, SimulatedRatios(0.5, 1 / simulated, 0.5, simulated, 0.5, 1.0)
        assert measured is not None
        latency = replace(measured.latency, p95_ratio_interval=(p95 / 3, p95 * 3))
        rates = replace(measured.throughput, ratio_interval=(throughput / 3, throughput * 3))
        measured = replace(measured, latency=latency, throughput=rates)
        study.tell(trial.number, replace(outcome, measurement=measured, simulated=told), 1)
    assert study.front(study.contenders()).keys() == {0, 1}
    assert [trial.number for trial in participants(study)] == [0, 1, 2]


def test_its_numbers_replace_those_of_the_search(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The final benchmark's numbers decide what is on the front.

    The lucky point is measured as a poor one, and the point that it had dominated is measured from the second visit on.
    A point that only the search has measured is not on the front.
    """
    study = study_of(parts, {**OUTCOMES, "worse": (0.6, 2.0, 0.0)})
    meter = Meter({0: 1.0, 1: 0.9, 2: 2.0, 4: 4.0})
    assert study.final_is_due
    final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 100.0)
    assert not study.final_is_due
    # Else of those that took part from the first only the lucky ones would go on.
    assert taken(meter) == [[0, 1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] and meter.weighed == 5
    rows = {point.trial: point for point in study_front(parts["config"], study).points}
    assert [number for number, point in rows.items() if point.final] == [0, 1, 2, 3, 4]
    assert rows[2].capacity_ratio == pytest.approx(2.0, rel=0.01)
    assert rows[3].capacity_ratio == pytest.approx(3.0, rel=0.01)
    assert rows[6].capacity_ratio == 2.0 and not rows[6].on_front
    assert rows[4].capacity_ratio == pytest.approx(4.0, rel=0.01) and rows[4].on_front
    assert rows[4].peak_memory_bytes == 2_000_000
    assert rows[4].quality.loss == 0.0, "quality is that of the search"
    kept = read_recording(tmp_path / str(rows[4].timings))
    assert len(kept.visits) == 3
    assert study.facts["search_seconds"] >= 100.0


def test_the_variance_between_visits_is_that_of_the_other_points(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, {"baseline": (1.0, 1.0, 0.0), "fast": (0.1, 5.0, 0.001)})
    final_of(parts, study, Meter({}), monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    ended = {trial.number: trial for trial in study.ended()}
    latencies = {number: trial.measurement.latency for number, trial in ended.items() if trial.measurement}
    visits = read_recording(tmp_path / str(ended[1].outcome.timings))
    other = module.ratio_noise([(latencies[0], m.throughput) for m in [ended[0].measurement] if m is not None])
    assert visits.summarize(other)[0] == latencies[1]
    assert visits.summarize()[0].p95_ratio_interval != latencies[1].p95_ratio_interval


def test_a_point_that_fails_fails_alone_and_leaves_the_front(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, OUTCOMES)
    meter = Meter({}, failing=lambda numbers, _: 2 in numbers)
    final_of(parts, study, meter, monkeypatch, tmp_path).run(1e9, 0.0)
    final = {trial.number for trial in study.ended() if trial.final}
    assert final == {0, 1, 4}
    assert 2 not in study.front(study.contenders())


def test_a_final_benchmark_whose_baseline_failed_leaves_the_front_and_stays_due(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, OUTCOMES)
    before = study.front(study.contenders())
    final_of(parts, study, Meter({}, failing=lambda *_: True), monkeypatch, tmp_path).run(1e9, 0.0)
    assert study.front(study.contenders()) == before and study.final_is_due
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    assert not study.final_is_due


@pytest.mark.parametrize("failing", [{0}, set(range(9))])
def test_a_second_final_benchmark_whose_baseline_failed_leaves_the_numbers_of_the_first(
    failing: set[int], parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, OUTCOMES)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    final = {trial.number for trial in study.measured_trials() if trial.final}
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(0.01, 30.0, 0.0, "new"), 9)
    meter = Meter({}, failing=lambda numbers, _: bool(failing & set(numbers)))
    final_of(parts, study, meter, monkeypatch, tmp_path).run(1e9, 0.0)
    assert final <= {trial.number for trial in study.measured_trials() if trial.final} and study.final_is_due
    assert study.front(study.contenders())


def test_a_final_benchmark_that_was_interrupted_goes_on_with_what_it_lacks(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two points are measured at a time. The second group of the second of three visits is interrupted."""
    monkeypatch.setattr(benchmark_groups, "TOGETHER", 2)
    monkeypatch.setattr(module, "TOGETHER", 2)

    def interrupted(numbers: list[int], visit: int) -> bool:
        if visit == 1 and [of for of, _ in meter.visits].count(1) == 2:
            raise KeyboardInterrupt
        return False

    three = {name: OUTCOMES[name] for name in ("baseline", "reference", "lucky")}
    study, meter = study_of(parts, three), Meter({2: 9.0}, failing=interrupted)
    with pytest.raises(KeyboardInterrupt):
        final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert study.final_is_due
    before, again = meter.visits, Meter({2: 9.0})
    final_of(parts, study, again, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert not study.final_is_due
    assert sorted(again.visits[0][1]) == sorted(before[-1][1]) and again.visits[0][0] == 1
    assert [number for number, _ in again.visits] == [1, 2, 2]
    final = [trial for trial in study.ended() if trial.final]
    assert [trial.number for trial in final] == [0, 1, 2]
    assert {len(read_recording(tmp_path / str(trial.outcome.timings)).visits) for trial in final} == {3}
    # Every visit was recorded, but not all was noted.
    study.note_final(2, None)
    study.note(**{"final:ended": 0})
    assert [trial.number for trial in study.ended() if trial.final] == [0, 1]
    silent = Meter({2: 9.0})
    final_of(parts, study, silent, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert silent.visits == [] and not study.final_is_due
    assert [trial.number for trial in study.ended() if trial.final] == [0, 1, 2]
    shutil.rmtree(tmp_path)
    another = Meter({2: 9.0})
    final_of(parts, study, another, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert [number for number, _ in another.visits] == [0, 0, 1, 1, 2, 2], "one that ended is not gone on with"


def test_a_final_benchmark_whose_baseline_refused_begins_anew(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, {name: OUTCOMES[name] for name in ("baseline", "reference")})
    summary = module._summary
    monkeypatch.setattr(module, "_summary", lambda *given: None)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    assert study.final_is_due
    again = Meter({})
    final_of(parts, study, again, monkeypatch, tmp_path).run(1e9, 0.0)
    assert len(again.visits) == 1 and study.final_is_due, "all points are measured again"
    monkeypatch.setattr(module, "_summary", summary)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    assert not study.final_is_due


def test_recordings_of_another_study_of_the_name_are_not_continued(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    final_of(parts, study_of(parts, OUTCOMES), Meter({4: 9.0}), monkeypatch, tmp_path).run(1e9, 0.0)
    parts["study"] = Study("s", in_memory(), ["latency_p95", "throughput", "quality"], Limits(0.01), 0)
    study = study_of(parts, OUTCOMES)
    final_of(parts, study, Meter({4: 4.0}), monkeypatch, tmp_path).run(1e9, 0.0)
    point = {point.trial: point for point in study_front(parts["config"], study).points}[4]
    assert point.visits == 1 and point.capacity_ratio == pytest.approx(4.0, rel=0.01)


def test_a_trial_without_an_objective_keeps_no_final_numbers(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The memory could not be measured."""
    study = study_of(parts, OUTCOMES)
    parts["config"] = parts["config"].model_copy(update={"objectives": ("peak_memory_bytes", "quality")})
    final = final_of(parts, study, Meter({}), monkeypatch, tmp_path)
    monkeypatch.setattr(FinalBenchmark, "_footprint", lambda self, trial: Footprint(5))
    final.run(1e9, 0.0)
    assert not any(trial.final for trial in study.ended())


def test_a_point_that_a_regressed_one_had_dominated_joins_the_next_visit(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Capacity stands for throughput here: the p95 ratios of the recordings are about the same."""
    study = study_of(parts, {**OUTCOMES, "other": (0.15, 4.5, 0.001)})
    meter = Meter({2: 1.5})
    final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert [6 in points for points in taken(meter)] == [False, True, True]


def test_only_one_visit_where_the_time_is_over(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study, meter = study_of(parts, OUTCOMES), Meter({})
    final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(0.0, 0.0)
    assert [number for number, _ in meter.visits] == [0]
    assert not study.final_is_due


def intervals(latency: Latency, throughput: Throughput) -> tuple[Interval, ...]:
    return (
        latency.p95_ratio_interval,
        latency.service_p50_ratio_interval,
        throughput.ratio_interval,
        throughput.capacity_ratio_interval,
    )


def test_one_visit_is_as_unsure_as_visits_differ_elsewhere(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The blocks of one visit alone would say less (2.7764 is t of 4 at 0.975), and the verdict names the one visit."""
    study = study_of(parts, {"baseline": (1.0, 1.0, 0.0), "fast": (0.1, 5.0, 0.001)})
    final_of(parts, study, Meter({}), monkeypatch, tmp_path, visits=3).run(0.0, 0.0)
    point = next(one for one in study_front(parts["config"], study).points if one.trial == 1)
    elsewhere = {"p95": 0.16, "service": 0.045, "throughput": 0.13, "capacity": 0.07}
    alone = intervals(*read_recording(tmp_path / str(point.timings)).summarize())
    measured = study.measured()[1]
    whole = intervals(measured.latency, measured.throughput)
    for (name, deviation), (low, high), (least, most) in zip(elsewhere.items(), whole, alone, strict=True):
        assert math.log(high / low) / 2 >= 2.7764 * deviation * 0.999, name
        assert high / low >= most / least, name
    assert whole[0][1] / whole[0][0] > 1.2 * alone[0][1] / alone[0][0]
    found = study_front(parts["config"], study)
    assert any("time for one visit" in said for said in verdict(found).sentences)


def test_trials_after_a_final_benchmark_may_enter_the_front_until_the_next_one(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of the front until then are measured again with them, also where a single visit has beaten them all."""
    study = study_of(parts, OUTCOMES)
    final = final_of(parts, study, Meter({}), monkeypatch, tmp_path)
    final.run(1e9, 0.0)
    before = study.front(study.contenders())
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(0.01, 30.0, 0.0, "new"), 9)
    assert study.front(study.contenders()).keys() == {trial.number} and study.final_is_due
    final.run(1e9, 0.0)
    assert not study.final_is_due
    runs = {one.number: Path(str(one.outcome.timings)).parent.name for one in study.ended() if one.final}
    assert runs[trial.number] == "final-1", "a second one has recordings of its own"
    assert {runs[number] for number in (*before, *study.front(study.contenders()))} == {"final-1"}


def test_numbers_of_two_final_benchmarks_do_not_share_a_front(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A point of the first one, which others beat when the second one chose its points, has no numbers of that."""
    study = study_of(parts, OUTCOMES)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    assert study.measured_trials()[2].final
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(0.01, 30.0, 0.0, "new"), 9)
    monkeypatch.setattr(module, "participants", lambda study: [t for t in participants(study) if t.number != 2])
    final_of(parts, study, Meter(dict.fromkeys(range(10), 0.5)), monkeypatch, tmp_path).run(1e9, 0.0)
    runs = {one.number: Path(str(one.outcome.timings)).parent.name for one in study.ended() if one.final}
    assert set(runs.values()) == {"final-1"} and 2 not in runs
    assert study.front(study.contenders()).keys() <= runs.keys()


def test_a_final_benchmark_is_repeated_only_where_it_lacks_something(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of one visit in place of three is made again with more time; a whole one only for a point that it lacks."""
    study, meter = study_of(parts, OUTCOMES), Meter({})
    final = final_of(parts, study, meter, monkeypatch, tmp_path, visits=3)
    final.run(0.0, 0.0)
    assert len(meter.visits) == 1
    final.run(1e9, 0.0)
    whole = len(meter.visits)
    assert whole >= 4
    spent = study.facts["search_seconds"]
    final.run(1e9, 5.0)
    assert len(meter.visits) == whole and study.facts["search_seconds"] == spent and not study.final_is_due
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(0.9, 0.5, 0.009, "slow"), 9)
    final.run(1e9, 0.0)
    assert len(meter.visits) == whole, "it is on no front"
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(0.01, 30.0, 0.0, "new"), 9)
    final.run(1e9, 0.0)
    assert len(meter.visits) > whole and not study.final_is_due


def test_a_trial_that_is_measured_after_a_final_benchmark_is_new_whatever_its_number(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was chosen before others that ended in time, and may have waited for the next run of the study."""
    study = study_of(parts, OUTCOMES)
    waiting, _ = study.ask(small_space())
    later, _ = study.ask(small_space())
    study.tell(later.number, complete_outcome(0.3, 3.5, 0.001, "later"), 8)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    study.tell(waiting.number, complete_outcome(0.01, 30.0, 0.0, "new"), 9)
    assert waiting.number < later.number and study.front(study.contenders()).keys() == {waiting.number}
    assert 3 in study.passed_over and waiting.number not in study.passed_over


def test_a_study_that_is_begun_anew_has_no_final_numbers(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = study_of(parts, OUTCOMES)
    final_of(parts, study, Meter({}), monkeypatch, tmp_path).run(1e9, 0.0)
    study.restart()
    study.enqueue(small_space().starts()[0])
    trial, _ = study.ask(small_space())
    study.tell(trial.number, complete_outcome(), 1)
    (ended,) = study.ended()
    assert not ended.final and study.contenders().keys() == {0}


def test_groups_are_drawn_anew_and_hold_each_point_once(parts: dict[str, Any]) -> None:
    trials = study_of(parts, {str(number): (0.5, 1.0, 0.0) for number in range(14)}).ended()
    drawn = [[[trial.number for trial in group] for group in grouped(trials, seed)] for seed in range(2)]
    for groups in drawn:
        assert Counter(number for group in groups for number in group) == Counter(range(14))
        assert sorted(map(len, groups)) == [3, 3, 4, 4]
    assert drawn[0] != drawn[1]


def test_models_that_do_not_fit_into_memory_together_are_measured_apart(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = study_of(parts, OUTCOMES).ended()
    monkeypatch.setattr(benchmark_groups, "_BYTES", 2500)
    assert sorted(map(len, grouped(trials, 0))) == [1, 1, 2, 2]


def test_the_reserve_is_what_it_takes_up_to_its_share(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four points of 2 s each in the search, of 140 requests at 100 a second; a visit has 200."""
    final = final_of(parts, study_of(parts, OUTCOMES), Meter({}), monkeypatch, tmp_path, visits=3)
    visit = 4 * 2 * (0.7 + 0.5 * 200 / 140)
    assert final.reserve() == pytest.approx(3 * visit)
    for minutes, visits in ((1.5, 2), (0.1, 1)):  # 27 s hold two visits; one is left in any case
        budget = parts["config"].budget.model_copy(update={"minutes": minutes})
        final.session.config = parts["config"].model_copy(update={"budget": budget})  # type: ignore[misc]
        assert final.reserve() == pytest.approx(visits * visit)


def test_all_visits_have_blocks_of_one_length(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are joined: the baseline's rate before the first decides, of a final benchmark that goes on too."""
    study, meter = study_of(parts, OUTCOMES), stopped_in_its_second_visit()
    baseline = study.measured_trials()[0].measurement
    assert baseline is not None and baseline.latency.rate_rps == 100.0
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    assert len(meter.windows) > 3 and not study.final_is_due
    assert {window.requests for window in meter.windows} == {10}, "200 requests in 20 blocks"


def test_the_time_of_a_final_benchmark_that_is_interrupted_counts(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each reading of the clock is a second later; the second visit is interrupted, and the benchmark then goes on."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    study, meter = study_of(parts, OUTCOMES), stopped_in_its_second_visit()
    with pytest.raises(KeyboardInterrupt):
        final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 100.0)
    spent = study.facts["search_seconds"]
    assert spent - 100 == study.final_seconds > 0
    before = next(seconds)
    final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, spent)
    took = next(seconds) - before - 2
    assert study.final_seconds == study.facts["search_seconds"] - 100 == pytest.approx(spent - 100 + took, abs=1)


def test_a_final_benchmark_that_an_earlier_version_began_goes_on_with_its_blocks(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study, meter = study_of(parts, OUTCOMES), Meter({})
    study.note(**{"final:runs": 1})
    final_of(parts, study, meter, monkeypatch, tmp_path).run(1e9, 0.0)
    assert [window.requests for window in meter.windows] == [25] and not study.final_is_due
    assert (tmp_path / "mlruns/timings/ml-100k/final-0").is_dir()


@pytest.mark.parametrize(
    ("visits", "seconds", "expected"),
    [
        (1, 1e9, [60.0, 60.0]),
        (1, 100.0, [25.0, 50.0]),
        (1, -1.0, [15.0, 15.0]),
        (3, 300.0, [25.0, 30.0]),  # a sixth, and a fifth of what is left
        (3, 120.0, [15.0, 15.0]),
        (2, 120.0, [15.0, 20.0]),
    ],
)
def test_disturbed_blocks_are_repeated_for_the_time_of_a_group(
    visits: int,
    seconds: float,
    expected: list[float],
    parts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Two groups in the first visit, of which each has half of its time for blocks and half for rates."""
    monkeypatch.setattr(benchmark_groups, "_BYTES", 2500)  # two models at most together
    study, meter = study_of(parts, OUTCOMES), Meter({})
    final_of(parts, study, meter, monkeypatch, tmp_path, visits).run(seconds, 0.0)
    assert [window.patience_seconds for window in meter.windows[:2]] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("seconds", "visits"), [(100.0, 1), (330.0, 1), (650.0, 2), (1000.0, 3), (1500.0, 3)])
def test_the_time_is_shared_by_the_visits_that_fit(
    seconds: float, visits: int, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A point takes 60 s in the search, so that the four take 339 s: half of it for blocks, and half for rates."""
    study, meter = study_of(parts, OUTCOMES), Meter({})
    timing = parts["config"].timing.model_copy(update={"patience_seconds": 1e9})
    parts["config"] = parts["config"].model_copy(update={"timing": timing})
    monkeypatch.setattr(module, "_LEAST_PATIENCE", 0.0)
    slow = [replace(trial, outcome=replace(trial.outcome, seconds={"time": 60.0})) for trial in study.measured_trials()]
    final = final_of(parts, study, meter, monkeypatch, tmp_path, visits=3)
    monkeypatch.setattr(study, "measured_trials", lambda: slow)
    final.run(seconds, 0.0)
    assert meter.windows[0].patience_seconds == pytest.approx(seconds / visits / 2, rel=0.01)


def test_a_final_benchmark_that_goes_on_shares_the_time_by_the_visits_that_are_left(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second of three visits was interrupted; each group of the visits that are left gets a share."""
    study, meter = study_of(parts, OUTCOMES), stopped_in_its_second_visit()
    with contextlib.suppress(KeyboardInterrupt):
        final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(1e9, 0.0)
    meter.windows.clear()
    meter.visits.clear()
    final_of(parts, study, meter, monkeypatch, tmp_path, visits=3).run(300.0, 0.0)
    numbers = [visit for visit, _ in meter.visits]
    assert numbers == [0, 1, 1, 2, 2], "a point that joined the front lacks the first visit"
    patience = [window.patience_seconds for window in meter.windows]
    assert patience[:3] == pytest.approx([300.0 / 3 / 2, 300.0 / 4 / 2, 300.0 / 3 / 2], rel=0.05)


@pytest.mark.parametrize(("rate_rps", "more"), [(1000.0, 500 / 300), (200.0, 400 / 200), (10.0, 1.0)])
def test_the_reserve_knows_the_requests_of_a_visit(
    rate_rps: float, more: float, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A final visit has those of 2 s and a visit of the search those of 1 s, and both have 140 for the p95 at least."""
    study = study_of(parts, OUTCOMES)
    paced = []
    for trial in study.measured_trials():
        found = trial.outcome.measurement
        assert found is not None
        at_rate = replace(found, latency=replace(found.latency, rate_rps=rate_rps))
        paced.append(replace(trial, outcome=replace(trial.outcome, measurement=at_rate)))
    monkeypatch.setattr(study, "measured_trials", lambda: paced)
    final = final_of(parts, study, Meter({}), monkeypatch, tmp_path)
    assert final.reserve() == pytest.approx(4 * 2 * (0.7 + 0.5 * more))

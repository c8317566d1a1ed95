"""Final benchmark of a study: its front and its reference points in one run, whose numbers replace those of the search.

A point is on the front partly because its single visit was a lucky one. So the last part of the budget measures all
points of the front anew, in several visits, each of which takes every point: several together beside one baseline, in
groups that are drawn anew for each visit.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from objectives.measurement.latency import Window
from objectives.measurement.recording import Recording, read_recording
from objectives.measurement.visits import NO_RATIO_NOISE, RatioNoise
from objectives.records import Footprint, Latency, NotFiniteError, Throughput
from search.cli.console import Console
from search.errors import JobError
from search.explore.benchmark_groups import TOGETHER, fitting
from search.explore.reference_points import tuned_baseline
from search.format import count
from search.session import Session
from search.study import Study
from search.trials import EndedTrial, FinalNumbers, sought
from search.workers.meter_jobs import MeterJobs, Side, ratio_noise
from search.workers.processes import Worker, call

# Seconds of a visit for each candidate, before a study has shown its own.
_VISIT_SECONDS = 20.0
# A final visit takes so many times as long for each candidate as one of the search: a fixed part, with the footprint,
# which the search does not measure, plus a part in proportion to the number of requests. With 1.67 times as many,
# visits of two example studies took 1.6 and 1.45 times as long, and 1.33 times without the footprint.
_WITHOUT_REQUESTS, _PER_REQUESTS = 0.7, 0.5
# Least share of the patience with disturbed blocks, where the budget is spent.
_LEAST_PATIENCE = 0.25


@dataclass(frozen=True)
class FinalBenchmark:
    """The final benchmark of one study, on one worker."""

    session: Session
    jobs: MeterJobs
    meter: Worker
    console: Console

    def reserve(self) -> float:
        """Return the seconds of the budget to keep for the final benchmark.

        They are estimated by the trials so far: the seconds of all visits, or of as many as fit into its share of the
        budget, at least one.
        """
        budget, seconds = self.session.config.budget, self._expected_seconds()
        fit = int(60 * budget.minutes * budget.final_share / seconds)
        return min(max(fit, 1), self.jobs.final_window.visits) * seconds

    def _expected_seconds(self) -> float:
        """Return the seconds that a visit of all points is expected to take, by the trials so far."""
        trials, points = self.session.study.measured_trials(), max(1, len(participants(self.session.study)))
        measured = [trial.outcome.seconds.get("time", 0.0) for trial in trials]
        rate = next((m.latency.rate_rps for trial in trials if (m := trial.measurement) is not None), None)
        return points * (_VISIT_SECONDS if rate is None else self._longer(rate) * fmean(measured))

    def _longer(self, rate_rps: float) -> float:
        """Return the seconds of a visit for each point over those of the search, by the rate of its requests."""
        final, search = self.jobs.final_window.at(rate_rps), self.jobs.window("screen").at(rate_rps)
        more = final.blocks * final.requests / (search.blocks * search.requests)
        return _WITHOUT_REQUESTS + _PER_REQUESTS * more

    def run(self, seconds: float, spent_seconds: float) -> None:
        """Benchmark all points once, and again for as long as the time holds and their visits are not complete.

        A final benchmark that was interrupted goes on with the points and visits that it lacks. Nothing is benchmarked
        where the last one had all visits and all points.

        Args:
            seconds: left of the budget
            spent_seconds: of the budget, before this
        """
        if self._is_complete():
            self.console.say("final benchmark: all of its points were measured in the last one")
            return
        study, start, earlier = self.session.study, time.monotonic(), self.session.study.final_seconds

        def note_seconds() -> None:
            took = time.monotonic() - start
            study.note_seconds(spent_seconds + took, earlier + took)

        try:
            self._run(seconds, start, note_seconds)
        finally:
            note_seconds()

    def _is_complete(self) -> bool:
        """Return whether the last final benchmark had all visits, and all points that another one would have."""
        study = self.session.study
        if study.open_final is not None or study.ended_final is None:
            return False
        folder = f"final-{study.ended_final}"
        visits = {trial.number: self._visited(trial, folder) for trial in participants(study)}
        return min(visits.values()) > 0 and visits[0] >= self.jobs.final_window.visits

    def _run(self, seconds: float, start: float, note_seconds: Callable[[], None]) -> None:
        study, longest = self.session.study, 0.0
        # The time is shared by the visits that it was reserved for, of which the search may have taken a little.
        planned, folder = max(1, round(seconds / self._expected_seconds())), self._begin()
        # Blocks of several visits, which are joined, have one length, also where the final benchmark goes on.
        window = replace(self.jobs.final_window, requests=study.final_requests or self.jobs.final_window.requests)
        for number in range(window.visits):
            begun = time.monotonic()
            if number and begun - start + longest > seconds:
                self.console.say(
                    f"final benchmark: the time is spent after {count(number, 'visit')} of {window.visits}"
                )
                break
            # Who was visited stays, though its numbers no longer are on the front: only lucky ones would go on.
            wanted = {trial.number for trial in participants(study)}
            visits = {trial.number: self._visited(trial, folder) for trial in study.measured_trials()}
            points = [t for t in study.measured_trials() if t.number in wanted or visits[t.number]]
            points = [trial for trial in points if visits[trial.number] <= number]
            if not points:
                continue
            what = f"visit {number + 1} of {window.visits}, {count(len(points), 'point')} beside the baseline"
            self.console.say(f"final benchmark: {what}")
            groups = [*grouped(points, self.session.config.seed + number)]
            planned = min(planned, window.visits - number)
            for done, group in enumerate(groups):
                remaining = len(groups) * planned - done
                each = (start + seconds - time.monotonic()) / remaining
                self._visit(group, number, folder, _within(window, each))
            self._note(folder)
            note_seconds()
            planned = max(1, planned - 1)
            longest = max(longest, time.monotonic() - begun)
        if not longest:
            self._note(folder)
        baseline = next(trial for trial in study.measured_trials() if trial.number == 0)
        if not (baseline.final and self._visited(baseline, folder)):
            self.console.warn("the baseline failed in the final benchmark: the front keeps the numbers of the search")
            return
        for trial in study.measured_trials():
            if trial.final and not self._visited(trial, folder):
                study.note_final(trial.number, None)  # numbers of two runs are not to share a front
        study.end_final()

    def _begin(self) -> str:
        """Return the folder of the recordings: that of a final benchmark that goes on, or of a new one."""
        study = self.session.study
        baseline = next(trial for trial in study.measured_trials() if trial.number == 0)
        if study.open_final is not None:
            folder = f"final-{study.open_final}"
            path = self.session.home.root / self._recording(baseline, folder)
            # Without numbers of the baseline it could never end.
            if not path.exists() or _summary(read_recording(path)) is not None:
                return folder
        assert baseline.measurement is not None, "it was measured"
        requests = self.jobs.final_window.at(baseline.measurement.latency.rate_rps).requests
        folder = f"final-{study.begin_final(requests)}"
        # Recordings of a study of this name in another database are not to be continued.
        shutil.rmtree((self.session.home.root / self.jobs.recording(folder)).with_suffix(""), ignore_errors=True)
        return folder

    def _visit(self, group: Sequence[EndedTrial], number: int, folder: str, window: Window) -> None:
        """Measure a visit of a group; where that fails, of each half of it, so that one that fails fails alone."""
        recordings = [self._recording(trial, folder) for trial in group]
        seed, sides = self.session.config.seed, [_side(trial) for trial in group]
        request = self.jobs.visit(sides, window, seed, number, recordings)
        try:
            call(self.meter, request, self.session.config.workers.job_seconds, self.console.say)
        except JobError as error:
            if len(group) == 1:
                self.console.warn(f"trial {group[0].number} failed in the final benchmark: {error}")
                return
            middle = len(group) // 2
            for half in (group[:middle], group[middle:]):
                self._visit(half, number, folder, window)

    def _visited(self, trial: EndedTrial, folder: str) -> int:
        """Return how many visits of a trial were recorded."""
        path = self.session.home.root / self._recording(trial, folder)
        return len(read_recording(path).visits) if path.exists() else 0

    def _note(self, folder: str) -> None:
        """Replace the points' numbers by those of the visits so far.

        Each has the variance between the visits of the others. A point gets no final numbers where it refused too many
        requests in a visit or an objective is missing.
        """
        study, found = self.session.study, {}
        for trial in study.measured_trials():
            path = self.session.home.root / self._recording(trial, folder)
            if path.exists():
                found[trial.number] = trial, read_recording(path)
        alone = {number: _summary(recording) for number, (_, recording) in found.items()}
        for number, (trial, recording) in found.items():
            noise = ratio_noise([each for other, each in alone.items() if other != number and each is not None])
            study.note_final(number, self._final_numbers(trial, _summary(recording, noise), folder))

    def _final_numbers(
        self, trial: EndedTrial, summary: tuple[Latency, Throughput] | None, folder: str
    ) -> FinalNumbers | None:
        """Return a trial's numbers with its footprint; None where there are none, or an objective is missing."""
        if summary is None:
            return None
        numbers = FinalNumbers(*summary, self._footprint(trial), self._recording(trial, folder))
        measured = trial.with_final(numbers).measurement
        assert measured is not None
        try:
            sought(measured, self.session.config.objectives)
        except ValueError:
            return None
        return numbers

    def _footprint(self, trial: EndedTrial) -> Footprint:
        """Return a trial's footprint with memory and CPU time, if they can be measured."""
        assert trial.measurement is not None
        known = trial.measurement.footprint
        if known.peak_memory_bytes is not None:
            return known
        limit = self.session.config.workers.job_seconds
        try:
            return call(self.meter, self.jobs.weigh(_side(trial)), limit, self.console.say)
        except JobError as error:
            self.console.warn(f"trial {trial.number}: {error}")
            return known

    def _recording(self, trial: EndedTrial, folder: str) -> str:
        return self.jobs.recording(f"{folder}/trial-{trial.number}")


def participants(study: Study) -> list[EndedTrial]:
    """Return the trials that the final benchmark measures, by number.

    They are the front, as it was measured and as it is expected, the baseline, the reference points and the best
    placement of the baseline's own model. What was on the front of an earlier final benchmark is measured again, also
    where a single visit of a later trial says that it is beaten, since it may be on the front once more when that one
    has been measured more often.
    """
    contenders, trials = study.contenders(), study.measured_trials()
    tuned = tuned_baseline([trial for trial in trials if trial.number in contenders])
    earlier = {trial.number: contenders[trial.number] for trial in trials if trial.final and trial.number in contenders}
    numbers = {*study.front(contenders), *study.expected_front(contenders), *study.front(earlier), 0, tuned}
    return [trial for trial in trials if trial.number in numbers or trial.reference is not None]


def _within(window: Window, seconds: float) -> Window:
    """Return the window of a group whose visit has so many seconds, after which disturbed blocks are not repeated.

    Half of them is for the blocks, and half for the rates. Some are repeated even where no time is left.
    """
    least, most = _LEAST_PATIENCE * window.patience_seconds, window.patience_seconds
    return replace(window, patience_seconds=min(max(seconds / 2, least), most))


def grouped(points: Sequence[EndedTrial], seed: int) -> Iterator[list[EndedTrial]]:
    """Yield groups of the points that are measured together, drawn at random.

    The groups are of about equal size, and no larger than fits into memory.
    """
    drawn = random.Random(seed).sample(points, len(points))
    groups = -(-len(drawn) // TOGETHER)
    for group in (drawn[first::groups] for first in range(groups)):
        yield from fitting(group, [_side(trial) for trial in group])


def _side(trial: EndedTrial) -> Side:
    assert trial.outcome.artifact is not None, "a measured trial was built"
    return trial.outcome.artifact, trial.candidate


def _summary(recording: Recording, noise: RatioNoise = NO_RATIO_NOISE) -> tuple[Latency, Throughput] | None:
    """Return the numbers of a recording, None where too many requests were refused in a visit."""
    try:
        return recording.summarize(noise)
    except NotFiniteError:
        return None

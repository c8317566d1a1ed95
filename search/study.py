"""Storage of studies in optuna: ask, tell, constraints, resume. Every trial's whole outcome is kept with it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from objectives.records import Measurement, Outcome
from search.config.loss_limits import Limits
from search.config.sections import SamplerName
from search.expected_cost import QUALITY, ExpectedCosts, expected_costs
from search.front import resolved_front
from search.home import is_missing
from search.samplers.drawn import Drawn
from search.samplers.expected_gain import Evidence, ExpectedGainSampler
from search.samplers.importance import importance
from search.samplers.knob_importance import KnobImportance
from search.samplers.samplers import make_sampler
from search.trials import EndedTrial, FinalNumbers, sought
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.search_space import SearchSpace
from spaces.serialization import Json, from_plain, to_plain

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("sqlalchemy").setLevel(logging.ERROR)

# Facts of the final benchmarks: the numbers of each trial, how many were begun and ended, the trials that were measured
# before the last one ended, and their seconds.
_FINAL, _FINAL_RUNS, _FINAL_ENDED = "final:", "final:runs", "final:ended"
_FINAL_BEFORE, _FINAL_SECONDS = "final:before", "final:seconds"
# Requests of a block of the last final benchmark that was begun.
_FINAL_REQUESTS = "final:requests"
# Attributes of a trial that was enqueued as a starting point, and that was proposed.
_START, EXPECTED_LOSS = "start", "expected_loss"
# Facts: the sources of starting points whose points were enqueued, and elastic networks that could not be trained.
STARTED_FROM, _FAILED_NETWORKS = "started_from", "failed_networks"
# Facts that begin so belong to the trials, and are forgotten with them.
_OF_TRIALS = (_FINAL, STARTED_FROM, _FAILED_NETWORKS)
# Ended trials, the last ones, that a proposal is made from, besides all that were measured.
_RECENT = 1000


class Study:
    """One optuna study in a database; one coordinator asks and tells, so that what it read stays as it is."""

    def __init__(
        self,
        name: str,
        storage: str,
        objectives: Sequence[str],
        limits: Limits,
        seed: int,
        sampler: SamplerName = "tpe",
    ) -> None:
        self._objectives, self._limits = tuple(objectives), limits
        self._name, self._storage, self._seed = name, storage, seed
        self._sampler = make_sampler(sampler, objectives, limits, seed)
        self._study = self._open()

    def _open(self) -> optuna.Study:
        self._facts: Json | None = None
        self._ended: dict[int, EndedTrial] | None = None
        self._measured: dict[int, EndedTrial] = {}
        self._expected: ExpectedCosts | None = None
        self._known: set[Candidate] = set()
        self._leading = 0
        return optuna.create_study(
            study_name=self._name,
            storage=self._storage,
            sampler=self._sampler,
            directions=["minimize"] * len(self._objectives),
            load_if_exists=True,
        )

    def restart(self) -> None:
        """Forget all trials and what belongs to them; what else is known of the study stays."""
        facts = {key: value for key, value in self.facts.items() if not key.startswith(_OF_TRIALS)}
        self.forget()
        self.note(**facts)

    def forget(self) -> None:
        """Forget all trials, and what is known of the study as a whole."""
        optuna.delete_study(study_name=self._name, storage=self._storage)
        self._study = self._open()

    @property
    def facts(self) -> Json:
        """Facts of the study as a whole."""
        if self._facts is None:
            self._facts = self._study.user_attrs
        return dict(self._facts)

    def refresh_facts(self) -> None:
        """Read the facts anew when they are next asked for, with what other processes have noted."""
        self._facts = None

    @property
    def resolution(self) -> float:
        """The smallest loss that its data can show; 0 until that is known."""
        return float(self.facts.get("resolution") or 0.0)

    def note(self, **facts: object) -> None:
        for key, value in facts.items():
            self._study.set_user_attr(key, value)
            if self._facts is not None:
                self._facts[key] = json.loads(json.dumps(value))  # as it is read again

    def enqueue(self, params: Mapping[str, Scalar]) -> None:
        """Enqueue a starting point of the search."""
        self._study.enqueue_trial(dict(params), user_attrs={_START: True})

    def enqueue_reference(self, name: str, candidate: Candidate) -> None:
        """Enqueue a candidate that need not be in the space, to be measured in any case; it has no knobs."""
        self._study.enqueue_trial({}, user_attrs={"reference": name, "candidate": to_plain(candidate)})

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the reference points that were asked for, or wait to be."""
        names = (trial.user_attrs.get("reference") for trial in self._study.get_trials(deepcopy=False))
        return tuple(filter(None, names))

    def ask(
        self,
        space: SearchSpace,
        settled: Mapping[str, Scalar] | None = None,
        evaluated: Sequence[EndedTrial] = (),
        builders: int = 1,
        left: float = math.inf,
    ) -> tuple[Trial, Candidate]:
        """Return the next choice: one that waits, else a new one around the knobs that are settled.

        Args:
            evaluated: trials under way whose cost and loss are known
            builders: workers that train
            left: seconds of search that are left
        """
        trials = self._unfinished()
        waiting = next((trial for trial in trials if trial.state == TrialState.WAITING), None)
        if waiting is not None and "candidate" in waiting.user_attrs:
            return self._begin_again(waiting)
        if settled and waiting is None:
            self._study.enqueue_trial(dict(settled))
        elif isinstance(self._sampler, ExpectedGainSampler) and waiting is None:
            ended, pending, passed_over = [*self._recent(), *evaluated], _pending(trials), self.passed_over
            front, costs = self.expected_front(self.contenders()), self.expected_costs()
            evidence = Evidence(space, ended, self._known, pending, front, builders, passed_over, costs, left)
            drawn = self._sampler.propose(evidence, self._leading + len(trials))
            return self._begin(drawn, self._sampler.expected_loss)
        trial = self._study.ask()
        candidate = space.suggest(trial)
        trial.set_user_attr("candidate", to_plain(candidate))
        return trial, candidate

    def _unfinished(self) -> Sequence[FrozenTrial]:
        """Return all trials from the first one that has not ended, so that an ask of a long study looks at few.

        Those before it change no more.
        """
        trials = self._study.get_trials(deepcopy=False)
        while self._leading < len(trials) and trials[self._leading].state.is_finished():
            self._leading += 1
        return trials[self._leading :]

    @property
    def next_number(self) -> int:
        """Number of the next trial that is not one that waits."""
        return len(self._study.get_trials(deepcopy=False))

    def _begin(self, drawn: Drawn, expected_loss: float | None) -> tuple[Trial, Candidate]:
        """Begin the trial of a proposal, with all of its knobs in one transaction.

        A kill between two would leave part of a choice.
        """
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(drawn.knobs),
            distributions=dict(drawn.distributions),
            user_attrs={"candidate": to_plain(drawn.candidate), EXPECTED_LOSS: expected_loss},
        )
        identity = self._study._storage.create_new_trial(self._study._study_id, template)
        return Trial(self._study, identity), drawn.candidate

    @property
    def reference_waits(self) -> bool:
        """Return True if a reference point waits to be asked for."""
        return self._waiting_reference() is not None

    def ask_reference(self) -> tuple[Trial, Candidate]:
        """Return a reference point that waits, before any other choice that was enqueued."""
        waiting = self._waiting_reference()
        assert waiting is not None, "the caller has seen that one waits"
        return self._begin_again(waiting)

    def _begin_again(self, waiting: FrozenTrial) -> tuple[Trial, Candidate]:
        """Begin a trial that waits, and whose candidate is settled."""
        self._study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
        return Trial(self._study, waiting._trial_id), from_plain(Candidate, waiting.user_attrs["candidate"])

    def _waiting_reference(self) -> FrozenTrial | None:
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return next((trial for trial in waiting if "reference" in trial.user_attrs), None)

    def _recent(self) -> list[EndedTrial]:
        """Return the trials that were measured, and the last of the others, by number."""
        ended = self.ended()
        earlier = (trial for trial in ended[:-_RECENT] if trial.number in self._measured)
        return [*earlier, *ended[-_RECENT:]]

    def tell(self, number: int, outcome: Outcome, minutes: float) -> None:
        """Keep the outcome first, then close the trial: a kill in between is mended by `sweep`."""
        trial = self._open_trial(number)
        trial.set_user_attr("minutes", minutes)
        trial.set_user_attr("outcome", json.dumps(to_plain(outcome), allow_nan=False))
        self._close(trial, outcome)

    def sweep(self) -> None:
        """Close trials that a run left open by their outcome; the others wait, and are asked for first.

        One that waits keeps its number and its choice, on which later proposals depend.
        """
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "outcome" in frozen.user_attrs:
                self._close(self._open_trial(frozen.number), _outcome(frozen))
            else:
                self._study._storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING)

    def ask_again(self, number: int, changed: Mapping[str, Scalar]) -> None:
        """Enqueue the choice of a trial with some knobs changed: another choice, of which nothing was expected."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        kept = {_START: True} if _START in frozen.user_attrs else None
        chosen = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params, **changed}
        self._study.enqueue_trial(chosen, user_attrs=kept)

    @property
    def failed_networks(self) -> dict[str, str]:
        """Reasons why elastic networks could not be trained, by the origin of their slices."""
        return dict(self.facts.get(_FAILED_NETWORKS, {}))

    @failed_networks.setter
    def failed_networks(self, reasons: Mapping[str, str]) -> None:
        self.note(**{_FAILED_NETWORKS: dict(reasons)})

    def finished(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]

    def ended(self) -> list[EndedTrial]:
        """The trials that ended and whose choice was settled; each is read once, however often it is asked for."""
        return [*self._by_number().values()]

    def _by_number(self) -> dict[int, EndedTrial]:
        """Return the ended trials in the order of their numbers; each is read once."""
        if self._ended is None:
            self._ended = {}
            for trial in self.finished():
                self._keep(trial)
        return self._ended

    def _keep(self, trial: FrozenTrial) -> None:
        """Read a trial that ended, if its choice was settled."""
        if self._ended is None or not {"candidate", "outcome"} <= trial.user_attrs.keys():
            return
        candidate = from_plain(Candidate, trial.user_attrs["candidate"])
        minutes, reference = map(trial.user_attrs.get, ("minutes", "reference"))
        told = EndedTrial(
            trial.number,
            candidate,
            _outcome(trial),
            minutes,
            reference,
            trial.params,
            start=bool(trial.user_attrs.get(_START)),
            expected_loss=trial.user_attrs.get(EXPECTED_LOSS),
            times_ms=_times_ms(trial),
        )
        final = self.facts.get(_FINAL + str(trial.number))
        told = told if final is None else told.with_final(from_plain(FinalNumbers, final))
        late = trial.number < max(self._ended, default=-1)
        self._ended[trial.number] = told
        if late:  # trials end in another order than they begin
            self._ended = dict(sorted(self._ended.items()))
        if told.measurement is not None:
            self._expected = None
            self._measured = dict(sorted({**self._measured, trial.number: told}.items()))
        if told.outcome.informative or told.outcome.state == "failed":
            self._known.add(candidate)

    def begin_final(self, requests: int) -> int:
        """Return the number of a new final benchmark, from 0, whose blocks have so many requests."""
        run = int(self.facts.get(_FINAL_RUNS, 0))
        self.note(**{_FINAL_REQUESTS: requests, _FINAL_RUNS: run + 1})
        return run

    @property
    def final_requests(self) -> int | None:
        """Requests of a block of the last final benchmark; None where an earlier version began it."""
        return self.facts.get(_FINAL_REQUESTS)

    def note_final(self, number: int, numbers: FinalNumbers | None) -> None:
        """Replace a trial's numbers by those of a final benchmark; None for those of the search again."""
        self.note(**{_FINAL + str(number): None if numbers is None else to_plain(numbers)})
        self._keep(self._study.get_trials(deepcopy=False)[number])

    def end_final(self) -> None:
        """Leave to the front, of the trials measured so far, those of the final benchmark only."""
        before = [trial.number for trial in self.measured_trials()]
        self.note(**{_FINAL_BEFORE: before, _FINAL_ENDED: self.facts.get(_FINAL_RUNS, 0)})

    def note_seconds(self, search: float, final: float) -> None:
        """Note the seconds that were spent of the budget, and those of all final benchmarks."""
        self.note(search_seconds=search, **{_FINAL_SECONDS: final})

    @property
    def final_seconds(self) -> float:
        """Seconds of all final benchmarks."""
        return float(self.facts.get(_FINAL_SECONDS, 0.0))

    @property
    def open_final(self) -> int | None:
        """Number of the final benchmark that was begun and not ended; None where there is none."""
        begun = int(self.facts.get(_FINAL_RUNS, 0))
        return None if begun == self.facts.get(_FINAL_ENDED, 0) else begun - 1

    @property
    def ended_final(self) -> int | None:
        """Number of the last final benchmark that ended; None where there is none."""
        ended = int(self.facts.get(_FINAL_ENDED) or 0)
        return ended - 1 if ended else None

    @property
    def final_is_due(self) -> bool:
        """Return True if a final benchmark was begun and not ended, or a trial of a front was not part of one."""
        if self.open_final is not None:
            return True
        final, able = {trial.number for trial in self.measured_trials() if trial.final}, self.contenders()
        return not self.front(able).keys() | self.expected_front(able).keys() <= final

    def spent(self) -> int:
        """Count the trials against `budget.trials`.

        These are the trials of the search that ended, in any state. The baseline and reference points do not count, nor
        do trials that were stopped and tell nothing, such as a choice that was made before.
        """
        outcomes = (trial.outcome for trial in self.ended() if trial.number > 0 and trial.reference is None)
        return sum(outcome.state != "stopped" or outcome.informative for outcome in outcomes)

    def measured(self) -> dict[int, Measurement]:
        """Return the measurements of the complete trials, by number."""
        return {trial.number: m for trial in self.measured_trials() if (m := trial.measurement) is not None}

    def measured_trials(self) -> list[EndedTrial]:
        """The complete trials, by number."""
        self._by_number()
        return [*self._measured.values()]

    def able(self) -> dict[int, Measurement]:
        """Return the measurements within the tolerated losses, by number."""
        return {number: m for number, m in self.measured().items() if self._limits.kept(m.quality)}

    def contenders(self) -> dict[int, Measurement]:
        """Return those of `able` that may be on the front.

        One that the final benchmark passed over is not: its single visit may have been a lucky one, and others were
        measured more often since.
        """
        passed_over = self.passed_over
        return {number: m for number, m in self.able().items() if number not in passed_over}

    @property
    def passed_over(self) -> set[int]:
        """Numbers of the trials that were measured before the last final benchmark, and left out of it."""
        # The version before noted the last number that had ended.
        before = self.facts.get(_FINAL_BEFORE, range(int(self.facts.get("final:until", -1)) + 1))
        return set(before) - {trial.number for trial in self.measured_trials() if trial.final}

    def front(self, among: Mapping[int, Measurement]) -> dict[int, Measurement]:
        """Return those on their common front, with losses at the resolution of the data; ValueError as in `sought`."""
        return self._resolved(among, {number: sought(m, self._objectives) for number, m in among.items()})

    def expected_front(self, among: Mapping[int, Measurement]) -> dict[int, Measurement]:
        """Return those that are expected on their common front if they were measured again.

        The search goes by this front, which the luckiest of many single visits do not make up.
        """
        expected, rows = self.expected_costs().measured, dict[int, list[float]]()
        for number, measured in among.items():
            others = iter(expected[number].tolist())
            loss = max(0.0, measured.quality.loss)
            rows[number] = [loss if name == QUALITY else next(others) for name in self._objectives]
        return self._resolved(among, rows)

    def expected_costs(self) -> ExpectedCosts:
        """Return the costs that are expected, given the trials that were measured."""
        if self._expected is None:
            self._expected = expected_costs(self.measured_trials(), self._objectives)
        return self._expected

    def _resolved(
        self, among: Mapping[int, Measurement], rows: Mapping[int, Sequence[float]]
    ) -> dict[int, Measurement]:
        if not among:
            return {}
        quality = self._objectives.index(QUALITY) if QUALITY in self._objectives else None
        kept = resolved_front([*rows.values()], quality, self.resolution)
        return {number: m for (number, m), on_front in zip(among.items(), kept, strict=True) if on_front}

    def importance(self) -> dict[str, tuple[KnobImportance, ...]]:
        """Return the importance of the knobs by objective, the largest first; empty while too few trials have ended."""
        return importance(self._study, self._recent(), self._objectives, self._limits, self._seed)

    def _open_trial(self, number: int) -> Trial:
        identity = self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        return Trial(self._study, identity)

    def _close(self, trial: Trial, outcome: Outcome) -> None:
        if outcome.measurement is None:
            # A sampler is not to take a stopped trial for a good one; the repeat of a good one leads it elsewhere.
            trial.set_constraint("stopped", 1.0)
            state = TrialState.PRUNED if outcome.state == "stopped" else TrialState.FAIL
            self._keep(self._study.tell(trial, state=state))
            return
        for name, excess in self._limits.excesses(outcome.measurement.quality).items():
            trial.set_constraint(name, excess)
        self._keep(self._study.tell(trial, sought(outcome.measurement, self._objectives)))


def _pending(trials: Sequence[FrozenTrial]) -> list[Candidate]:
    """Return the candidates of the trials that are under way."""
    running = (trial.user_attrs for trial in trials if trial.state == TrialState.RUNNING)
    chosen = (told.get("candidate") for told in running if "outcome" not in told)
    return [from_plain(Candidate, plain) for plain in chosen if plain is not None]


def _times_ms(trial: FrozenTrial) -> tuple[int, int] | None:
    """Return begin and end of a trial, in milliseconds since the epoch."""
    begin, end = trial.datetime_start, trial.datetime_complete
    return None if begin is None or end is None else (int(1000 * begin.timestamp()), int(1000 * end.timestamp()))


def _outcome(trial: FrozenTrial) -> Outcome:
    plain = json.loads(trial.user_attrs["outcome"])
    plain.pop("quick_benchmark", None)  # of the version before, which compared costs in closed loops
    return from_plain(Outcome, plain)


def exists(name: str, storage: str) -> bool:
    """Return whether such a study exists, without creating a database."""
    return not is_missing(storage) and name in optuna.get_all_study_names(storage)

"""The front of a study, built from its trials and from what is known of the study as a whole."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from objectives.measurement.profile.footprint import money_per_million
from objectives.records import Measurement
from search.ablation.records import AblationSummary, ablations
from search.ablation.verdict import ablation_summary
from search.config.sections import StudyConfig
from search.explore.first_trials import dry_run_trials
from search.explore.reference_points import beside_tuned, tuned_baseline
from search.front import hypervolume, unit_objectives
from search.profile.study_profile import read_profile
from search.results import TUNED, Front, Point, PointLatency, PointQuality, Row, Source, numbers_of, read_choice
from search.samplers.knob_importance import KnobImportance
from search.study import Study
from search.trials import EndedTrial
from search.verdict import doubts, interference_warnings
from spaces.candidate import Candidate
from spaces.serialization import Json, fields_in, from_plain

_STAGES = ("cost", "network", "fit", "export", "judge", "time")


def study_front(config: StudyConfig, study: Study) -> Front:
    """The result of a study so far. Trials whose choice was never settled are left out."""
    facts, settled, measured, able = study.facts, _timed(study), study.measured(), study.able()
    contenders = study.contenders()
    members = study.front(contenders)
    standing, sources = (able, contenders, members), _sources(settled)
    rows = _beside_references(
        [_row(one, standing, sources[one.number], config.price_per_hour) for one in settled],
        settled,
        tuned_baseline([one for one in settled if one.number in contenders]),
    )
    ratios = [(m.latency.p95_ratio, m.throughput.ratio, m.quality.loss) for m in contenders.values()]
    p95, throughput, loss = np.reshape(ratios, (-1, 3)).T
    prepared, chosen = facts.get("prepared", {}), facts.get("chosen")
    references = dict(prepared.get("references", {}))
    choice = None if chosen is None else read_choice(chosen)
    front = Front(
        study=config.name,
        rows=tuple(rows),
        max_loss=config.quality.max_loss,
        objectives=tuple(config.objectives),
        hypervolume=hypervolume(unit_objectives(p95, throughput, loss, config.quality.max_loss)),
        minutes=facts.get("search_seconds", 0.0) / 60,
        final_seconds=study.final_seconds,
        resolution=facts.get("resolution"),
        machine=facts.get("machine", ""),
        rate_rps=_median([m.latency.rate_rps for m in measured.values()]),
        slo_ms=_measured_slo(config, [m.throughput.slo_ms for m in measured.values()]),
        slo_percentile=config.slo.percentile,
        through=config.traffic.through,
        overhead_ms=config.traffic.overhead_ms,
        bayes_auc=references.pop("bayes_optimal", None),
        references=references,
        reference_metric=prepared.get("reference_metric", "auc"),
        split=prepared.get("split", ""),
        undertrained=prepared.get("undertrained"),
        left_alone=dict(prepared.get("left_alone") or {}),
        chosen=choice,
        importance={
            objective: tuple(from_plain(KnobImportance, one) for one in knobs)
            for objective, knobs in facts.get("importance", {}).items()
        },
        ablation=_ablation(config.name, rows, None if choice is None else choice.row.trial, facts),
    )
    return replace(front, warnings=tuple(doubts(front)))


def _timed(study: Study) -> list[EndedTrial]:
    """Return the trials that ended; those of the dry run, which has a clock of its own, were there from the start."""
    dry, ended = dry_run_trials(study), study.ended()
    return [replace(one, minutes=0.0) if one.number in dry else one for one in ended]


def _beside_references(rows: Sequence[Row], settled: Sequence[EndedTrial], number: int | None) -> list[Row]:
    """The rows with the names of the reference points, and every point's ratios to the tuned baseline, this trial."""
    names = {one.candidate.id: one.reference for one in settled if one.reference}
    tuned = next((row for row in rows if isinstance(row, Point) and row.trial == number), None)
    found = []
    for row in rows:
        name = names.get(row.candidate)
        row = replace(row, reference=TUNED if row is tuned else None if name == TUNED else name)
        if isinstance(row, Point) and tuned is not None:
            row = replace(row, tuned=beside_tuned(row, tuned))
        found.append(row)
    return found


def _ablation(study: str, rows: Sequence[Row], chosen: int | None, facts: Json) -> AblationSummary | None:
    """The effects of the chosen trial's techniques, where they were measured, else those measured last."""
    candidates = {row.trial: row.candidate for row in rows}
    # A study begun anew has other candidates under the same numbers.
    known = [ablation for ablation in ablations(facts) if candidates.get(ablation.trial) == ablation.candidate.id]
    if not known:
        return None
    known.sort(key=lambda ablation: ablation.trial == chosen)
    return ablation_summary(study, known[-1], read_profile(facts))


def _measured_slo(config: StudyConfig, found: Sequence[float]) -> float | None:
    """Return the part of the SLO that is measured."""
    return _median(found) if config.slo.ms is None else config.slo.ms - config.traffic.overhead_ms


def _median(numbers: Sequence[float]) -> float | None:
    """Return the median, None of no numbers.

    Rate and limit follow the baseline in each trial's own run; the median stands for all.
    """
    return float(np.median(numbers)) if numbers else None


def _sources(settled: Sequence[EndedTrial]) -> dict[int, Source | None]:
    """Return what proposed each trial; None for all in a study that did not record its starting points.

    Known weights are those that an earlier trial trained, and the baseline's own.
    """
    trained, found = {Candidate().weights.id}, dict[int, Source | None]()
    if not any(one.start for one in settled):
        return dict.fromkeys(one.number for one in settled)
    for one in settled:
        own: Source = "known weights" if one.candidate.weights.id in trained else "new weights"
        found[one.number] = "reference point" if one.reference else "starting point" if one.start else own
        if one.outcome.artifact is not None:
            trained.add(one.candidate.weights.id)
    return found


def _row(
    one: EndedTrial,
    standing: tuple[Container[int], Container[int], Container[int]],
    source: Source | None,
    price: float | None,
) -> Row:
    """Return a trial's row; `standing` are the trials that keep the limits, that may be on the front, and that are."""
    able, contenders, members = standing
    outcome = one.outcome
    found = {**vars(outcome), **({} if outcome.artifact is None else vars(outcome.artifact))}
    found["seconds"] = {stage: outcome.seconds.get(stage) for stage in _STAGES}
    row = Row(
        **fields_in(Row, found),
        trial=one.number,
        candidate=one.candidate.id,
        weights=one.candidate.weights.id,
        variant=one.candidate.variant_id,
        on_front=one.number in members,
        feasible=one.number in able,
        origin=one.candidate.weights.origin,
        knobs=one.candidate.knobs(),
        suggested=one.knobs,
        source=source,
        minutes=one.minutes,
        loss=None if outcome.evaluated is None else outcome.evaluated.loss,
        expected_loss=one.expected_loss,
    )
    passed_over = row.feasible and one.number not in contenders
    return row if outcome.measurement is None else _point(row, outcome.measurement, one.final, passed_over, price)


def _point(row: Row, m: Measurement, final: bool, passed_over: bool, price: float | None) -> Point:
    numbers, ours, rate = numbers_of(m), m.latency.candidate, m.throughput.rps
    latency = PointLatency(
        p50=ours.p50_ms,
        p95=ours.p95_ms,
        p99=ours.p99_ms,
        service_p50=ours.service_p50_ms,
        p95_interval=ours.p95_interval_ms,
        **fields_in(PointLatency, numbers),
    )
    derived = {
        "quality": PointQuality(**fields_in(PointQuality, numbers)),
        "latency_ms": latency,
        "final": final,
        "passed_over": passed_over,
        "money_per_million": money_per_million(rate, price) if price and rate else None,
        "warnings": tuple(interference_warnings(m.latency)),
    }
    return Point(**{**fields_in(Point, numbers), **vars(row), **derived})

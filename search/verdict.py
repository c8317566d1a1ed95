"""The verdict on a study in sentences: whether it helped, by how much, at what loss, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.interference import BUSY
from objectives.records import Interval, Latency
from search.explore.reference_points import QUANTIZED
from search.format import count, metric_name, milliseconds, percent, ranged, rate, span, times
from search.front import indistinguishable, largest_box
from search.request_path import path_sentences
from search.results import Confirmation, Front, Point, PointQuality, TunedRatios

FEW_TRIALS = 20
_DRIFT = 1.5
_LATE = 0.1
# Ratio of an interval's ends from which it is uninformative.
_WIDE = 1.5
# They have ratios to a reference, with intervals.
Ratios = Point | Confirmation | TunedRatios


@dataclass(frozen=True)
class Verdict:
    """One sentence that answers, and those that say how much of it to believe."""

    headline: str
    sentences: tuple[str, ...]


def verdict(front: Front) -> Verdict:
    """The verdict on a study's result. Only a loss confirmed on test is called proved."""
    baseline, chosen = front.baseline, front.chosen
    if baseline is None:
        return Verdict("Nothing can be said yet: the baseline has not been measured.", tuple(doubts(front)))
    candidates, gains = _candidates(front), _gains(front)
    confirmed = None if chosen is None else chosen.confirmed
    if chosen is None and not gains:
        headline, sentences = _nothing(front, candidates)
        return Verdict(headline, tuple(_simple_references(front) + sentences + doubts(front)))
    point = best_compromise(gains, front.max_loss) if chosen is None else chosen.row
    headline, sentences = _on_validation(point) if confirmed is None else _on_test(front, point, confirmed)
    sentences = _simple_references(front) + sentences
    sentences += _beside_references(front, baseline, point, confirmed)
    own, base = point.latency_ms.p95, baseline.latency_ms.p95
    if confirmed is not None:
        own, base = confirmed.p95_ms, confirmed.baseline_p95_ms
    load = f" at {rate(front.rate_rps)}" if front.rate_rps else ""
    sentences.append(f"In milliseconds{load}: a p95 of {milliseconds(own)} against {milliseconds(base)}.")
    sentences += path_sentences(front.through, (confirmed or point).with_overhead)
    sentences += [f"Of the timing of trial {point.trial}: {warning}." for warning in (confirmed or point).warnings]
    sentences += _other_points(front, point, gains)
    return Verdict(headline, tuple(sentences + doubts(front)))


def _simple_references(front: Front) -> list[str]:
    """Describe the rules and simple models that are within the tolerated loss, which come before all else."""
    said, tolerated = [], percent(front.max_loss)
    points = {point.reference: point for point in front.reference_points}
    own = front.references.get("baseline")
    for name in ("logistic regression", "popularity"):
        point, value = points.get(name), front.references.get(name.replace(" ", "_"))
        if point is not None and point.feasible:
            said.append(
                f"A much simpler model is within the tolerated {tolerated}: {name} (trial {point.trial}) "
                f"{_gain(point)}, {_loss_of(point)}."
            )
        elif point is None and own and value is not None and (own - value) / own <= front.max_loss:
            metric = metric_name(front.reference_metric)
            said.append(
                f"A much simpler rule is within the tolerated {tolerated}: on test {name} scores {value:.3f}, "
                f"{_loss((own - value) / own, None, metric)}."
            )
    return said


def _beside_references(front: Front, baseline: Point, point: Point, confirmed: Confirmation | None) -> list[str]:
    """Compare with the baseline's own model, better placed or quantized without training."""
    said, tuned = [], front.tuned_baseline
    # A choice keeps its row as it was, and the tuned baseline may have become another since then.
    point = next((one for one in front.points if one.trial == point.trial), point)
    if tuned is not None and tuned.trial == baseline.trial:
        said.append("No other placement of the baseline's own model that was measured is better than its default.")
    elif tuned is not None and tuned.trial != point.trial and point.tuned is not None:
        again = None if confirmed is None else confirmed.tuned_baseline
        beside = point.tuned if again is None or again.trial != tuned.trial else again
        said.append(
            f"The tuned baseline, the same model in fp32 in its best placement (trial {tuned.trial}), answers in "
            f"{percent(tuned.p95_ratio)} of the baseline's p95; against it, trial {point.trial} "
            f"{_gain(beside).replace('the baseline', 'the tuned baseline')}."
        )
    quantized = next((one for one in front.reference_points if one.reference == QUANTIZED), None)
    if quantized is not None and quantized.trial != point.trial:
        said.append(
            f"Post-training quantization alone (trial {quantized.trial}) {_gain(quantized)}, {_loss_of(quantized)}."
        )
    return said


def helps(point: Point) -> bool:
    """Return whether a point is feasible, and surely faster than the baseline or of higher throughput."""
    return point.feasible and (_above(point.throughput_ratio_interval, 1.0) or _below(point.p95_ratio_interval, 1.0))


def best_compromise(points: Sequence[Point], max_loss: float) -> Point:
    """The point that alone dominates most of the objectives' cube; where none dominates any, the lowest p95."""
    p95, throughput = [point.p95_ratio for point in points], [point.throughput_ratio for point in points]
    return points[largest_box(p95, throughput, [point.quality.loss for point in points], max_loss)]


def subject(front: Front) -> Point | None:
    """The point that a study comes down to: the chosen one, else the best compromise; None without a candidate.

    It is one of those that help, else one of the front.
    """
    if front.chosen is not None:
        return front.chosen.row
    points = _gains(front) or [point for point in front.members if point.trial != 0]
    return best_compromise(points, front.max_loss) if points else None


def _candidates(front: Front) -> list[Point]:
    """Return the measured points but the baseline and those that the final benchmark passed over.

    The latter have the numbers of a single visit, which may have been a lucky one.
    """
    return [point for point in front.points if point.trial != 0 and not point.passed_over]


def _gains(front: Front) -> list[Point]:
    """Return the points that help: those of the front, else the others."""
    helping = [point for point in _candidates(front) if helps(point)]
    return [point for point in helping if point.on_front] or helping


def _on_test(front: Front, point: Point, confirmed: Confirmation) -> tuple[str, list[str]]:
    """Return headline and sentences on a point that was measured anew, on test, as `confirmed`."""
    limit, interval = _tolerated(front), confirmed.loss_interval
    tolerated = percent(limit)
    gain, who, metric = _gain(confirmed), f"trial {point.trial}", metric_name(point.quality.metric)
    looks = confirmed.looks
    looked = "looked at once" if looks == 1 else f"looked at {looks} times, for which the interval is widened"
    low, high = map(percent, interval)
    sure = f"The test set was {looked}: with 95% confidence the loss lies between {low} and {high}."
    if point.trial == 0:
        return "Nothing helped: the choice is the baseline itself.", []
    if interval[1] > limit:
        headline = (
            f"Not confirmed: on test {who} may lose up to {high} of {metric}, more than the tolerated {tolerated}."
        )
        return headline, [f"Measured, it {gain}.", sure]
    if not (_below(confirmed.p95_ratio_interval, 1.0) or _above(confirmed.throughput_ratio_interval, 1.0)):
        return f"Nothing gained: {who} is proved on test to lose at most {high}, but it {gain}.", [sure]
    loss = _loss(confirmed.loss, interval, metric)
    return f"It helped, and the loss is proved on test: {who} {gain}, {loss}.", [
        f"{sure} That is within the tolerated {tolerated}."
    ]


def _tolerated(front: Front) -> float:
    """Return the loss that the policy of the choice tolerates, or the study where there is none."""
    chosen = front.chosen
    return front.max_loss if chosen is None or chosen.max_loss is None else chosen.max_loss


def _on_validation(point: Point) -> tuple[str, list[str]]:
    headline = f"It helped on validation, not yet confirmed on test: trial {point.trial} {_gain(point)}"
    return f"{headline}, {_loss_of(point)}.", [
        f"The loss has a 95% interval of {span(point.quality.loss_interval)} on validation.",
        "The candidates were also ranked by validation, which flatters the best of them: "
        "`leanrec choose` measures the finalists on test.",
    ]


def _nothing(front: Front, candidates: Sequence[Point]) -> tuple[str, list[str]]:
    if not candidates:
        return "Nothing can be said yet: no candidate has been measured beside the baseline.", []
    tolerated = percent(front.max_loss)
    sentence = "What keeps the quality is slower, or as fast as far as this measurement can show."
    if not any(point.feasible for point in candidates):
        least = min(candidates, key=lambda point: point.quality.loss)
        sentence = (
            f"All {len(candidates)} measured candidates lose more than that; the least, trial {least.trial}, "
            f"loses {percent(least.quality.loss)} of {metric_name(least.quality.metric)}."
        )
    return (
        f"Nothing helped: no candidate within the tolerated loss of {tolerated} is measurably faster than the baseline "
        "or carries measurably more requests."
    ), [sentence]


def _gain(found: Ratios) -> str:
    """Speed and load beside the baseline."""
    speed, ratio, interval = _speed(found), found.throughput_ratio, found.throughput_ratio_interval
    if ratio is None:
        return speed
    if _above(interval, 1.0):
        return f"{speed} and carries {times(ratio)} its load{_capacity(found)}"
    if _below(interval, 1.0):
        return f"{speed}, carrying only {percent(ratio)} of its load{_capacity(found)}"
    return f"{speed}, with no change in load that this measurement can show"


def _speed(found: Ratios) -> str:
    ratio, interval = found.p95_ratio, found.p95_ratio_interval
    if _below(interval, 1.0):
        return f"answers in {percent(ratio)} of the baseline's p95 ({times(1 / ratio)} faster)"
    if _above(interval, 1.0):
        return f"answers in {percent(ratio)} of the baseline's p95 ({times(ratio)} slower)"
    return "is not measurably faster or slower than the baseline"


def _capacity(found: Ratios) -> str:
    return "" if found.capacity_ratio is None else f" within the SLO ({times(found.capacity_ratio)} its capacity)"


def _loss(loss: float, interval: Interval | None, metric: str) -> str:
    if interval and interval[0] <= 0 <= interval[1]:
        return f"with no loss of {metric} that this data can show (at most {percent(interval[1])})"
    return f"at a loss of {percent(loss)} of {metric}" if loss >= 0 else f"with {metric} better by {percent(-loss)}"


def _loss_of(point: Point) -> str:
    quality = point.quality
    return _loss(quality.loss, quality.loss_interval, metric_name(quality.metric))


def _other_points(front: Front, subject: Point, gains: Sequence[Point]) -> list[str]:
    sentences = []
    fastest = min(gains, key=lambda point: point.p95_ratio, default=subject)
    if fastest.trial != subject.trial:
        sentences.append(f"The fastest on validation, trial {fastest.trial}, {_speed(fastest)}, {_loss_of(fastest)}.")
    alike = [trial for trial in alike_trials(front, subject) if trial != subject.trial]
    if alike:
        verb = "is" if len(alike) == 1 else "are"
        sentences.append(
            f"{count(len(alike), 'other point')} of the front {verb} too close to trial {subject.trial} "
            "to be told apart by these measurements."
        )
    return sentences


def alike_trials(front: Front, best: Point) -> list[int]:
    """Return the trials of the front whose intervals overlap those of `best` on latency, throughput and loss.

    `best` comes first. Losses within the resolution overlap too.
    """
    points = [best, *(point for point in front.members if point.trial != best.trial)]
    half = (front.resolution or 0.0) / 2
    intervals = [(p.p95_ratio_interval, _widened(p.quality, half), p.throughput_ratio_interval) for p in points]
    table = np.asarray(intervals, dtype=np.float64)
    alike = indistinguishable(table[:, :, 0], table[:, :, 1], 0)
    return [point.trial for point, same in zip(points, alike, strict=True) if same]


def _widened(quality: PointQuality, half: float) -> Interval:
    """Return the loss's interval, at least `half` to each side of the loss."""
    low, high = quality.loss_interval
    return min(low, quality.loss - half), max(high, quality.loss + half)


def doubts(front: Front) -> list[str]:
    """List what weakens any conclusion from this study: its data, its length, its baseline."""
    said, max_loss, resolution = [], front.max_loss, front.resolution
    if resolution is not None and resolution > max_loss:
        said.append(
            f"The smallest loss that this data can show is {percent(resolution)}, more than the tolerated "
            f"{percent(max_loss)}: with so few held-out rows, no loss of that size can be seen."
        )
    if front.undertrained:
        said.append(f"The baseline is under-trained: {front.undertrained}. Part of what distilling gains is just that.")
    complete = front.counts["complete"]
    if complete < FEW_TRIALS:
        said.append(f"Only {count(complete, 'trial')} ran to the end, so a longer search may well find better.")
    if not all(point.final for point in front.members):
        said.append(
            "Points of the front have the numbers of a single visit in the search, of which the luckiest come first: "
            "`leanrec run` benchmarks the whole front once more when the search is over."
        )
    elif any(point.visits == 1 for point in front.members):
        said.append(
            "The final benchmark had time for one visit of a point of the front: how visits differ is taken from other "
            "studies, and the intervals are wide. A larger budget.minutes or budget.final_share gives more visits."
        )
    own = front.references.get("baseline")
    others = {name: value for name, value in front.references.items() if name != "baseline" and value is not None}
    ahead = {name: value for name, value in others.items() if own is not None and value >= own}
    if ahead:
        metric = metric_name(front.reference_metric)
        names = " and ".join(f"{name.replace('_', ' ')} ({value:.3f})" for name, value in ahead.items())
        said.append(
            f"On test the baseline itself ({metric} {own:.3f}) does not beat {names}: "
            "the simpler model may be the better thing to deploy."
        )
    return said


def interference_warnings(latency: Latency) -> list[str]:
    """Sentences on a wide interval, other processes, a machine that changed its speed, and a late load generator."""
    found = []
    low, high = latency.p95_ratio_interval
    if high > _WIDE * low:
        found.append(
            f"the interval of the p95 ratio, [{low:.3f}, {high:.3f}], is wide: rely on the service p50 ratio, "
            f"{ranged(latency.service_p50_ratio, latency.service_p50_ratio_interval)}, and on the capacity ratio"
        )
    if latency.p95_ratio_all is not None and not low <= latency.p95_ratio_all <= high:
        found.append(
            f"over all {latency.pairs} pairs of blocks, the disturbed ones too, the p95 ratio is "
            f"{latency.p95_ratio_all:.3f}, outside the interval [{low:.3f}, {high:.3f}] of the {latency.blocks} kept"
        )
    if latency.busy_share > BUSY:
        found.append(f"other processes took {percent(latency.busy_share)} of a core meanwhile")
    if latency.drift > _DRIFT:
        found.append(f"the baseline's own time changed {times(latency.drift)} within a visit")
    if latency.lateness > _LATE:
        found.append(
            f"the load generator was late by {percent(latency.lateness)} of the p95, which counts as latency: leave it "
            "a core, or lower the load"
        )
    return found


def _below(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval[1] < value


def _above(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval[0] > value

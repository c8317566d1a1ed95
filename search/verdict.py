"""Did it help, by how much, at what loss, and how sure is that: a study's document put into sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.explore.reference_points import QUANTIZED
from search.format import count, metric_name, milliseconds, percent, percent_interval, rate, times
from search.front import indistinguishable, unit_objectives

Document = Mapping[str, Any]
Row = Mapping[str, Any]

FEW_TRIALS = 20
# What `choose` measures once more.
_MEASURED_AGAIN = ("throughput_ratio_interval", "capacity_ratio", "capacity_ratio_interval")


@dataclass(frozen=True)
class Verdict:
    """One sentence that answers, and those that say how much of it to believe."""

    headline: str
    sentences: tuple[str, ...]


def verdict(document: Document) -> Verdict:
    """Return the verdict on the document of `leanrec front --json`. Only a loss confirmed on test is called proved."""
    if document["baseline"] is None:
        return Verdict("Nothing can be said yet: the baseline has not been measured.", tuple(doubts(document)))
    candidates = [row for row in document["rows"] if row["trial"] != document["baseline"]["trial"]]
    gains = [row for row in candidates if helps(row)]
    chosen = document.get("chosen")
    confirmed = chosen.get("confirmed") if chosen else None
    if chosen and confirmed:
        headline, sentences = _on_test(document, chosen["row"], confirmed)
        subject = chosen["row"]
    elif gains:
        picked = chosen.get("row") if chosen else None
        subject = picked if picked and helps(picked) else best_compromise(gains, document["max_loss"])
        headline, sentences = _on_validation(document, subject)
    else:
        subject = None
        headline, sentences = _nothing(document, candidates)
    sentences = _simple_references(document) + sentences
    if subject is not None:
        sentences += _beside_references(document, subject, confirmed or {})
        sentences += _in_milliseconds(document, subject, confirmed or {}) + _of_its_timing(subject, confirmed)
        sentences += _other_points(document, subject, gains)
    return Verdict(headline, tuple(sentences + doubts(document)))


def _simple_references(document: Document) -> list[str]:
    """The rules and simple models that are within the tolerated loss, before all else."""
    said, tolerated = [], percent(document["max_loss"])
    points = {row["reference"]: row for row in document.get("reference_points") or ()}
    known = document.get("references") or {}
    own = known.get("baseline")
    for name in ("logistic regression", "popularity"):
        row, value = points.get(name), known.get(name.replace(" ", "_"))
        if row is not None and row["feasible"]:
            loss = _loss(row["quality"]["loss"], row["quality"]["loss_interval"], _metric(row))
            said.append(
                f"A much simpler model is within the tolerated {tolerated}: {name} (trial {row['trial']}) "
                f"{_gain(row['latency_ms']['p95_ratio'], _p95_interval(row), row['throughput_ratio'], row)}, {loss}."
            )
        elif row is None and own and value is not None and (own - value) / own <= document["max_loss"]:
            metric = metric_name(document.get("reference_metric", "auc"))
            said.append(
                f"A much simpler rule is within the tolerated {tolerated}: on test {name} scores {value:.3f}, "
                f"{_loss((own - value) / own, None, metric)}."
            )
    return said


def _beside_references(document: Document, row: Row, confirmed: Mapping[str, Any]) -> list[str]:
    """Describe the results of the baseline's own model in its best placement, and of quantization without training."""
    said, tuned = [], document.get("tuned_baseline")
    # A choice keeps its row as it was, and the tuned baseline may have become another since then.
    row = next((one for one in document["rows"] if one["trial"] == row["trial"]), row)
    if tuned is not None and tuned["trial"] == document["baseline"]["trial"]:
        said.append("No other placement of the baseline's own model that was measured is better than its default.")
    elif tuned is not None and tuned["trial"] != row["trial"] and row.get("tuned"):
        again = confirmed.get("tuned_baseline")
        beside = again if again and again["trial"] == tuned["trial"] else row["tuned"]
        gain = _gain(beside["p95_ratio"], beside["p95_ratio_interval"], beside["throughput_ratio"], beside)
        said.append(
            f"The tuned baseline, the same model in fp32 in its best placement (trial {tuned['trial']}), answers in "
            f"{percent(tuned['latency_ms']['p95_ratio'])} of the baseline's p95; against it, trial {row['trial']} "
            f"{gain.replace('the baseline', 'the tuned baseline')}."
        )
    quantized = next((r for r in document.get("reference_points") or () if r["reference"] == QUANTIZED), None)
    if quantized is not None and quantized["trial"] != row["trial"]:
        loss = _loss(quantized["quality"]["loss"], quantized["quality"]["loss_interval"], _metric(quantized))
        gain = _gain(
            quantized["latency_ms"]["p95_ratio"], _p95_interval(quantized), quantized["throughput_ratio"], quantized
        )
        said.append(f"Post-training quantization alone (trial {quantized['trial']}) {gain}, {loss}.")
    return said


def helps(row: Row) -> bool:
    """Feasible, and faster or of higher throughput than the baseline by the whole of the interval."""
    if row["state"] != "complete" or not row["feasible"]:
        return False
    return _above(_throughput_interval(row), 1.0) or _below(_p95_interval(row), 1.0)


def best_compromise(rows: Sequence[Row], max_loss: float) -> Row:
    """The row that alone dominates most of the objectives' cube; where none dominates any, the lowest p95."""

    def worth(row: Row) -> tuple[float, float]:
        p95, throughput = row["latency_ms"]["p95_ratio"], row["throughput_ratio"]
        box = unit_objectives(p95, 1.0 if throughput is None else throughput, row["quality"]["loss"], max_loss)
        return float(box.prod()), -float(p95)

    return max(rows, key=worth)


def subject(document: Document) -> Row | None:
    """The row that a study comes down to: the chosen one, else the best compromise on the front, None without one."""
    chosen = document.get("chosen")
    if chosen:
        row: Row = chosen["row"]
        return row
    front = [row for row in document["rows"] if row["on_front"] and row["trial"] != 0]
    return best_compromise(front, document["max_loss"]) if front else None


def _on_test(document: Document, row: Row, confirmed: Mapping[str, Any]) -> tuple[str, list[str]]:
    """`confirmed` is measured anew, on test; what it does not hold again is the row's own."""
    tolerated, interval = percent(document["max_loss"]), confirmed["loss_interval"]
    p95_ratio = confirmed.get("p95_ratio") or row["latency_ms"]["p95_ratio"]
    p95_interval = confirmed.get("p95_ratio_interval") or _p95_interval(row)
    again = {key: confirmed[key] for key in _MEASURED_AGAIN if confirmed.get(key)}
    row = {**row, **again}
    gain = _gain(p95_ratio, p95_interval, confirmed.get("throughput_ratio") or row["throughput_ratio"], row)
    looks = confirmed.get("looks") or 1
    looked = "looked at once" if looks == 1 else f"looked at {looks} times, for which the interval is widened"
    sure = (
        f"The test set was {looked}: with 95% confidence the loss lies between "
        f"{percent(interval[0])} and {percent(interval[1])}."
    )
    who = f"trial {row['trial']}"
    if row["trial"] == document["baseline"]["trial"]:
        return "Nothing helped: the choice is the baseline itself.", []
    if interval[1] > document["max_loss"]:
        headline = (
            f"Not confirmed: on test {who} may lose up to {percent(interval[1])} of {_metric(row)}, "
            f"more than the tolerated {tolerated}."
        )
        return headline, [f"Measured, it {gain}.", sure]
    if not (_below(p95_interval, 1.0) or _above(_throughput_interval(row), 1.0)):
        headline = f"Nothing gained: {who} is proved on test to lose at most {percent(interval[1])}, but it {gain}."
        return headline, [sure]
    loss = _loss(confirmed["loss"], interval, _metric(row))
    return f"It helped, and the loss is proved on test: {who} {gain}, {loss}.", [
        f"{sure} That is within the tolerated {tolerated}."
    ]


def _on_validation(document: Document, row: Row) -> tuple[str, list[str]]:
    quality = row["quality"]
    gain = _gain(row["latency_ms"]["p95_ratio"], _p95_interval(row), row["throughput_ratio"], row)
    loss = _loss(quality["loss"], quality["loss_interval"], metric_name(quality["metric"]))
    sentences = []
    if quality["loss_interval"]:
        sentences.append(f"The loss has a 95% interval of {percent_interval(quality['loss_interval'])} on validation.")
    sentences.append(
        "The candidates were also ranked by validation, which flatters the best of them: "
        "`leanrec choose` measures the finalists on test."
    )
    return f"It helped on validation, not yet confirmed on test: trial {row['trial']} {gain}, {loss}.", sentences


def _nothing(document: Document, candidates: Sequence[Row]) -> tuple[str, list[str]]:
    complete = [row for row in candidates if row["state"] == "complete"]
    if not complete:
        return "Nothing can be said yet: no candidate has been measured beside the baseline.", []
    tolerated = percent(document["max_loss"])
    sentences = []
    if not any(row["feasible"] for row in complete):
        least = min(complete, key=lambda row: float(row["quality"]["loss"]))
        sentences.append(
            f"All {len(complete)} measured candidates lose more than that; the least, trial {least['trial']}, "
            f"loses {percent(least['quality']['loss'])} of {_metric(least)}."
        )
    else:
        sentences.append("What keeps the quality is slower, or as fast as far as this measurement can show.")
    return (
        f"Nothing helped: no candidate within the tolerated loss of {tolerated} is measurably faster than the baseline "
        "or carries measurably more requests."
    ), sentences


def _gain(p95_ratio: float, p95_interval: Sequence[float] | None, throughput_ratio: float | None, row: Row) -> str:
    if _below(p95_interval, 1.0):
        speed = f"answers in {percent(p95_ratio)} of the baseline's p95 ({times(1 / p95_ratio)} faster)"
    elif _above(p95_interval, 1.0):
        speed = f"answers in {percent(p95_ratio)} of the baseline's p95 ({times(p95_ratio)} slower)"
    else:
        speed = "is not measurably faster or slower than the baseline"
    interval = _throughput_interval(row)
    if throughput_ratio is None:
        return speed
    if _above(interval, 1.0):
        return f"{speed} and carries {times(throughput_ratio)} its load{_capacity(row)}"
    if _below(interval, 1.0):
        return f"{speed}, carrying only {percent(throughput_ratio)} of its load{_capacity(row)}"
    return f"{speed}, with no change in load that this measurement can show"


def _capacity(row: Row) -> str:
    ratio = row.get("capacity_ratio")
    return "" if ratio is None else f" within the SLO ({times(ratio)} its capacity)"


def _loss(loss: float, interval: Sequence[float] | None, metric: str) -> str:
    if interval and interval[0] <= 0 <= interval[1]:
        return f"with no loss of {metric} that this data can show (at most {percent(interval[1])})"
    return f"at a loss of {percent(loss)} of {metric}" if loss >= 0 else f"with {metric} better by {percent(-loss)}"


def _in_milliseconds(document: Document, row: Row, confirmed: Mapping[str, Any]) -> list[str]:
    own = confirmed.get("p95_ms") or row["latency_ms"]["p95"]
    base = confirmed.get("baseline_p95_ms") or document["baseline"]["latency_ms"]["p95"]
    load = f" at {rate(document['rate_rps'])}" if document.get("rate_rps") else ""
    return (
        [f"In milliseconds{load}: a p95 of {milliseconds(own)} against {milliseconds(base)}."] if own and base else []
    )


def _of_its_timing(row: Row, confirmed: Mapping[str, Any] | None) -> list[str]:
    """Describe the weaknesses of the benchmark that the headline reports."""
    timed = row if confirmed is None else confirmed
    return [f"Of the timing of trial {row['trial']}: {warning}." for warning in timed.get("warnings") or ()]


def _other_points(document: Document, subject: Row, gains: Sequence[Row]) -> list[str]:
    sentences = []
    fastest = min(gains, key=lambda row: float(row["latency_ms"]["p95_ratio"]), default=subject)
    if fastest["trial"] != subject["trial"]:
        sentences.append(
            f"The fastest on validation, trial {fastest['trial']}, "
            f"{_gain(fastest['latency_ms']['p95_ratio'], _p95_interval(fastest), None, fastest)}, "
            f"{_loss(fastest['quality']['loss'], fastest['quality']['loss_interval'], _metric(fastest))}."
        )
    alike = [trial for trial in alike_trials(document, subject) if trial != subject["trial"]]
    if alike:
        verb = "is" if len(alike) == 1 else "are"
        sentences.append(
            f"{count(len(alike), 'other point')} of the front {verb} too close to trial {subject['trial']} "
            "to be told apart by these measurements."
        )
    return sentences


def alike_trials(document: Document, best: Row) -> list[int]:
    """Trials of the front whose intervals overlap those of `best` on latency, throughput and loss, `best` first."""
    ends, trials = [], []
    for row in [best, *(row for row in document["rows"] if row["on_front"] and row["trial"] != best["trial"])]:
        intervals = [_p95_interval(row), row["quality"]["loss_interval"], _throughput_interval(row) or [1.0, 1.0]]
        if all(intervals):
            ends.append(intervals)
            trials.append(int(row["trial"]))
    if not trials or trials[0] != best["trial"]:
        return []
    table = np.asarray(ends, dtype=np.float64)
    alike = indistinguishable(table[:, :, 0], table[:, :, 1], 0)
    return [trial for trial, same in zip(trials, alike, strict=True) if same]


def doubts(document: Document) -> list[str]:
    """Describe the weaknesses of any conclusion from this study: its data, its length, its baseline."""
    said, max_loss, resolution = [], document["max_loss"], document["resolution"]
    if resolution is not None and resolution > max_loss:
        said.append(
            f"The smallest loss that this data can show is {percent(resolution)}, more than the tolerated "
            f"{percent(max_loss)}: with so few held-out rows, no loss of that size can be seen."
        )
    if document.get("undertrained"):
        said.append(
            f"The baseline is under-trained: {document['undertrained']}. Part of what distilling gains is just that."
        )
    complete = document["counts"]["complete"]
    if complete < FEW_TRIALS:
        said.append(f"Only {count(complete, 'trial')} ran to the end, so a longer search may well find better.")
    references = document.get("references") or {}
    own = references.get("baseline")
    others = {name: value for name, value in references.items() if name != "baseline" and value is not None}
    ahead = [name for name, value in others.items() if own is not None and value >= own]
    if ahead:
        metric = metric_name(document.get("reference_metric", "auc"))
        names = " and ".join(f"{name.replace('_', ' ')} ({references[name]:.3f})" for name in ahead)
        said.append(
            f"On test the baseline itself ({metric} {own:.3f}) does not beat {names}: "
            "the simpler model may be the better thing to deploy."
        )
    return said


def _metric(row: Row) -> str:
    return metric_name(row["quality"]["metric"])


def _p95_interval(row: Row) -> Sequence[float] | None:
    return row["latency_ms"]["p95_ratio_interval"] or None


def _throughput_interval(row: Row) -> Sequence[float] | None:
    return row["throughput_ratio_interval"] or None


def _below(interval: Sequence[float] | None, value: float) -> bool:
    return interval is not None and interval[1] < value


def _above(interval: Sequence[float] | None, value: float) -> bool:
    return interval is not None and interval[0] > value

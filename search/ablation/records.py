"""Records of an ablation, kept in the study's facts: the effect of each technique of a candidate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from objectives.records import Interval, Latency, Quality, Throughput
from spaces.candidate import Candidate
from spaces.serialization import Json, from_plain, to_plain

# without: the candidate against itself with the technique removed; alone: the baseline with only the technique against
# the baseline.
Kind = Literal["without", "alone"]
KINDS: tuple[Kind, ...] = ("without", "alone")
FACT, FACT_FILE = "ablation", "ablation.json"


@dataclass(frozen=True)
class Difference:
    """The model with a technique against the one without it: every ratio and loss is the technique's own.

    bytes_ratio: of the model files
    seeds: trainings of either side that the quality is a mean of
    """

    quality: Quality
    latency: Latency
    throughput: Throughput
    bytes_ratio: float
    seeds: int = 1


@dataclass(frozen=True)
class Effect:
    """One technique in one comparison: measured, or why it was not.

    group: the layer group that it concerns, None for the whole model
    other: the candidate that was built for the comparison
    timings: the file of raw timings, relative to the home
    """

    technique: str
    group: str | None
    kind: Kind
    other: Candidate
    difference: Difference | None = None
    reason: str | None = None
    timings: str | None = None

    def __post_init__(self) -> None:
        if (self.difference is None) != (self.reason is not None):
            raise ValueError(f"An effect is measured or has a reason, but got {self.difference}, {self.reason!r}.")

    @property
    def key(self) -> tuple[str, str | None, Kind]:
        return self.technique, self.group, self.kind


@dataclass(frozen=True)
class Ablation:
    """All that is known of one trial's techniques; timings hold for the machine that they were made on."""

    trial: int
    candidate: Candidate
    machine: str
    effects: tuple[Effect, ...] = ()

    def found(self, technique: str, group: str | None, kind: Kind) -> Effect | None:
        return next((effect for effect in self.effects if effect.key == (technique, group, kind)), None)

    def joined(self, effect: Effect) -> Ablation:
        """Return the ablation with one more effect, in place of an earlier one of the same key."""
        return replace(self, effects=(*(e for e in self.effects if e.key != effect.key), effect))


@dataclass(frozen=True)
class DistillationGain:
    """Gain of distillation over the same model on labels alone, a share of the metric; the mean over so many seeds."""

    metric: str
    gain: float
    gain_interval: Interval
    seeds: int
    sentence: str


@dataclass(frozen=True)
class TechniqueSummary:
    """One technique of a trial: its effects, None where not looked at yet, and the verdict on it in a sentence."""

    name: str
    group: str | None
    label: str
    verdict: str
    without: Effect | None
    alone: Effect | None


@dataclass(frozen=True)
class AblationSummary:
    """Effects of the techniques of a trial, as `leanrec ablate --json` prints them.

    control: None where the trial learns nothing from the baseline, or that was not measured
    """

    study: str
    trial: int
    candidate: str
    machine: str
    control: DistillationGain | None
    techniques: tuple[TechniqueSummary, ...]


def ablations(facts: Json) -> tuple[Ablation, ...]:
    """Return the ablations of a study, the last measured one last."""
    return tuple(from_plain(Ablation, plain) for plain in facts.get(FACT, {}).values())


def fact(known: Iterable[Ablation], changed: Ablation) -> Json:
    """Return the facts to record once an ablation has changed, by trial."""
    kept = [ablation for ablation in known if ablation.trial != changed.trial]
    return {str(ablation.trial): to_plain(ablation) for ablation in (*kept, changed)}

"""A study in closed form: cost, loss and seconds of every candidate, on a clock of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import Trial

from objectives.records import Measurement, Outcome, SimulatedRatios
from search.config.loss_limits import Limits
from search.front import hypervolume, unit_objectives
from search.study import Study
from spaces.candidate import Candidate
from spaces.domains import Choice, Float
from spaces.search_space import SearchSpace
from spaces.techniques.placement import PlacementSpace, layouts
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import Weights, WeightsSpace
from tests.search_tests.measurements import complete_outcome, in_memory

OBJECTIVES = ("latency_p95", "throughput", "quality")
LIMITS = Limits(0.01)
SPACE = SearchSpace(
    WeightsSpace(
        {},
        {group: Float(0.1, 0.9) for group in ("mlp", "cross", "top")},
        {"temperature": Float(1.0, 8.0, log=True), "teacher_weight": Float(0.0, 1.0), "feature_weight": Choice((0.0,))},
        epochs=2,
    ),
    PrecisionSpace({group: Choice(("fp32", "int8-dynamic")) for group in ("mlp", "cross", "top")}),
    PlacementSpace(Choice(("onnxruntime",)), Choice(layouts(2)), inline=Choice((False, True))),
)
FIT, COST, BUILD, BENCHMARK = 30.0, 2.0, 1.5, 15.0


def costs(candidate: Candidate) -> tuple[float, float]:
    """Return the ratios of p95 and throughput: work falls with pruning and widths, a replica more costs latency."""
    ratios = dict(candidate.weights.pruning.ratios) if candidate.weights.pruning else {}
    parts = {"mlp": 0.6, "cross": 0.3, "top": 0.1}
    widths = dict(candidate.precision.widths)
    speed = {"fp32": 1.0, "int4": 0.8}
    work = 0.02 + sum(p * (1 - ratios.get(g, 0.0)) * speed.get(widths.get(g, "fp32"), 0.6) for g, p in parts.items())
    group = candidate.placement.instance_group
    overhead = 0.02 if candidate.placement.inline else 0.06
    p95 = work * (1.4 if group.replicas > 1 else 1.0) + overhead
    return p95, (1.7 if group.replicas > 1 else 1.0) / (work + overhead)


def loss(candidate: Candidate) -> float:
    """Return the loss: steep in the pruning of one group, flat in that of another; a little of the training."""
    ratios = dict(candidate.weights.pruning.ratios) if candidate.weights.pruning else {}
    distillation = candidate.weights.distillation
    taught = 0.0 if distillation is None else 0.002 * abs(np.log(distillation.temperature / 3.0))
    narrow = sum(width == "int8-dynamic" for _, width in candidate.precision.widths)
    return float(
        0.012 * ratios.get("cross", 0.0) ** 2 + 0.004 * ratios.get("mlp", 0.0) ** 4 + taught + 0.0008 * narrow**2
    )


class Problem:
    """A study of one worker, in which a candidate whose cost cannot gain is stopped before it is trained.

    With `halved`, a model that is trained loses 4% more after a cycle, and half as much more after each further one.
    """

    def __init__(self, sampler: Any, seed: int, space: SearchSpace = SPACE, halved: bool = False) -> None:
        self.halved = halved
        self.study, self.space = Study("s", in_memory(), OBJECTIVES, LIMITS, seed, sampler), space
        self.seconds, self.trained, self.known = 0.0, set[str](), set[str]()
        for start in space.starts()[:4]:
            self.study.enqueue(start)

    def step(self) -> Candidate:
        """Ask for one trial, and tell its outcome."""
        return self.end(*self.study.ask(self.space))

    def end(self, trial: Trial, candidate: Candidate) -> Candidate:
        """Tell the outcome of a trial."""
        (p95, throughput), lost = costs(candidate), loss(candidate)
        learning = candidate.weights.distillation
        if self.halved and learning is not None:
            lost += 0.04 / 2 ** (learning.cycles - 1)
        spent: dict[str, float] = {}
        slower, faster = p95 * 0.95, throughput * 1.02
        simulated = SimulatedRatios(slower, faster, slower, slower, slower, faster)
        front = self.study.front(self.study.able())
        outrun = trial.number > 1 and any(
            m.latency.p95_ratio < p95 / 1.25 and m.throughput.ratio > throughput * 1.25 and m.quality.loss <= 0
            for m in front.values()
        )
        outcome = replace(complete_outcome(p95, throughput, lost), reused=())
        assert outcome.measurement is not None
        if candidate.id in self.known:
            outcome = Outcome("stopped", "the same choice was made before")
        elif outrun:
            spent = {"cost": COST}
            outcome = Outcome("stopped", "slow", None, None, spent, simulated=simulated)
        else:
            cycles = [one.id for one in _cycles(candidate.weights)]
            spent = {"cost": COST, "fit": FIT * len({*cycles} - self.trained), "export": 1.0, "judge": BUILD - 1.0}
            self.trained.update(cycles)
            if lost > LIMITS.max_loss:
                outcome = replace(
                    outcome, state="stopped", reason="lossy", measurement=None, quality=outcome.evaluated,
                    seconds=spent, simulated=simulated,
                )  # fmt: skip
            else:
                spent["time"] = BENCHMARK
                outcome = replace(outcome, seconds=spent, simulated=simulated)
        self.known.add(candidate.id)
        self.seconds += max(sum(spent.values()), 0.1)
        self.study.tell(trial.number, outcome, self.seconds / 60)
        return candidate

    def hypervolume(self) -> float:
        return hypervolume_of(list(self.study.able().values()))


def _cycles(weights: Weights) -> list[Weights]:
    if weights.distillation is None:
        return []
    return [weights, *([] if weights.previous is None else _cycles(weights.previous))]


def hypervolume_of(measured: list[Measurement]) -> float:
    p95, throughput = [m.latency.p95_ratio for m in measured], [m.throughput.ratio for m in measured]
    return hypervolume(unit_objectives(p95, throughput, [m.quality.loss for m in measured], LIMITS.max_loss))

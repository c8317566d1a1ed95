"""Reference points that every candidate has to beat: the tuned baseline, quantization alone, simple models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from objectives.records import Interval, Prepared, SimulatedRatios
from search.results import TUNED, Point, TunedRatios
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.domains import Choice, FixedValues, Scalar
from spaces.serialization import Json
from spaces.techniques.placement import Placement, PlacementSpace, parse_layout
from spaces.techniques.quantization import DYNAMIC, Precision, PrecisionSpace
from spaces.weights import Weights

QUANTIZED = "post-training quantization"
# Of a placement's knobs, those that are tried one after another once engine and layout are settled.
_ONE_BY_ONE = ("pinned", "inline", "user_once", "score_catalogue", "split_rows", "batch_rows", "keep_warm_ms")

# A ratio and its interval.
Estimate = tuple[float, Interval]


def references_of(prepared: Prepared, space: PrecisionSpace, tuned: Placement) -> dict[str, Candidate]:
    """Return the reference points of a study by name, in the order of their benchmarks.

    Widths are given for the groups of the study's space, so that the same choice is the same candidate.
    """
    fp32 = dict.fromkeys(space.widths, "fp32")
    found = {TUNED: Candidate(precision=Precision(tuple(fp32.items())), placement=tuned)}
    if quantized := _quantized_widths(prepared):
        found[QUANTIZED] = Candidate(precision=Precision(tuple({**fp32, **quantized}.items())))
    found |= {name.replace("_", " "): Candidate(Weights(reference=name)) for name in prepared.simple}
    return {name: candidate for name, candidate in found.items() if not candidate.is_baseline}


def _quantized_widths(prepared: Prepared) -> dict[str, str]:
    """Dynamic int8 for each group that has it; tables stay in fp32, which ONNX Runtime's default pass quantizes too."""
    groups = (group for group in prepared.structure.groups if group.kind in ("linear", "attention"))
    return {group.name: DYNAMIC for group in groups if prepared.refused(group.modules, DYNAMIC) is None}


def tuned_placement(space: PlacementSpace, simulated: Callable[[Placement], SimulatedRatios]) -> Placement:
    """Return the placement of the baseline's own model that is best in simulation.

    Engine and layout are chosen together, then the other knobs one by one, each around the best so far. `simulated`
    compares a placement with the baseline's own, and raises ValueError where it cannot be run.
    """
    known: dict[Placement, float] = {Placement(): 1.0}

    def cost_of(knobs: Mapping[str, Scalar]) -> float:
        placement = space.suggest(FixedValues(knobs), Precision())
        if placement not in known:
            try:
                found = simulated(placement)
            except ValueError:
                known[placement] = math.inf
            else:
                rate = found.capacity_ratio if found.throughput_ratio is None else found.throughput_ratio
                known[placement] = cost(math.inf if found.p95_ratio is None else found.p95_ratio, rate)
        return known[placement]

    best: dict[str, Scalar] = space.baseline()
    for stage in _stages(space):
        # The first of equals, which is the current one.
        best = min(({**best, **change} for change in ({}, *stage)), key=cost_of)
    return space.suggest(FixedValues(best), Precision())


def cost(latency_ratio: float, throughput_ratio: float) -> float:
    """Return the cost of a placement, lower is better; latency and throughput weigh the same, as in the hypervolume."""
    return latency_ratio / throughput_ratio if throughput_ratio > 0 else math.inf


def tuned_baseline(trials: Sequence[EndedTrial]) -> int | None:
    """Return the trial of the baseline's own model in the best placement; the baseline's own cost is 1, as defined."""
    of = {
        trial.number: 1.0 if trial.candidate.is_baseline else cost(m.latency.p95_ratio, m.throughput.ratio)
        for trial in trials
        if trial.candidate.keeps_model and (m := trial.measurement) is not None
    }
    return min(of, key=lambda number: of[number]) if of else None


def beside_tuned(point: Point, tuned: Point) -> TunedRatios:
    """Return a point's ratios to the tuned baseline.

    Both were measured beside the baseline, each in a run of its own, so the interval's ends are the quotients of
    opposite ends, the worst case. A point's ratio to itself is exactly 1.
    """
    found: Json = {}
    ours, theirs = ({**vars(each), **vars(each.latency_ms)} for each in (point, tuned))
    itself = 1.0, (1.0, 1.0)
    for name in ("p95_ratio", "service_p50_ratio", "throughput_ratio", "capacity_ratio"):
        interval = f"{name}_interval"
        divisor = itself if tuned.trial == 0 else (theirs[name], theirs[interval])
        same = point.trial == tuned.trial
        found[name], found[interval] = itself if same else _quotient((ours[name], ours[interval]), divisor)
    assert found["p95_ratio"] is not None and found["service_p50_ratio"] is not None, "no time is 0"
    return TunedRatios(trial=tuned.trial, **found)


def _quotient(ours: Estimate, theirs: Estimate) -> tuple[float | None, Interval | None]:
    """The quotient and its interval, as far as they are numbers."""
    (value, (low, high)), (divisor, (least, most)) = ours, theirs
    if divisor == 0:
        return None, None
    return value / divisor, (low / most, high / least) if least > 0 else None


def _stages(space: PlacementSpace) -> Iterator[Sequence[dict[str, Scalar]]]:
    yield [
        {"placement.engine": engine, "placement.layout": layout}
        for engine in space.engine.values
        for layout in _layouts(space.layout)
    ]
    for name in _ONE_BY_ONE:
        domain: Choice = getattr(space, name)
        yield [{f"placement.{name}": value} for value in domain.values]


def _layouts(domain: Choice) -> list[Scalar]:
    """Select one thread, the engine's own number, and every even split of the most threads on offer."""
    parsed = {layout: parse_layout(str(layout)) for layout in domain.values}
    most = max((replicas * (threads or 1) for replicas, threads in parsed.values()), default=1)
    return [
        layout
        for layout, (replicas, threads) in parsed.items()
        if threads is None or replicas * threads == most or (replicas, threads) == (1, 1)
    ]

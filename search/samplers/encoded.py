"""Encoding of a candidate for the models, computed once, however many proposals read it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from search.samplers.features import Features, features_of
from search.workers.meter_jobs import CurvePart, curve_parts
from spaces.candidate import Candidate
from spaces.domains import Scalar

# Knobs that the cost does not depend on, since they change trained weights only, and those that the loss does not.
_TRAINING = (
    "distillation.", "weights.quantization_aware", "pruning.importance", "pruning.steps", "precision.calibration",
)  # fmt: skip
_SERVING = ("placement.",)
# Candidates that are kept: those of the evidence, and those of the last pools.
_KEPT = 1 << 14


class Key:
    """A frozen record as a key of dictionaries, whose hash is computed once; faster than its digest."""

    __slots__ = ("_hash", "_record")

    def __init__(self, record: object) -> None:
        self._record, self._hash = record, hash(record)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self._hash == other._hash and self._record == other._record


@dataclass(frozen=True, eq=False)
class Encoded:
    """A candidate by what its cost, its loss and its seconds depend on.

    untrained: key of the cost
    variant: key of the loss, and of an export
    scores: keys of the scores, one for each instance group
    graph: key of the export of untrained weights
    trainings: keys of the trainings, one for each cycle, the last of which gives the weights
    network: origin of the elastic network that the weights are a slice of; None where they are none
    parts: parts of the placement that have service curves
    cost_knobs, loss_knobs: by which the models predict, and their features
    """

    untrained: Hashable
    variant: Hashable
    scores: tuple[Hashable, ...]
    graph: Hashable
    trainings: tuple[Hashable, ...]
    network: str | None
    parts: tuple[CurvePart, ...]
    cost_knobs: Mapping[str, Scalar]
    loss_knobs: Mapping[str, Scalar]
    cost_features: Features
    loss_features: Features


@lru_cache(maxsize=_KEPT)
def encoded(candidate: Candidate) -> Encoded:
    """Encode a candidate."""
    untrained, knobs = candidate.untrained, candidate.knobs()
    cost_knobs = {name: value for name, value in knobs.items() if not name.startswith(_TRAINING)}
    loss_knobs = {name: value for name, value in knobs.items() if not name.startswith(_SERVING)}
    graph = Key(untrained.weights), Key(untrained.precision)
    variant = Key(candidate.weights), Key(candidate.precision)
    return Encoded(
        untrained=(graph, Key(candidate.placement)),
        variant=variant,
        scores=tuple((variant, Key(placement)) for placement in candidate.placement.of_scores),
        graph=graph,
        trainings=tuple(map(Key, candidate.weights.trainings)),
        network=candidate.weights.origin if candidate.weights.elastic else None,
        parts=_parts(candidate.placement),
        cost_knobs=cost_knobs,
        loss_knobs=loss_knobs,
        cost_features=features_of(cost_knobs),
        loss_features=features_of(loss_knobs),
    )


_parts = lru_cache(maxsize=_KEPT)(curve_parts)

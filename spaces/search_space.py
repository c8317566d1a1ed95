"""The search space: the domain of each knob, and the suggestion of one candidate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from spaces.candidate import Candidate
from spaces.domains import Choice, FixedValues, Scalar, Suggester
from spaces.techniques.placement import PlacementSpace
from spaces.techniques.quantization import STATIC, PrecisionSpace
from spaces.weights import AWARE, CYCLES, WeightsSpace


@dataclass(frozen=True)
class SearchSpace:
    """Domains by knob.

    Every domain contains the baseline's value: the origin of the weights always offers it, widths include fp32. Where
    no width may be static int8, quantization-aware training is disabled.
    """

    weights: WeightsSpace
    precision: PrecisionSpace
    placement: PlacementSpace

    def __post_init__(self) -> None:
        if not any(STATIC in domain for domain in self.precision.widths.values()):
            object.__setattr__(self, "weights", replace(self.weights, quantization_aware=Choice((False,))))

    def starts(self) -> tuple[dict[str, Scalar], ...]:
        """Return the knob values of the first trials.

        The baseline comes first. Then, for each start of the weights and for the baseline's own weights, come narrower
        widths and a lean placement. The first of these follows with a second cycle of training, which shows whether a
        longer one pays. Then all come in fp32, since a narrower width may cost more time than it saves; and last in the
        baseline's placement too, since a small model with large requests has work enough for its threads.
        """
        baseline = {"weights.origin": "baseline", **self.precision.baseline(), **self.placement.baseline()}
        baseline |= self._unlearned()
        lean, narrow = self.placement.lean(), self.precision.narrow()
        ways: tuple[dict[str, Scalar], ...] = ({**lean, **narrow}, lean, {})
        roads: tuple[dict[str, Scalar], ...] = (*self.weights.starts(), {})
        starts = [{**baseline, **way, **road} for way in ways for road in roads]
        first = starts[: len(roads)]
        starts = [baseline, *first, *self._longer(first), *starts[len(roads) :]]
        return tuple(start for i, start in enumerate(starts) if start not in starts[:i])

    def _longer(self, starts: Sequence[dict[str, Scalar]]) -> list[dict[str, Scalar]]:
        """Return the first start whose weights may be trained for a second cycle, with it."""
        if 2 not in self.weights.cycles:
            return []
        longer = ({**start, CYCLES: 2} for start in starts)
        return list(islice((start for start in longer if self.suggest(FixedValues(start)).weights.previous), 1))

    def weights_knobs(self, knobs: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Select the knobs that determine a candidate's weights; of the widths, those trained quantization-aware."""
        learned = {f"precision.{g}" for g in self.precision.widths if knobs.get(f"{AWARE}.{g}", False)}
        free = ("placement.", "precision.")
        return self._unlearned() | {n: v for n, v in knobs.items() if n in learned or not n.startswith(free)}

    def within(self, groups: Collection[str]) -> SearchSpace:
        """Return the space that compresses no other group; architecture and placement are unchanged."""
        fp32 = Choice(("fp32",))
        widths = {group: domain if group in groups else fp32 for group, domain in self.precision.widths.items()}
        return replace(self, weights=self.weights.within(groups), precision=replace(self.precision, widths=widths))

    def _unlearned(self) -> dict[str, Scalar]:
        return {f"{AWARE}.{group}": False for group, domain in self.precision.widths.items() if STATIC in domain}

    def suggest(self, suggester: Suggester) -> Candidate:
        """Suggest one candidate, widths first: on them depend the groups trained quantization-aware and the engines."""
        precision = self.precision.suggest(suggester)
        weights = self.weights.suggest(suggester, precision.groups(STATIC))
        precision = self.precision.calibrated(suggester, precision, weights.quantization_aware)
        return Candidate(weights, precision, self.placement.suggest(suggester, precision, not weights.table_forms))

"""The whole space: what each knob may be, and how one candidate is drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.candidate import Candidate
from spaces.domains import Scalar, Suggester
from spaces.placement_space import PlacementSpace
from spaces.precision_space import PrecisionSpace
from spaces.weights_space import WeightsSpace


@dataclass(frozen=True)
class SearchSpace:
    """Domains by knob. The baseline's own value is in every domain: the weights' origin always offers it, widths hold
    fp32."""

    weights: WeightsSpace
    precision: PrecisionSpace
    placement: PlacementSpace

    def starts(self) -> tuple[dict[str, Scalar], ...]:
        """Knob values of the trials that come first: the baseline, then the middle of each road away from it."""
        baseline = {"weights.origin": "baseline", **self.precision.baseline(), **self.placement.baseline()}
        layouts = self.placement.layout.values
        lean = {**baseline, **self.precision.narrow(), "placement.layout": layouts[min(1, len(layouts) - 1)]}
        return (baseline, *({**lean, **road} for road in self.weights.starts()), lean)

    def suggest(self, suggester: Suggester) -> Candidate:
        """Widths come first: which groups may learn with rounding, and which engines there are, hangs on them."""
        precision = self.precision.suggest(suggester)
        weights = self.weights.suggest(suggester, precision.groups("int8-static"))
        precision = self.precision.calibrated(suggester, precision, bool(weights.quantisation_aware))
        return Candidate(weights, precision, self.placement.suggest(suggester, precision))

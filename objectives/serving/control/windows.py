"""Windows of time over which a reactive rule looks at the rate, as in Knative's autoscaler (KPA)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """Times of a reactive rule in seconds, and its limits.

    stable_s: what serves suffices for the most that the mean rate over it wanted within the same time
    panic_s: a rate over it that is `panic` times what is served raises that at once, and nothing is taken away for
        `stable_s` then
    tick_s: time between two decisions
    target: share of the capacity at the SLO that is used, which leaves room for the queue already
    """

    stable_s: float = 60.0
    panic_s: float = 6.0
    tick_s: float = 2.0
    panic: float = 2.0
    target: float = 1.0

    def __post_init__(self) -> None:
        ascending = 0 < self.tick_s <= self.panic_s <= self.stable_s < math.inf
        if not ascending or not 0 < self.target <= 1 or not self.panic > 0:
            raise ValueError(f"Windows are tick <= panic <= stable and the target is a share, but got {self}.")


# The windows of Knative's autoscaler.
KPA = Windows()

"""Description of a fleet: its machines, how requests are balanced over them, and what goes wrong with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from planning.demand import Counts, Floats
from planning.fleet import Offer


@dataclass(frozen=True)
class Failures:
    """Failures of independent machines: exponential times between repair and failure, and of repair, in seconds."""

    mtbf_s: float
    mttr_s: float

    def __post_init__(self) -> None:
        _check_positive(mtbf_s=self.mtbf_s, mttr_s=self.mttr_s)


@dataclass(frozen=True)
class SlowMachines:
    """Machines that are slow for a while, independently.

    share: of the machines, in the mean
    speed: of a slow machine, as a share of its own
    episode_s: mean seconds of an episode, exponential
    """

    share: float
    speed: float
    episode_s: float

    def __post_init__(self) -> None:
        _check_positive(share=self.share, speed=self.speed, episode_s=self.episode_s)
        if max(self.share, self.speed) >= 1:
            raise ValueError(f"Share and speed of slow machines are below 1, but got {self.share} and {self.speed}.")


@dataclass(frozen=True)
class Deployments:
    """Deployments that roll through the fleet: so many machines at once are drained and away.

    every_s: seconds between the starts of deployments
    away_s: seconds until a machine serves again
    start_s: of the first deployment
    """

    every_s: float
    at_once: int
    away_s: float
    start_s: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(every_s=self.every_s, at_once=self.at_once, away_s=self.away_s)
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ValueError(f"start_s is 0 or more, but got {self.start_s}.")

    def seconds(self, machines: int) -> float:
        """Return the seconds that a deployment takes for so many machines."""
        return math.ceil(machines / self.at_once) * self.away_s


@dataclass(frozen=True)
class Zones:
    """Zones over which the machines of each kind are dealt in turn, and the outages of a whole zone, in seconds."""

    count: int
    mtbf_s: float
    mttr_s: float

    def __post_init__(self) -> None:
        _check_positive(count=self.count, mtbf_s=self.mtbf_s, mttr_s=self.mttr_s)


@dataclass(frozen=True)
class Incidents:
    """Incidents of a fleet; None where there are none of a kind.

    detection_s: seconds until the balancer leaves out a machine that failed, which answers nothing meanwhile
    """

    failures: Failures | None = None
    slow: SlowMachines | None = None
    deployments: Deployments | None = None
    zones: Zones | None = None
    detection_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.detection_s) and self.detection_s >= 0):
            raise ValueError(f"detection_s is 0 or more, but got {self.detection_s}.")


@dataclass(frozen=True, eq=False)
class FleetSpec:
    """A fleet whose machines all serve the same deployment.

    offers: the deployment on each kind of machine
    counts: machines of each kind, 0 or more, and 1 or more in all
    spread: standard deviation of the logarithm of the machines' speeds, whose mean is that of the kind
    policy: name of the balancing policy
    """

    offers: tuple[Offer, ...]
    counts: tuple[int, ...]
    policy: str
    spread: float = 0.0
    incidents: Incidents = Incidents()

    def __post_init__(self) -> None:
        if len(self.offers) != len(self.counts) or min(self.counts, default=0) < 0 or sum(self.counts) < 1:
            raise ValueError(f"A fleet has one machine or more of its kinds, but got {self.counts}.")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"The spread of speeds is 0 or more, but got {self.spread}.")
        rolling = self.incidents.deployments
        if rolling is not None and rolling.seconds(self.machines) > rolling.every_s:
            raise ValueError(
                f"A deployment ends before the next one begins, after {rolling.every_s:g} s, but got one of "
                f"{rolling.seconds(self.machines):g} s for {self.machines} machines."
            )

    @property
    def machines(self) -> int:
        return sum(self.counts)

    @property
    def slow_speed(self) -> float:
        """Speed of a slow machine as a share of its own."""
        return 1.0 if self.incidents.slow is None else self.incidents.slow.speed

    @property
    def instance_speeds(self) -> tuple[float, ...]:
        """Speed of a machine of each kind, summed over its instances, when nothing is wrong with it."""
        return tuple(offer.copies * offer.kind.speed for offer in self.offers)

    @property
    def price_per_hour(self) -> float:
        return sum(count * offer.kind.price_per_hour for count, offer in zip(self.counts, self.offers, strict=True))

    def resized(self, machines: int) -> FleetSpec:
        """Return the fleet with so many machines, in nearly the same proportions, deployments included."""
        rolling = self.incidents.deployments
        if rolling is not None:
            at_once = max(1, math.ceil(rolling.at_once * machines / self.machines))
            rolling = replace(rolling, at_once=at_once)
        counts = tuple(apportioned(np.array(self.counts), machines).tolist())
        return replace(self, counts=counts, incidents=replace(self.incidents, deployments=rolling))


def apportioned(weights: Counts, seats: int) -> Counts:
    """Return whole numbers, (n,), in proportion to the weights, (n,), with the given sum (largest remainders)."""
    total = int(weights.sum())
    if total == 0:
        return np.zeros(len(weights), np.int64)
    found, left = np.divmod(weights * seats, total)
    first = np.argsort(-left, kind="stable")[: seats - int(found.sum())]
    found[first] += 1
    return np.asarray(found, np.int64)


def speeds(count: int, spread: float) -> Floats:
    """Return ascending relative speeds of machines, (count,): quantiles of a log-normal distribution, of mean 1."""
    found = np.exp(spread * ndtri((np.arange(count) + 0.5) / max(count, 1)))
    return np.asarray(found / max(float(found.mean()), 1e-300) if count else found, np.float64)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is above 0, but got {value}.")

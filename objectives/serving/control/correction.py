"""Correction of a plan's capacities where answers are late although what served was to suffice.

A machine may be slower than the one that was measured, share its cores with others, or have transport to pay for.
Evidence is the share of late answers since the last change, from when the queue of before has gone. Where it is above
the SLO's, beyond chance, and more did not arrive than was to be served, rates count for more from then on; where it is
below for a stable window, they count for a little less again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Times by which rates count for more at a time, and less.
_UP, _DOWN = 1.5, 0.98
# Within a stable window so many times the tolerated share call for more at once.
_CLEARLY = 2.0
_FEWEST = 20
_Z = 1.96


@dataclass(frozen=True)
class Answers:
    """Answers of a server so far: requests that have ended, those of them that were late or refused, and those that
    wait now."""

    now_s: float
    ended: int
    late: int
    backlog: int


@dataclass(frozen=True)
class Correction:
    """Correction of the rates that are to be served, and the evidence for the next one.

    factor: 1 or more, by which rates are multiplied
    from_s: moment from which answers count, unless `until_idle`: then they count once nothing waits, if that is earlier
    ended, late: requests that had ended by then, and those of them that were late or refused
    """

    factor: float = 1.0
    from_s: float = -math.inf
    until_idle: bool = False
    ended: int = 0
    late: int = 0

    def begun_again(self, now: Answers, settle_s: float, until_idle: bool = False) -> Correction:
        """Return the correction without evidence, of which answers count after so many seconds."""
        return Correction(self.factor, now.now_s + settle_s, until_idle, now.ended, now.late)


def correct(
    before: Correction, now: Answers, allowed: float, stable_s: float, settle_s: float, explained: bool, may_grow: bool
) -> Correction:
    """Return the correction after a tick in which nothing else was about to serve.

    Args:
        allowed: share of late answers that the SLO tolerates
        stable_s: seconds over which a share is judged
        settle_s: seconds after a larger factor in which answers tell nothing
        explained: whether more arrived than was to be served, so that late answers are no wonder
        may_grow: whether something of more capacity could serve
    """
    if now.now_s <= before.from_s and not (before.until_idle and now.backlog == 0):
        return replace(before, ended=now.ended, late=now.late)
    if before.until_idle:
        before = before.begun_again(now, 0.0)
    low, high = _wilson(now.late - before.late, now.ended - before.ended)
    whole = now.now_s - before.from_s >= stable_s
    if low > allowed and explained:
        return before.begun_again(now, stable_s, until_idle=True)
    if may_grow and low > (allowed if whole else _CLEARLY * allowed):
        return replace(before, factor=before.factor * _UP).begun_again(now, settle_s)
    if not whole:
        return before
    factor = max(1.0, before.factor * _DOWN) if high < allowed else before.factor
    return replace(before, factor=factor).begun_again(now, 0.0)


def _wilson(late: int, ended: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson, 1927); all shares where there are few answers."""
    if ended < _FEWEST:
        return 0.0, 1.0
    share, z2 = late / ended, _Z * _Z
    centre = share + z2 / (2 * ended)
    half = _Z * math.sqrt(share * (1 - share) / ended + z2 / (4 * ended * ended))
    return (centre - half) / (1 + z2 / ended), (centre + half) / (1 + z2 / ended)

"""Correction of a plan's capacities where answers are late although what served was to suffice.

A machine may be slower than the one that was measured, share its cores with others, or have transport to pay for.
Evidence is the share of late answers in short batches since the last change, from when the queue of before has gone:
a single pause makes one batch late, and a machine that is too slow all of them. Where they say that more are late than
the SLO tolerates, and no more arrived than was to be served, rates count for more from then on; where few were late for
a stable window, they count for a little less again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean, stdev

# Times by which rates count for more at a time, and less.
_UP, _DOWN = 1.5, 0.97
# Batches in a panic window, answers that one needs, and batches in a row that call for more at once, each if so many
# times the tolerated share were late in it.
_PER_PANIC, _FEWEST, _IN_A_ROW, _CLEARLY = 3, 20, 4, 2.0
# Standard errors by which the mean of a stable window has to be above the tolerated share, and batches that it needs.
_SURE = 3.0
_WHOLE = 4 * _PER_PANIC


@dataclass(frozen=True)
class Answers:
    """Answers of a server so far.

    ended: requests that have ended or are overdue
    late: those of them that were late or refused
    backlog: requests that wait now
    """

    now_s: float
    ended: int
    late: int
    backlog: int


@dataclass(frozen=True)
class Terms:
    """Terms of a correction at a tick.

    allowed: share of late answers that the SLO tolerates
    stable_s, panic_s: windows of the controller
    settle_s: seconds after a larger factor in which answers tell nothing
    explained: whether more arrived than was to be served, so that late answers are no wonder
    most: largest factor that makes a difference; one below the factor keeps it from growing
    """

    allowed: float
    stable_s: float
    panic_s: float
    settle_s: float
    explained: bool
    most: float


@dataclass(frozen=True)
class Correction:
    """Correction of the rates that are to be served, and the evidence for the next one.

    factor: 1 or more, by which rates are multiplied
    from_s: moment from which answers count, unless `until_idle`: then they count once nothing waits, if that is earlier
    batch_s: moment at which the batch began that is not whole yet
    ended, late: requests that had ended by then, and those of them that were late or refused
    shares: of late answers, by batch since `from_s`
    """

    factor: float = 1.0
    from_s: float = -math.inf
    until_idle: bool = False
    batch_s: float = -math.inf
    ended: int = 0
    late: int = 0
    shares: tuple[float, ...] = ()

    def begun_again(self, now: Answers, settle_s: float, until_idle: bool = False) -> Correction:
        """Return the correction without evidence, of which answers count after so many seconds."""
        from_s = now.now_s + settle_s
        return Correction(self.factor, from_s, until_idle, from_s, now.ended, now.late)

    def grown(self, now: Answers, terms: Terms) -> Correction:
        """Return the correction with a larger factor, as far as that makes a difference, and without evidence."""
        factor = max(self.factor, min(self.factor * _UP, terms.most))
        return replace(self, factor=factor).begun_again(now, terms.settle_s)


def correct(before: Correction, now: Answers, terms: Terms) -> Correction:
    """Return the correction after a tick in which nothing else was about to serve."""
    if now.now_s <= before.from_s and not (before.until_idle and now.backlog == 0):
        return replace(before, batch_s=now.now_s, ended=now.ended, late=now.late)
    if before.until_idle:
        before = before.begun_again(now, 0.0)
    ended, late = now.ended - before.ended, now.late - before.late
    if now.now_s - before.batch_s < terms.panic_s / _PER_PANIC or ended < _FEWEST:
        return before
    share, allowed = late / ended, terms.allowed
    if terms.explained and share > allowed:
        return before.begun_again(now, terms.stable_s, until_idle=True)
    shares = (*before.shares, share)
    whole = now.now_s - before.from_s >= terms.stable_s and len(shares) >= _WHOLE
    if before.factor < terms.most and (_clearly_late(shares, allowed) or (whole and _surely_late(shares, allowed))):
        return before.grown(now, terms)
    if not whole:
        return replace(before, batch_s=now.now_s, ended=now.ended, late=now.late, shares=shares)
    factor = max(1.0, before.factor * _DOWN) if fmean(shares) < allowed / 2 else before.factor
    return replace(before, factor=factor).begun_again(now, 0.0)


def _clearly_late(shares: tuple[float, ...], allowed: float) -> bool:
    return len(shares) >= _IN_A_ROW and min(shares[-_IN_A_ROW:]) > _CLEARLY * allowed


def _surely_late(shares: tuple[float, ...], allowed: float) -> bool:
    """Return whether the mean of a stable window is above the tolerated share, by its means over panic windows."""
    means = [fmean(shares[at : at + _PER_PANIC]) for at in range(0, len(shares), _PER_PANIC)]
    return fmean(means) - _SURE * stdev(means) / math.sqrt(len(means)) > allowed

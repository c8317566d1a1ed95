"""Policy of a promotion: conditions that a challenger's shadowing has to keep, and which of them hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from objectives.records import Quality
from objectives.shadow.batch_means import BATCHES
from objectives.shadow.summary import ShadowSummary
from search.errors import ConfigError
from search.format import MISSING, percent, significant, span, times


@dataclass(frozen=True)
class PromotionPolicy:
    """Limits of a promotion; ConfigError where one is invalid.

    min_requests, min_seconds: of shadowing
    max_p95_ratio: of the upper bound of the p95 ratio, challenger over champion on the same requests; a ratio whose
        interval contains it is undecided
    max_difference: of the mean difference of scores, in units of the spread of the champion's
    min_agreement: share of the champion's top rows that are the challenger's too; None for any
    max_loss: of quality, against the champion on held-out rows; None for any
    """

    min_requests: int = 1000
    min_seconds: float = 600.0
    max_p95_ratio: float = 1.2
    max_difference: float = 0.8
    min_agreement: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if self.min_requests < 1:
            raise ConfigError(f"min_requests: must be 1 or more, but got {self.min_requests}")
        if not self.min_seconds >= 0:
            raise ConfigError(f"min_seconds: must be 0 or more, but got {self.min_seconds}")
        for name in ("max_p95_ratio", "max_difference"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: must be above 0, but got {getattr(self, name)}")
        for name in ("min_agreement", "max_loss"):
            if (limit := getattr(self, name)) is not None and not 0 <= limit <= 1:
                raise ConfigError(f"{name}: must lie between 0 and 1, but got {limit}")


@dataclass(frozen=True)
class Condition:
    """A condition with its limit and value in words.

    holds: whether it does
    final: whether more requests would not change that it does not
    left_out: whether it is not asked for, since its value cannot be known
    """

    name: str
    limit: str
    value: str
    holds: bool
    final: bool = False
    left_out: bool = False

    @property
    def reason(self) -> str:
        """The condition in one clause, for a refusal."""
        return f"{self.name}: must be {self.limit}, but is {self.value}"


def shadow_conditions(policy: PromotionPolicy, found: ShadowSummary) -> tuple[Condition, ...]:
    """Return the conditions that shadowing tells; a number that is not known yet keeps no limit."""
    return tuple(_shadow_conditions(policy, found))


def _shadow_conditions(policy: PromotionPolicy, found: ShadowSummary) -> Iterator[Condition]:
    counts, last = found.counts, found.last_failure or "no reason is known"
    if found.unusable is not None:
        wanted = "a bundle that can be served in the champion's place"
        yield Condition("challenger", wanted, found.unusable, holds=False, final=True)
    requests, seconds = counts.shadowed >= policy.min_requests, found.seconds >= policy.min_seconds
    enough = requests and seconds
    shadowed = f"{counts.shadowed:,}" + ("" if requests or not counts.not_compared else _not_compared(found))
    yield Condition("requests shadowed", f"at least {policy.min_requests:,}", shadowed, requests)
    yield Condition("seconds of shadowing", f"at least {policy.min_seconds:g}", f"{found.seconds:.0f}", seconds)
    for name, count in (("failures", counts.failed), ("requests with non-finite scores", counts.not_finite)):
        yield Condition(name, "0", f"{count:,} ({last})" if count else "0", count == 0, final=count > 0)
    yield _p95_condition(policy.max_p95_ratio, found, enough)
    mean, most = found.mean_difference, policy.max_difference
    holds = mean is not None and mean <= most
    told = MISSING if mean is None else significant(mean, 3)
    yield Condition("mean difference of scores", f"at most {most:g} of their spread", told, holds, enough)
    if (least := policy.min_agreement) is not None:
        agreement = found.rank_agreement
        holds = agreement is not None and agreement >= least
        told = MISSING if agreement is None else percent(agreement)
        yield Condition("top rows in common", f"at least {percent(least)}", told, holds, enough)


def _not_compared(found: ShadowSummary) -> str:
    """Return the numbers of requests that were picked and say nothing of the challenger, for a refusal."""
    counts = found.counts
    return f" ({counts.dropped:,} dropped, {counts.refused:,} refused, {counts.starved:,} starved of CPU)"


def _p95_condition(most: float, found: ShadowSummary, enough: bool) -> Condition:
    """Return the condition on the upper bound; it is final once the lower bound breaks it too."""
    name, limit = "upper bound of the p95 ratio", f"at most {most:g}x"
    ratio, interval = found.p95_ratio, found.p95_ratio_interval
    if ratio is None or interval is None:
        return Condition(name, limit, f"not known: {found.windows} windows, of {BATCHES} at least", holds=False)
    told = (
        f"{times(interval[1])} (of {times(interval[0])} to {times(interval[1])} around {times(ratio)}, "
        f"{found.windows:,} windows)"
    )
    return Condition(name, limit, told, interval[1] <= most, final=enough and interval[0] > most)


def loss_condition(
    most: float, quality: Quality | None, trouble: str | None, left_out: bool = False, final: bool = False
) -> Condition:
    """Return the condition on quality.

    Args:
        most: the highest loss
        quality: of the challenger against the champion, None where it was not evaluated
        trouble: the reason for that
        left_out: whether the condition is not asked for then
        final: whether a further evaluation would fail as well
    """
    limit, name = f"at most {percent(most)}", "quality loss to the champion"
    if quality is None:
        return Condition(name, limit, f"not known: {trouble}", left_out, final, left_out)
    told = f"{quality.loss:.2%} ({span(quality.loss_interval, '{:.2%}'.format)}, {quality.rows:,} rows of validation)"
    return Condition(name, limit, told, quality.loss <= most, final=quality.loss > most)


def reasons(conditions: Sequence[Condition]) -> str | None:
    """Return the conditions that do not hold, in one line; None where all do."""
    broken = [condition.reason for condition in conditions if not condition.holds]
    return "; ".join(broken) or None

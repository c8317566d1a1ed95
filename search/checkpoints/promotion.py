"""Promotion of a challenger: its shadowing is held to a policy, and the alias moves where that holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from objectives.errors import InputError
from objectives.records import Quality
from objectives.serving.bundle import Bundle, read_bundle, verify
from objectives.serving.bundle_files import BundleError
from objectives.shadow.state import ShadowState
from objectives.shadow.state_files import read_states
from objectives.shadow.summary import ShadowSummary, summarize
from search.checkpoints.promotion_policy import Condition, PromotionPolicy, loss_condition, reasons, shadow_conditions
from search.errors import ConfigError, JobError, LostJobError
from search.ledger.aliases import Aliases
from search.ledger.registry import CHALLENGER, CHAMPION
from search.locking import StudyRunningError
from search.report.columns import Cell, Column

# A challenger and a champion -> the quality of the first against the second, or the reason why it cannot be known here.
Evaluate = Callable[[Bundle, Bundle], tuple[Quality | None, str | None]]
# refused: more requests would not change it; undecided: they might, and until then the champion stays.
Outcome = Literal["promoted", "refused", "undecided"]

CONDITION_COLUMNS: tuple[Column[Condition], ...] = (
    Column("condition", lambda of: Cell(of.name), "left"),
    Column("limit", lambda of: Cell(of.limit), "left"),
    Column("value", lambda of: Cell(of.value), "left"),
    Column("holds", lambda of: Cell("left out" if of.left_out else "yes" if of.holds else "no"), "left"),
)


@dataclass(frozen=True, kw_only=True)
class PromotionVerdict:
    """Result of holding the evidence of a challenger to a policy.

    broken: the conditions that do not hold, None where all do
    """

    outcome: Outcome
    conditions: tuple[Condition, ...]
    shadow: ShadowSummary | None
    broken: str | None


@dataclass(frozen=True, kw_only=True)
class PromotionResult:
    """Result of a promotion, as `leanrec promote --json` prints it.

    champion, challenger: numbers of the versions before it
    """

    name: str
    champion: str
    challenger: str
    promoted: bool
    outcome: Outcome
    reason: str
    conditions: tuple[Condition, ...]
    shadow: ShadowSummary | None


@dataclass(frozen=True)
class Promotion:
    """Evidence of a challenger, and the policy that it is held to.

    states: folder of the shadowing's states
    loss_required: whether a loss that cannot be known here refuses; else the condition is left out
    evaluate: called only where all other conditions hold; what it raises refuses
    """

    aliases: Aliases
    states: Path
    policy: PromotionPolicy
    loss_required: bool
    evaluate: Evaluate

    def promote(self) -> PromotionResult:
        """Move the alias champion to the challenger if the policy holds.

        Raises:
            InputError: there is no challenger.
        """
        aliases = self.aliases
        champion, challenger = aliases.version(CHAMPION), aliases.version(CHALLENGER)
        if challenger is None or champion is None:
            missing = f"models:/{aliases.name}@{CHALLENGER}"
            raise InputError(f"STUDY: {missing} must be registered in {aliases.store}, but there is none")
        try:
            ours, _ = verify(aliases.folder(challenger))
        except BundleError as error:
            whole = Condition("bundle", "one that verifies", str(error), holds=False, final=True)
            found = PromotionVerdict(outcome="refused", conditions=(whole,), shadow=None, broken=whole.reason)
        else:
            found = self.verdict(read_bundle(aliases.folder(champion)), ours)
        outcome, reason = found.outcome, found.broken or told(found)
        if outcome == "promoted" and not aliases.promote(challenger, reason, str(champion.version)):
            outcome = "undecided"
            reason = f"version {aliases.number(CHAMPION)} became the champion meanwhile, which it was not compared with"
        return PromotionResult(
            name=aliases.name,
            champion=str(champion.version),
            challenger=str(challenger.version),
            promoted=outcome == "promoted",
            outcome=outcome,
            reason=reason,
            conditions=found.conditions,
            shadow=found.shadow,
        )

    def verdict(self, champion: Bundle, challenger: Bundle) -> PromotionVerdict:
        """Hold the evidence to the policy; a challenger that is the champion already keeps it."""
        if champion.version == challenger.version:
            return PromotionVerdict(outcome="promoted", conditions=(), shadow=None, broken=None)
        summary, pair = _evidence(self.states, champion, challenger)
        conditions = (pair, *shadow_conditions(self.policy, summary))
        most = self.policy.max_loss
        if most is not None and all(condition.holds for condition in conditions):
            conditions = (*conditions, self._loss(most, challenger, champion))
        broken = [condition for condition in conditions if not condition.holds]
        outcome: Outcome = "promoted"
        if broken:
            outcome = "refused" if any(condition.final for condition in broken) else "undecided"
        return PromotionVerdict(outcome=outcome, conditions=conditions, shadow=summary, broken=reasons(conditions))

    def _loss(self, most: float, challenger: Bundle, champion: Bundle) -> Condition:
        try:
            quality, reason = self.evaluate(challenger, champion)
        except (ConfigError, JobError) as error:
            # A process that died, or a study that is being run, says nothing of the challenger.
            final = not isinstance(error, (LostJobError, StudyRunningError))
            return loss_condition(most, None, str(error), final=final)
        return loss_condition(most, quality, reason, left_out=quality is None and not self.loss_required)


def told(found: PromotionVerdict) -> str:
    """Return the reason of a promotion in one line."""
    if found.shadow is None:
        return "it is the champion already"
    return "; ".join(f"{condition.name} {condition.value}" for condition in found.conditions[1:])


def _evidence(states: Path, champion: Bundle, challenger: Bundle) -> tuple[ShadowSummary, Condition]:
    """Return the summary of how these two were shadowed, and the condition that there is one.

    The summary is of all servers' states of the two, or of no request where there are none.
    """
    found, wanted = read_states(states), f"{challenger.version} beside {champion.version}"
    # A server that cannot read a challenger's manifest knows its folder alone.
    names = (challenger.version, str(challenger.folder))
    same = [state for state in found if state.champion == champion.version and state.challenger in names]
    if same:
        return summarize(*same), Condition("shadowed", wanted, wanted, True)
    pairs = dict.fromkeys(f"{state.challenger} beside {state.champion}" for state in found)
    value = ", ".join(pairs) or f"nothing yet: {states} is written by leanrec serve --challenger"
    none = ShadowState(champion.version, challenger.version)
    return summarize(none), Condition("shadowed", wanted, value, False)

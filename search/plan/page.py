"""Page of a plan: sentences, tables and figures as one HTML file."""

from __future__ import annotations

from pathlib import Path

from search.format import column_percent, milliseconds, significant
from search.plan.columns import POLICY_COLUMNS, SCORE_COLUMNS, plan_columns, stretches
from search.plan.document import PlanDocument
from search.plan.figures import plan_figure, policies_figure
from search.report.report import write_figures


def headline(found: PlanDocument) -> str:
    """Summarise a plan in a sentence."""
    hours = len(found.phases) * found.phase_seconds / 3600
    served = sorted({f"trial {phase.trial}" for phase in found.phases})
    return (
        f"{significant(hours, 3)} hours with p{found.percent} within {milliseconds(found.slo_ms)}: "
        f"{', '.join(served)} at a mean loss of {column_percent(found.loss)}; money {significant(found.money, 3)}."
    )


def write_page(found: PlanDocument, path: Path) -> None:
    """Write plan.html, everything inside it."""
    write_figures(
        path,
        "plan.html.j2",
        {"plan": plan_figure(found), "policies": policies_figure(found)},
        found=found,
        headline=headline(found),
        rows=stretches(found.phases, found.phase_seconds),
        columns=plan_columns(found),
        policy_columns=POLICY_COLUMNS,
        score_columns=SCORE_COLUMNS,
    )

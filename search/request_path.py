"""Sentences on how requests reached what was measured, and on the time that they spend elsewhere."""

from __future__ import annotations

from objectives.records import OverheadRatios, Through
from search.format import milliseconds, ranged


def path_sentences(through: Through, added: OverheadRatios | None) -> list[str]:
    """Describe the path of the requests; nothing for the pool alone.

    Args:
        added: a point's ratios with the time that is spent elsewhere, None where none was given
    """
    said = []
    if through == "http":
        said.append(
            "Candidates and baseline were measured through the HTTP server, each in a process of its own: the numbers "
            "are those of a client on the same machine."
        )
    if added is not None:
        ratios = [
            ("p50", added.p50_ratio, added.p50_ratio_interval),
            ("p95", added.p95_ratio, added.p95_ratio_interval),
            ("p99", added.p99_ratio, added.p99_ratio_interval),
        ]
        told = ", ".join(f"{name} {ranged(r, span)}" for name, r, span in ratios if r is not None and span is not None)
        said.append(
            f"With the {milliseconds(added.overhead_ms)} that each request spends elsewhere, of the baseline's time: "
            f"{told}. A policy goes by these ratios, and the SLO covers that time."
        )
    return said

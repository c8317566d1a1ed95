"""The report's HTML: words, tables and style around figures that are drawn elsewhere. Every text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.format import (
    MISSING,
    column_milliseconds,
    column_percent,
    column_ratio,
    count,
    metric_name,
    milliseconds,
    percent,
    significant,
    size,
)
from search.report.ablation import ablation_section
from search.report.data import Document, Row, all_rows, front_data, knobs_by_family, metric_of
from search.report.front import loss_window
from search.report.html import cell, section, table
from search.report.slices import slices_section
from search.report.style import PRINT_SCRIPT, STYLE
from search.verdict import Verdict, alike_trials

_NUMBER = re.compile(r"[-+]?\d[\d.,]*%?")


def page(
    document: Document,
    words: Verdict,
    figures: Mapping[str, str],
    plotly_js: str,
    constant: Mapping[str, str],
    knobs_pixels: int,
) -> str:
    """`figures`: HTML fragments by name, `knobs` and `ablation` left out where there is nothing to compare."""
    title = f"{escape(document['study'])}: what compression bought"
    sections = [
        _verdict(document, words),
        section("The front", _front_caption(document), f'<figure class="plot">{figures["front"]}</figure>'),
        section("The points of the front", "", _front_table(document)),
        ablation_section(document.get("ablation"), figures.get("ablation")),
        slices_section(document),
        _knobs(figures.get("knobs"), constant, knobs_pixels),
        section(
            "How the search went",
            "Hypervolume is the share of the cube of gains that the front covers: "
            f"{document['hypervolume'] or 0:.3f} at the end. A curve still rising says that more time would pay.",
            f'<div class="pair"><figure class="plot">{figures["by_minutes"]}</figure>'
            f'<figure class="plot">{figures["by_trial"]}</figure></div>',
        ),
        _endings(document),
        _left_alone(document),
        section("How to read this", "", _HOW_TO_READ),
        section("How it was measured", "", _method(document)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<script>{plotly_js}</script>\n</head>\n<body>\n<main>\n"
        f"{''.join(sections)}\n</main>\n<script>{PRINT_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _verdict(document: Document, words: Verdict) -> str:
    counts = document["counts"]
    facts = [
        f"{significant(document['minutes'], 3)} minutes of search" if document["minutes"] is not None else "",
        f"{counts['complete']} complete, {counts['stopped']} stopped, {counts['failed']} failed",
        f"{count(document['front_size'], 'point')} on the front",
    ]
    chosen = document.get("chosen")
    sentences = [escape(sentence) for sentence in words.sentences]
    if chosen and chosen.get("reason"):
        bundle = f" Its bundle is in <code>{escape(chosen['bundle'])}</code>." if chosen.get("bundle") else ""
        sentences.append(f"{escape(chosen['reason'].rstrip('.'))}.{bundle}")
    if chosen and chosen.get("control"):
        sentences.append(escape(chosen["control"]["sentence"]))
    # A warning that the verdict has spoken already is not repeated.
    left = [text for text in document["warnings"] if text not in words.sentences]
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in left)
    return (
        f'<header>\n<p class="study">leanrec study <b>{escape(document["study"])}</b></p>\n'
        f"<h1>{escape(words.headline)}</h1>\n<ul>{''.join(f'<li>{text}</li>' for text in sentences)}</ul>\n"
        f'<p class="facts">{" · ".join(escape(fact) for fact in facts if fact)}</p>\n{warnings}</header>\n'
    )


def _front_caption(document: Document) -> str:
    data = front_data(document)
    beyond = [point.loss for point in data.points if 100 * point.loss > loss_window(data)[1]]
    caption = (
        "Each mark is a trial measured beside the baseline. "
        "Left is faster, lower keeps more quality, darker carries more; faint marks are off the front."
    )
    if beyond:
        caption += (
            f" {count(len(beyond), 'trial')} lost more than the frame shows, up to {percent(max(beyond))}: "
            "a double click shows all."
        )
    return caption


def _front_table(document: Document) -> str:
    baseline, chosen = document["baseline"], (document.get("chosen") or {}).get("row")
    # No trial has the number -1: nothing is tagged where nothing is chosen.
    chosen_trial = chosen["trial"] if chosen else -1
    if baseline is None:
        return '<p class="note">The baseline has not been measured.</p>'
    front = [row for row in all_rows(document)[1:] if row["on_front"]]
    off = [row for row in document.get("reference_points") or () if not row["on_front"] and row["trial"] != 0]
    held = [_front_row(baseline, baseline, "baseline"), *(_front_row(row, baseline, row["reference"]) for row in off)]
    if not front:
        return f'{table(_HEADS, held)}<p class="note">No candidate is on the front.</p>'
    front.sort(key=lambda row: float(row["latency_ms"]["p95_ratio"]))
    alike = alike_trials(document, chosen) if chosen else []
    cells = held
    for row in front:
        tag = "chosen" if row["trial"] == chosen_trial else "≈ chosen" if row["trial"] in alike else ""
        tag = ", ".join(filter(None, (row.get("reference"), tag)))
        cells.append(_front_row(row, baseline, tag))
    note = '<p class="note">≈ chosen: its intervals overlap those of the chosen point on every objective.</p>'
    return table(_HEADS, cells) + _TUNED_NOTE + (note if len(alike) > 1 else "")


_TUNED_NOTE = (
    '<p class="note">To tuned: against the baseline\'s own model in fp32, in the best placement that was found. '
    "Both were measured beside the baseline, each in a run of its own.</p>"
)
_HEADS = (
    "trial",
    "recipe",
    "p95",
    "p95 ratio",
    "to tuned",
    "throughput",
    "throughput ratio",
    "capacity ratio",
    "quality loss",
    "model",
)


def _front_row(row: Row, baseline: Row, tag: str) -> Sequence[str]:
    latency, quality = row["latency_ms"], row["quality"]
    # The baseline against itself is exact.
    own = row["trial"] == baseline["trial"]
    measured = (
        latency["p95_ratio_interval"],
        row["throughput_ratio_interval"],
        row.get("capacity_ratio_interval"),
        quality["loss_interval"],
    )
    intervals = (None, None, None, None) if own else measured
    badge = f' <span class="tag {"chosen" if "chosen" in tag.split(", ") else ""}">{escape(tag)}</span>' if tag else ""
    return (
        f"{row['trial']}{badge}",
        _recipe(row, baseline),
        cell(latency["p95"], column_milliseconds),
        cell(latency["p95_ratio"], column_ratio, intervals[0]),
        cell((row.get("tuned") or {}).get("p95_ratio"), column_ratio),
        cell(row["throughput_rps"], lambda value: f"{value:,.0f}/s"),
        cell(row["throughput_ratio"], column_ratio, intervals[1]),
        cell(row.get("capacity_ratio"), column_ratio, intervals[2]),
        cell(quality["loss"], column_percent, intervals[3]),
        cell(row["model_bytes"], size),
    )


def _recipe(row: Row, baseline: Row) -> str:
    """What differs from the baseline; all knobs, and the widths that the file itself has, on opening."""
    if row["trial"] == baseline["trial"]:
        return "the model as it was given"
    changed = {name: value for name, value in row["knobs"].items() if baseline["knobs"].get(name) != value}
    # How it was taught is detail, and the origin is said by what was reshaped or pruned.
    said = {name: value for name, value in changed.items() if not name.startswith(_LEFT_TO_DETAILS)}
    families = knobs_by_family(said)
    brief = "; ".join(_PREFIX.get(family, "") + text for family, text in families.items())
    units = {group: "-".join(map(str, of)) for group, of in (row.get("units") or {}).items()}
    read = {"widths in the file": _pairs(row.get("widths") or {}), "units that are left": _pairs(units)}
    everything = {**knobs_by_family(row["knobs"]), **read}
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v or MISSING)}</dd>" for k, v in everything.items())
    return f"<details><summary>{escape(brief or 'as the baseline')}</summary><dl>{terms}</dl></details>"


_LEFT_TO_DETAILS = ("distillation.", "weights.origin")
_PREFIX = {"architecture": "student: ", "pruning": "pruned: "}


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items())


def _knobs(figure: str | None, constant: Mapping[str, str], pixels: int) -> str:
    same = f'<p class="note">The same in every trial: {escape(_pairs(constant))}.</p>' if constant else ""
    lead = (
        "Each line is a complete trial: the front in the colours of its throughput, dominated trials grey, those that "
        f"lose too much lighter. Drag along an upright to pick trials; {MISSING} is a knob that a trial does not have."
    )
    if figure is None:
        return section("What was tried", "One trial ran to the end, so there is nothing to compare it with.", same)
    plot = f'<div class="scroll"><figure class="plot" style="min-width:{pixels}px">{figure}</figure></div>'
    return section("What was tried", lead, plot + same)


def _endings(document: Document) -> str:
    """Trials that did not run to the end, by reason, the most frequent first; reasons that differ by numbers alone are
    one, with dots for the numbers."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in document["rows"]:
        if row["state"] != "complete":
            reason = row["reason"] or "no reason was recorded"
            groups.setdefault((row["state"], _NUMBER.sub("…", reason)), []).append((row["trial"], reason))
    if not groups:
        return section("What did not run to the end", "Every trial ran to the end.", "")
    # Failures before trials that were stopped on purpose.
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "failed", -len(item[1])))
    rows = [
        (
            escape(state),
            escape(form if len({reason for _, reason in trials}) > 1 else trials[0][1]),
            str(len(trials)),
            escape(", ".join(str(trial) for trial, _ in trials)),
        )
        for (state, form), trials in ordered
    ]
    lead = (
        "A failed trial could not be built or measured; "
        "a stopped one was given up on purpose, to spend its time elsewhere."
    )
    body = table(("", "reason", "how many", "trials"), rows).replace("<table>", '<table class="reasons">')
    return section("What did not run to the end", lead, body)


def _left_alone(document: Document) -> str:
    """Parts of the model that no technique reaches; empty where there is none."""
    found = document.get("left_alone") or {}
    if not found:
        return ""
    rows = [(escape(module), escape(reason)) for module, reason in found.items()]
    return section("What was left alone", "", table(("", "why"), rows).replace("<table>", '<table class="reasons">'))


def _method(document: Document) -> str:
    metric = metric_name(metric_of(document))
    references = document.get("references") or {}
    resolution = document["resolution"]
    known = {
        "machine": document["machine"],
        "load": f"{significant(document['rate_rps'], 3)} requests per second" if document["rate_rps"] else None,
        "SLO": f"p95 within {milliseconds(document['slo_ms'])}" if document["slo_ms"] else None,
        "objectives": ", ".join(name.replace("_", " ") for name in document["objectives"]),
        "tolerated loss": f"{percent(document['max_loss'])} of {metric}, relative to the baseline",
        "resolution": f"{percent(resolution)}, the smallest loss that this data could show" if resolution else None,
        f"{metric_name(document.get('reference_metric', 'auc'))} on test": ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in references.items() if value is not None
        ),
    }
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text or MISSING)}</dd>" for name, text in known.items())
    return f"<dl>{terms}</dl>{_HOW_MEASURED}"


_HOW_TO_READ = """<ul>
<li><b>The front</b> is every trial within the tolerated loss that no other matches or betters on latency, throughput
and quality at once. Losses closer than the resolution count as equal, and a gain counts as no loss. The dotted edge
joins those that stand out by latency and quality alone; a point of the front away from the edge earns its place by its
throughput.</li>
<li><b>Bars and ranges</b> are 95% intervals of a comparison with the baseline. Candidates are never compared with each
other directly, so two whose ranges overlap on every objective are best taken as equal.</li>
<li><b>Ratios</b> are against the baseline under the same requests at the same times: a p95 ratio of 0.2x is five times
faster, a throughput ratio of 4x is four times the load within the SLO, a capacity ratio of 4x four times the requests
per second when saturated. Milliseconds are this machine's; ratios travel better.</li>
<li><b>Quality loss</b> is relative to the baseline's own metric; below zero is a gain.</li>
<li><b>Hypervolume</b> is the volume under the front in a cube of three gains, each from 0 to 1: latency (a p95 ratio of
0.01x is 1), throughput (a ratio of 100x is 1) and quality kept (no loss is 1, the tolerated loss is 0).</li>
</ul>"""

_HOW_MEASURED = """<p>
Latency is open loop: arrivals come from a seeded schedule and do not wait for answers, and a request's latency runs
from its scheduled arrival, queueing included. Candidate and baseline alternate in short blocks, and both are opened
anew for each visit; a ratio is the geometric mean over the visits, and its interval includes how visits differ. A
pair of blocks that other processes disturbed is run again and left out. A candidate that surely loses too much, or
that a glance finds clearly slower than the baseline or than one that loses no more, is stopped untimed; a point
that would enter the front is measured in further visits. The raw timings are kept with each trial, so that a number
can be computed again. Throughput is the highest arrival rate whose p95 stays within the SLO, capacity the requests
per second when saturated, of candidate and baseline in the same visits. Quality is judged on held-out rows through
the engine that serves; its interval resamples users or requests, not rows. Candidates were ranked by validation
alone.
</p>"""

"""Title of a candidate in a few words, by which a person finds its run."""

from __future__ import annotations

from collections import defaultdict

from search.format import listed
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.weights import Weights

# Longest title of a candidate.
_LONGEST = 120


def run_name(trial: EndedTrial) -> str:
    """Return the name of a trial's run, such as "trial 43: student 16-2-64, int4 tables, 1x1, inline"."""
    of = f" ({trial.reference})" if trial.reference is not None else ""
    return f"trial {trial.number}{of}: {candidate_title(trial.candidate)}"


def candidate_title(candidate: Candidate) -> str:
    """Describe the differences of a candidate from the baseline, in the order in which they are applied."""
    parts = [*_weights(candidate.weights), *_widths(candidate), *_placement(candidate.placement)]
    title = ", ".join(filter(None, parts))
    return title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…"


def _weights(weights: Weights) -> list[str]:
    """Return the origin with a student's sizes, by their names' order, and the other techniques with their groups."""
    sizes = () if weights.architecture is None else weights.architecture.sizes
    origin = " ".join([weights.origin, "-".join(str(size) for _, size in sizes)]).strip()
    others = [technique for technique in weights.techniques if technique is not weights.architecture]
    applied = [f"{technique.ablated} {listed(sorted(filter(None, technique.groups)))}".strip() for technique in others]
    return [origin, *applied, "trained with rounding" if weights.quantization_aware else ""]


def _widths(candidate: Candidate) -> list[str]:
    """Return groups by width, without those in fp32."""
    groups: dict[str, list[str]] = defaultdict(list)
    for group, width in candidate.precision.widths:
        if width != "fp32":
            groups[width].append(group)
    found = [f"{width} {listed(names)}" for width, names in groups.items()]
    compute = candidate.precision.compute
    return found if compute == "fp32" else [*found, f"computed in {compute}"]


def _placement(placement: Placement) -> list[str]:
    group, default = placement.instance_group, InstanceGroup()
    batching, route, tables = placement.batching, placement.route, placement.embedding_device
    return [
        group.place if group.place != default.place else "",
        group.layout if group.layout != default.layout else "",
        "pinned" if group.pinned else "",
        "inline" if placement.inline else "",
        f"batches of {batching.rows}" if batching else "",
        f"split above {placement.split_rows} rows" if placement.split_rows else "",
        f"{route.instance_group.place} above {route.above_rows} rows" if route else "",
        f"tables on {tables.place}" if tables else "",
        "user once" if placement.user_once else "",
        "catalogue scored" if placement.score_catalogue else "",
        f"kept warm every {placement.keep_warm_ms:g} ms" if placement.keep_warm_ms else "",
    ]

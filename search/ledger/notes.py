"""Descriptions for MLflow's pages, in Markdown: the verdict, the numbers of a point, and links between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from search.format import milliseconds, percent, ranged, size
from search.ledger.titles import candidate_title
from search.request_path import path_sentences
from search.results import Front
from search.trials import EndedTrial
from search.verdict import verdict

# Tag that MLflow shows as the description of a run or an experiment.
NOTE = "mlflow.note.content"
# MLflow's pages for trained models; without this in an address, those for language models frame it.
_CLASSIC = "workflowType=machine_learning"
# Metrics that are columns of the lists of runs.
_COLUMNS = ("p95_ratio", "throughput_ratio", "loss", "capacity_ratio", "p95_ms", "model_bytes")
# Filters of the list of runs: what a person wants to see, its expression, and the metric that orders it.
FILTERS: Mapping[str, tuple[str, str]] = {
    "every trial": ("tags.`leanrec.role` = 'trial'", "p95_ratio"),
    "the front": ("tags.on_front = 'true'", "p95_ratio"),
    "the chosen point": ("tags.chosen = 'true'", "p95_ratio"),
    "fast with little loss": ("metrics.p95_ratio < 0.5 and metrics.loss <= 0.005", "p95_ratio"),
    "small models": ("tags.feasible = 'true' and metrics.model_bytes < 1000000", "model_bytes"),
    "what was stopped or failed": ("tags.state != 'complete' and tags.`leanrec.role` = 'trial'", "minutes"),
}


@dataclass(frozen=True)
class Links:
    """Places in MLflow's pages.

    runs: id of each trial's run
    version: name and version of the registered model
    """

    experiment: str
    parent: str
    runs: Mapping[int, str] = field(default_factory=dict)
    version: tuple[str, str] | None = None

    def trial(self, number: int) -> str:
        """Link a trial's run."""
        if number not in self.runs:
            return f"trial {number}"
        return f"[trial {number}]({self.run(self.runs[number])})"

    def run(self, identity: str, tab: str = "") -> str:
        """Return the address of a run, or of a tab of it."""
        return f"#/experiments/{self.experiment}/runs/{identity}{tab}?{_CLASSIC}"

    @property
    def study(self) -> str:
        return f"[study]({self.run(self.parent)})"

    @property
    def registered(self) -> str:
        """Link the registered version; empty without one."""
        if self.version is None:
            return ""
        name, version = self.version
        return f"[{name}, version {version}](#/models/{quote(name, safe='')}/versions/{version}?{_CLASSIC})"

    def view(self, name: str) -> str:
        """Link the list of runs that a filter of this name finds."""
        return f"[{name}](#/experiments/{self.experiment}/runs?viewStateShareKey={_key(name)}&{_CLASSIC})"


def shared_views() -> dict[str, str]:
    """Return the tags of an experiment by which MLflow's pages know the lists of runs, with their columns."""
    return {f"mlflow.sharedViewState.{_key(name)}": _view(*query) for name, query in FILTERS.items()}


def _key(name: str) -> str:
    return f"leanrec-{name.replace(' ', '-')}"


def _view(expression: str, metric: str) -> str:
    """Return the state of a list of runs, as MLflow's own button to share a view keeps it."""
    columns = [f"metrics.`{name}`" for name in _COLUMNS]
    state = {"searchFilter": expression, "orderByKey": f"metrics.`{metric}`", "orderByAsc": True}
    return json.dumps({**state, "selectedColumns": columns})


def study_note(front: Front, links: Links) -> str:
    """Describe a study: the verdict, what is registered, the front's points, and the lists that people want."""
    said = verdict(front)
    lines = [f"**{said.headline}**", "", *(f"- {sentence}" for sentence in said.sentences)]
    if front.chosen is not None:
        chosen = links.trial(front.chosen.row.trial)
        lines += ["", f"Chosen: {chosen}" + (f", registered as {links.registered}" if links.version else "") + "."]
    if front.members:
        members = sorted(front.members, key=lambda point: point.p95_ratio)
        lines += ["", "Front, the fastest first: " + ", ".join(links.trial(point.trial) for point in members) + "."]
    lines += ["", "Runs: " + " · ".join(map(links.view, FILTERS))]
    report = f"[report]({links.run(links.parent, '/artifacts/report/report.html')})"
    figure = f"[figure of the front]({links.run(links.parent, '/artifacts/front.html')})"
    return "\n".join([*lines, "", f"{report} · {figure}", "", f"Measured on {front.machine}."])


def trial_note(trial: EndedTrial, links: Links | None = None, bundled_by: str | None = None) -> str:
    """Describe a trial: what it is, and its numbers or the reason why there are none.

    Args:
        links: of a chosen trial
        bundled_by: study of a trial on the front, whose bundle a command logs
    """
    lines = [candidate_title(trial.candidate), ""]
    if (found := trial.measurement) is not None:
        latency, throughput, quality = found.latency, found.throughput, found.quality
        lines += [
            f"- p95 {milliseconds(latency.candidate.p95_ms)}, "
            f"{ranged(latency.p95_ratio, latency.p95_ratio_interval)} of the baseline's",
            *(f"- {sentence}" for sentence in path_sentences(latency.through, latency.with_overhead)),
            f"- throughput {ranged(throughput.ratio, throughput.ratio_interval, '.2f')} times, "
            f"capacity {ranged(throughput.capacity_ratio, throughput.capacity_ratio_interval, '.2f')} times",
            f"- loss {ranged(quality.loss, quality.loss_interval, '+.2%')} on validation",
            f"- model of {size(found.footprint.model_bytes)}",
        ]
    else:
        lines.append(f"{trial.outcome.state}: {trial.outcome.reason}")
    if links is not None and links.version is not None:
        lines += ["", f"Chosen, and registered as {links.registered}."]
    if bundled_by is not None:
        command = f"leanrec bundle {bundled_by} --trial {trial.number}"
        lines += [
            "",
            "Artifacts: `onnx` has the ONNX files, and `bundle` the bundle, once this has confirmed the trial on test:",
            "",
            f"    {command}",
        ]
    return "\n".join(lines)


def version_note(front: Front, links: Links) -> str:
    """Describe a registered version: the reason, the confirmed numbers, and where it comes from."""
    chosen = front.chosen
    assert chosen is not None, "what is registered was chosen"
    confirmed = chosen.confirmed
    return "\n".join(
        [
            chosen.reason,
            "",
            f"- p95 {milliseconds(confirmed.p95_ms)}, {ranged(confirmed.p95_ratio, confirmed.p95_ratio_interval)} of "
            "the baseline's",
            *(f"- {sentence}" for sentence in path_sentences(confirmed.through, confirmed.with_overhead)),
            f"- throughput {ranged(confirmed.throughput_ratio, confirmed.throughput_ratio_interval, '.2f')} times",
            f"- loss on test {ranged(confirmed.loss, confirmed.loss_interval, '+.2%')}, an interval at "
            f"{percent(confirmed.confidence)}",
            "",
            f"From {links.trial(chosen.row.trial)} of the {links.study} {front.study}.",
        ]
    )

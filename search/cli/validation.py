"""Validation: the ways in which a model can be compressed, reported before any budget is spent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Column, Table

from objectives.bags import Bags
from objectives.records import LEARNED_ROUNDING, Prepared
from objectives.serving.devices import cores_allowed
from search.cli.console import Console
from search.config.defaults import epochs_for
from search.config.sections import StudyConfig
from search.explore.dry_run import DryRun, dry_run
from search.explore.estimate import StageSeconds, TrialRange, trials_in
from search.home import Home
from search.session import unused_settings
from search.workers.processes import open_workers
from spaces.domains import Scalar
from spaces.model_structure import Group

# Rough estimate of a trial's benchmark: requests of its blocks and probes at the study's load, and waiting for threads
# that spin on. The study's own first candidate gives a better one.
_REQUESTS_TIMED, _WAITED_SECONDS = 3500, 8.0


@dataclass(frozen=True)
class Refusal:
    """A technique that a layer group does not admit, and why."""

    technique: str
    reason: str


@dataclass(frozen=True)
class GroupReport:
    """A layer group: what can be done with it, and what cannot."""

    name: str
    kind: str
    modules: tuple[str, ...]
    parameters: int
    time_share: float | None
    can: tuple[str, ...]
    cannot: tuple[Refusal, ...]


@dataclass(frozen=True)
class LeftAlone:
    """A module that no technique reaches, and why."""

    module: str
    reason: str


@dataclass(frozen=True)
class UserInput:
    """An input that is equal in all rows of a request, by declaration or inferred from requests."""

    name: str
    inferred: bool


@dataclass(frozen=True)
class GraphForm:
    """A form of the whole graph, and why it cannot be had; None where it can."""

    form: str
    reason: str | None


@dataclass(frozen=True)
class ValidationReport:
    """Output of `leanrec validate --json`: a model that went through every stage once.

    trials, trials_range: that the budget holds
    students: sizes that a factory offers for `build`
    """

    study: str
    recommender: str
    groups: tuple[GroupReport, ...]
    left_alone: tuple[LeftAlone, ...]
    user_inputs: tuple[UserInput, ...]
    forms: tuple[GraphForm, ...]
    warnings: tuple[str, ...]
    parity: float
    model_bytes: int
    p50_ms: float
    rows: int
    trials: int
    trials_range: tuple[int, int]
    seconds: Mapping[str, float]
    bags: tuple[Bags, ...] = ()
    students: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)


def validated(config: StudyConfig, home: Home, console: Console) -> ValidationReport:
    """The report of `leanrec validate`.

    Raises:
        ConfigError: the study file does not fit the model.
        JobError: the model does not get through, with the stage at fault.
    """
    start = time.monotonic()
    home.claim()
    with open_workers(home.logs(config.name)) as workers:
        found = dry_run(config, home, workers, console)
    return report(config, found, time.monotonic() - start)


def report(config: StudyConfig, found: DryRun, seconds: float) -> ValidationReport:
    """Report a dry run that took so many seconds."""
    prepared, trials = found.prepared, _trials(config, found)
    forms = {
        "user once": prepared.user_once_refused,
        "score catalogue": prepared.catalogue_refused,
        "split embeddings": prepared.split_refused,
        "batches and parts of requests": prepared.rows_interact,
    }
    shares = {group.name: group.time_share for group in found.profile.groups}
    return ValidationReport(
        study=config.name,
        recommender=config.recommender,
        groups=tuple(_group(group, prepared, shares.get(group.name)) for group in prepared.structure.groups),
        # The others are techniques that a group does not admit, which are listed with the group.
        left_alone=tuple(LeftAlone(name, why) for name, why in prepared.left_alone.items() if " (" not in name),
        user_inputs=tuple(UserInput(spec.name, spec.inferred) for spec in prepared.inputs if spec.side == "user"),
        forms=tuple(GraphForm(name, reason) for name, reason in forms.items()),
        warnings=(*unused_settings(config), *prepared.warnings),
        parity=prepared.baseline.parity,
        model_bytes=prepared.baseline.model_bytes,
        p50_ms=found.profile.p50_ms,
        rows=found.profile.rows,
        trials=trials.fewest,
        trials_range=(trials.fewest, trials.most),
        seconds={**found.seconds, "step": found.batch_seconds, "all": seconds},
        bags=tuple(spec.bags for spec in found.prepared.inputs if spec.bags is not None),
        students=prepared.student if config.own else {},
    )


def _group(group: Group, prepared: Prepared, share: float | None) -> GroupReport:
    # A table of the group that was tried by itself is named with the technique.
    tried = [
        (one.technique if one.group == group.name else f"{one.technique} of {one.group}", one.refused)
        for one in prepared.tried
        if one.group in (group.name, *group.modules)
    ]
    if group.kind in ("linear", "attention"):
        tried.append((LEARNED_ROUNDING, prepared.unlearnable))
    can = tuple(technique for technique, refused in tried if refused is None)
    cannot = tuple(Refusal(technique, refused) for technique, refused in tried if refused is not None)
    return GroupReport(group.name, group.kind, group.modules, group.parameters, share, can, cannot)


def _trials(config: StudyConfig, found: DryRun) -> TrialRange:
    """Return about how many trials fit into the budget."""
    prepared, request = found.prepared, found.profile.p50_ms / 1000
    epoch = prepared.batches_per_epoch * found.batch_seconds
    stages = StageSeconds(
        fit=epoch * (config.space.distillation.epochs or epochs_for({}, epoch)),
        export=found.seconds["export"],
        evaluate=prepared.rows["validation"] / found.profile.rows * request,
        cost=found.seconds["service curve"],
        time=_REQUESTS_TIMED * request / config.traffic.load + _WAITED_SECONDS,
    )
    builders = config.workers.builders or min(cores_allowed(), 4)
    return trials_in(60 * config.budget.minutes, stages, builders)


def tables(found: ValidationReport) -> list[Table]:
    """Return the tables of the groups, of the forms of the graph that are not available, and of the modules left alone.

    The first has the techniques that each group admits.
    """
    right = (Column(name, justify="right") for name in ("layers", "parameters", "time"))
    title = f"What can be compressed of {found.recommender}"
    can = Table("group", *right, "can be done", "cannot, and why", title=title, title_justify="left")
    for group in found.groups:
        share = "" if group.time_share is None else f"{group.time_share:.0%}"
        cannot = "\n".join(f"{one.technique}: {one.reason}" for one in group.cannot)
        layers, parameters = len(group.modules), group.parameters
        can.add_row(group.name, str(layers), f"{parameters:,}", share, ", ".join(group.can), cannot)
    forms = Table("form", "cannot be had, since", title="The whole graph", title_justify="left")
    for form in found.forms:
        if form.reason is not None:
            forms.add_row(form.form, form.reason)
    alone = Table("module", "why", title="Left alone", title_justify="left")
    for one in found.left_alone:
        alone.add_row(one.module, one.reason)
    return [can, *(table for table in (forms, alone) if table.rows)]


def conclusion(found: ValidationReport) -> Sequence[str]:
    able = [group.name for group in found.groups if group.can]
    share = sum(group.time_share or 0.0 for group in found.groups if group.can)
    return [
        f"A request of {found.rows} rows takes {found.p50_ms:.3g} ms; exported and model agree within "
        f"{found.parity:.1e} of the scores' standard deviation.",
        f"{share:.0%} of that time is in {', '.join(able)}, which can be made smaller."
        if able
        else "No layer of it can be made smaller; engines, threads, replicas and batching are searched all the same.",
        *_user_inputs(found),
        *(
            f"Bags of {', '.join(bags.values)} with the offsets {bags.offsets}, "
            f"{'inferred from the calls of embedding_bag' if bags.inferred else 'by declaration'}."
            for bags in found.bags
        ),
        *(f"Students by build: {name} of {', '.join(map(str, sizes))}." for name, sizes in found.students.items()),
        f"The budget holds {TrialRange(*found.trials_range).sentence}; this took {found.seconds['all']:.0f} s.",
    ]


def _user_inputs(found: ValidationReport) -> Sequence[str]:
    """Describe the inputs that are taken to be equal in all rows of a request, and the reason."""
    told = {
        False: "Inputs of the user, by declaration or form: {}.",
        True: "Inputs of the user, inferred since they are equal in all rows of each request: {}; where production may "
        "send other requests, let the factory declare user_inputs.",
    }
    by = {inferred: [one.name for one in found.user_inputs if one.inferred == inferred] for inferred in told}
    return [told[inferred].format(", ".join(names)) for inferred, names in by.items() if names]

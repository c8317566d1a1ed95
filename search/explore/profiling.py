"""Profile of the baseline, measured once for a study, and the space narrowed to the groups worth compressing."""

from __future__ import annotations

import json
from pathlib import Path

from objectives.measurement.profile.profile import Profile
from objectives.measurement.profile.roofline import Roofline
from search.cli.console import Console
from search.report.profile import profile_document
from search.report.report import write_profile
from search.results import Document
from search.study import Study
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Worker, call
from spaces.focus import narrowed
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain


def profiled(study: Study, jobs: MeterJobs, meter: Worker, console: Console) -> Document:
    """Return the study's profile, measured on the first call and kept: a new measurement in each run would change the
    space of earlier trials.

    Raises:
        JobError: the baseline cannot be profiled.
    """
    if (found := known_profile(study)) is not None:
        return found
    console.say("profile: where the baseline's time goes")
    config = jobs.config
    answer = call(meter, "profile", jobs.profile(), config.workers.job_seconds, console.say)
    profile, roofline = from_plain(Profile, answer["profile"]), from_plain(Roofline, answer["roofline"])
    prepared = jobs.prepared
    once = {"refused": prepared.user_once_refused, "multiply_adds_share": prepared.user_once_share}
    document = profile_document(config.name, profile, roofline, config.space.focus) | {"user_once": once}
    study.note(profile=document)
    return document


def known_profile(study: Study) -> Document | None:
    """Return the study's profile, None before it is measured."""
    found: Document | None = study.facts.get("profile")
    return found


def write_profile_files(document: Document, folder: Path) -> list[Path]:
    """Write `profile.json` and `profile.html`."""
    page, data = folder / "profile.html", folder / "profile.json"
    write_profile(document, page)
    data.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return [page, data]


def user_once(document: Document) -> str:
    """Describe the saving by computing the user's side once a request, in a sentence."""
    found = document["user_once"]
    if found["refused"] is not None:
        return f"the user's side cannot be computed once a request: {found['refused']}"
    left = found["multiply_adds_share"]
    if left is None:
        return "the user's side can be computed once a request; what it saves is known only when the graph runs"
    return (
        f"the user's side once a request leaves {left:.0%} of the baseline's multiply-adds at {document['rows']} rows"
    )


def focused(space: SearchSpace, document: Document, structure: ModelStructure, console: Console) -> SearchSpace:
    """Narrow the space to the groups worth compressing, and report each with its shares."""
    modules = {group.name: group.modules for group in structure.groups}
    inside: set[str] = set()
    for group in document["groups"]:
        name = group["name"]
        if group["in_focus"]:
            inside |= {name, *modules.get(name, ())}  # a separate table is treated like its group
        if name in modules:
            console.say(f"profile: {group['name']}: {group['reason']}")
    console.say(f"profile: {user_once(document)}")
    return narrowed(space, frozenset(inside))

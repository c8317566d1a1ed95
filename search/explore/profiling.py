"""Profile of the baseline, measured once for a study, and the space narrowed to the groups worth compressing."""

from __future__ import annotations

from search.cli.console import Console
from search.explore.study_profile import FACT, StudyProfile, UserOnce, read_profile, study_profile
from search.study import Study
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Worker, call
from spaces.focus import narrowed
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import to_plain


def profiled(study: Study, jobs: MeterJobs, meter: Worker, console: Console) -> StudyProfile:
    """The study's profile, measured on the first call only: another timing would change the space under its trials;
    JobError where the baseline cannot be profiled."""
    if (known := read_profile(study.facts)) is not None:
        return known
    console.say("profile: where the baseline's time goes")
    config, prepared = jobs.config, jobs.prepared
    found = call(meter, jobs.profile(), config.workers.job_seconds, console.say)
    once = UserOnce(prepared.user_once_refused, prepared.user_once_share)
    profile = study_profile(config.name, found.profile, found.roofline, once, config.space.focus)
    study.note(**{FACT: to_plain(profile)})
    return profile


def user_once(profile: StudyProfile) -> str:
    """Describe what computing the user's side once a request would save, in a sentence."""
    found = profile.user_once
    if found.refused is not None:
        return f"the user's side cannot be computed once a request: {found.refused}"
    left = found.multiply_adds_share
    if left is None:
        return "the user's side can be computed once a request; what it saves is known only when the graph runs"
    return f"the user's side once a request leaves {left:.0%} of the baseline's multiply-adds at {profile.rows} rows"


def focused(space: SearchSpace, profile: StudyProfile, structure: ModelStructure, console: Console) -> SearchSpace:
    """The space without the groups that take too little to be worth compressing; each is told with its shares."""
    modules = {group.name: group.modules for group in structure.groups}
    inside: set[str] = set()
    for group in profile.groups:
        if group.in_focus:
            inside |= {group.name, *modules.get(group.name, ())}  # a table by itself is looked at as its group is
        if group.name in modules:
            console.say(f"profile: {group.name}: {group.reason}")
    console.say(f"profile: {user_once(profile)}")
    return narrowed(space, frozenset(inside))

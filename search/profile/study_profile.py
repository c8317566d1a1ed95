"""A study's profile as a record: where the baseline's time goes, and which layer groups are worth compressing."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.measurement.profile.profile import GroupCost, NodeCost, OperatorCost, Profile
from objectives.measurement.profile.roofline import Roofline, group_roofs
from spaces.focus import SHARE, in_focus, reason
from spaces.serialization import Json, from_plain

FACT = "profile"
_NO_GROUP = {
    "other": "belongs to no single layer group: left alone",
    "engine": "the engine's own time beside its kernels: placement may change it, compression cannot",
}


@dataclass(frozen=True)
class GroupShare(GroupCost):
    """A layer group's cost beside the whole model's, and whether the search changes it.

    weight_share: of the bytes of all weights
    perfect_ms: what perfect kernels would take
    efficiency: perfect_ms over the time taken, None where no time was
    reason: why it is in focus or not
    """

    weight_share: float
    perfect_ms: float
    efficiency: float | None
    in_focus: bool
    reason: str


@dataclass(frozen=True)
class UserOnce:
    """The user's side computed once a request: why it cannot be, or the multiply-adds that are left then."""

    refused: str | None
    multiply_adds_share: float | None


@dataclass(frozen=True)
class StudyProfile:
    """The baseline's profile at the median rows, as `leanrec profile --json` prints it.

    share: of time or bytes, from which on a group is in focus
    """

    study: str
    rows: int
    p50_ms: float
    threads: int | None
    groups: tuple[GroupShare, ...]
    operators: tuple[OperatorCost, ...]
    nodes: tuple[NodeCost, ...]
    share: float
    roofline: Roofline
    user_once: UserOnce


def study_profile(
    study: str, profile: Profile, roofline: Roofline, once: UserOnce, share: float = SHARE
) -> StudyProfile:
    """The profile with each group's share of the weights; `other` and `engine` are no groups, so never in focus."""
    held = max(1, sum(group.weight_bytes for group in profile.groups))
    roofs = group_roofs(profile, roofline)
    shares = {g.name: (min(1.0, g.time_share), g.weight_bytes / held) for g in profile.groups}
    groups = tuple(
        GroupShare(
            **vars(group),
            weight_share=group.weight_bytes / held,
            **vars(roofs[group.name]),
            in_focus=group.name not in _NO_GROUP and in_focus(*shares[group.name], share),
            reason=_NO_GROUP.get(group.name) or reason(*shares[group.name], share),
        )
        for group in profile.groups
    )
    return StudyProfile(
        study=study, **vars(profile) | {"groups": groups}, share=share, roofline=roofline, user_once=once
    )


def read_profile(facts: Json) -> StudyProfile | None:
    """The profile that was noted with a study, None before it was measured."""
    plain = facts.get(FACT)
    return None if plain is None else from_plain(StudyProfile, plain)

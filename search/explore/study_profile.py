"""A study's profile as a record: where the baseline's time goes, and which layer groups are worth compressing."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.measurement.profile.profile import GroupCost, NodeCost, OperatorCost
from objectives.measurement.profile.roofline import Roofline
from spaces.serialization import Json, from_plain

FACT = "profile"


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


def read_profile(facts: Json) -> StudyProfile | None:
    """The profile that was noted with a study, None before it was measured."""
    plain = facts.get(FACT)
    return None if plain is None else from_plain(StudyProfile, plain)

"""State of a shadowing, which a file keeps over restarts of the server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from objectives.errors import InputError
from objectives.shadow.score_differences import ScoreDifferences
from objectives.store import written_whole
from spaces.serialization import from_plain, to_plain

# Most timed requests that are kept, the newest ones.
WINDOW = 4000


@dataclass(frozen=True)
class Counts:
    """Requests that were picked for shadowing, by what became of them.

    shadowed: answered by both models
    dropped: no room in the queue, or not answered by either for want of time
    refused: the champion was under pressure
    failed: the challenger raised an error, did not answer in time, or its process died
    not_finite: its scores held NaN or infinity
    """

    shadowed: int = 0
    dropped: int = 0
    refused: int = 0
    failed: int = 0
    not_finite: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Lost:
    """Counts that the server took while no process could, with the newest reason of a failure."""

    counts: Counts = field(default_factory=Counts)
    failure: str | None = None

    def __add__(self, later: Lost) -> Lost:
        return Lost(self.counts + later.counts, later.failure or self.failure)


@dataclass(frozen=True)
class ShadowState:
    """State of a comparison of a challenger with a champion.

    champion, challenger: versions, digests of the bundles' manifests
    seconds: of shadowing
    champion_ms, challenger_ms: times of the newest requests that were timed, in the order of their runs
    unusable: the reason why the challenger cannot be run at all, None where it can
    last_failure: the newest reason of `failed` and `not_finite`
    """

    champion: str
    challenger: str
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    differences: ScoreDifferences = field(default_factory=ScoreDifferences)
    champion_ms: tuple[float, ...] = ()
    challenger_ms: tuple[float, ...] = ()
    unusable: str | None = None
    last_failure: str | None = None

    def counted(self, counts: Counts, failure: str | None = None) -> ShadowState:
        """Add counts, and the reason of a failure among them."""
        return replace(self, counts=self.counts + counts, last_failure=failure or self.last_failure)

    def compared(self, differences: ScoreDifferences, times_ms: tuple[float, float] | None) -> ShadowState:
        """Count a request that both answered, with the times of champion and challenger where they were taken."""
        state = replace(self.counted(Counts(shadowed=1)), differences=differences)
        if times_ms is None:
            return state
        champion, challenger = times_ms
        return replace(
            state,
            champion_ms=(*self.champion_ms, champion)[-WINDOW:],
            challenger_ms=(*self.challenger_ms, challenger)[-WINDOW:],
        )


def read_state(path: Path) -> ShadowState | None:
    """Read a state file; None where there is none.

    Raises:
        InputError: the file holds something else.
    """
    try:
        return from_plain(ShadowState, json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: must be the state of a shadowing, but got {error}") from error


def write_state(state: ShadowState, path: Path) -> None:
    """Write a state file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(to_plain(state), allow_nan=False) + "\n")

"""State of a shadowing, which a file keeps over restarts of the server."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objectives.errors import InputError
from objectives.measurement.statistics import percentile
from objectives.shadow.batch_means import BatchMeans
from objectives.shadow.score_differences import ScoreDifferences
from objectives.store import written_whole
from spaces.serialization import from_plain, to_plain

# Most times that are kept, the newest ones.
NEWEST = 4000
# Fewest timed requests of a window, of which the p95 is no extreme.
WINDOW_REQUESTS = 40


@dataclass(frozen=True)
class Counts:
    """Requests that were picked for shadowing, by what became of them.

    shadowed: answered by both models
    dropped: no room in the queue, or refused by a model for want of time
    refused: the champion was under pressure
    starved: no answer, since the challenger's process waited for a core
    failed: the challenger raised an error, did not answer in the time that it had, or its process died
    not_finite: its scores held NaN or infinity
    """

    shadowed: int = 0
    dropped: int = 0
    refused: int = 0
    starved: int = 0
    failed: int = 0
    not_finite: int = 0

    @property
    def not_compared(self) -> int:
        """Requests that say nothing of the challenger."""
        return self.dropped + self.refused + self.starved

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

    champion, challenger: versions, digests of the bundles' manifests; the folder of a challenger whose manifest cannot
        be read
    seconds: of shadowing
    champion_ms, challenger_ms: times of the newest requests that were timed, in the order of their runs
    log_p95_ratios: logarithm of the ratio of both models' p95, challenger over champion, of each window: of the same
        requests, at least `WINDOW_REQUESTS` and as many as come in the seconds of a window
    window_requests, window_start: timed requests of the window that is not over, and its start in seconds of shadowing
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
    log_p95_ratios: BatchMeans = field(default_factory=BatchMeans)
    window_requests: int = 0
    window_start: float = 0.0
    unusable: str | None = None
    last_failure: str | None = None

    def counted(self, counts: Counts, failure: str | None = None) -> ShadowState:
        """Add counts, and the reason of a failure among them."""
        return replace(self, counts=self.counts + counts, last_failure=failure or self.last_failure)

    def compared(self, differences: ScoreDifferences) -> ShadowState:
        """Count a request that both answered."""
        return replace(self.counted(Counts(shadowed=1)), differences=differences)

    def timed(self, champion_ms: float, challenger_ms: float, window_seconds: float) -> ShadowState:
        """Add the times of a request, and end the window where it is long enough."""
        state = replace(
            self,
            champion_ms=(*self.champion_ms, champion_ms)[-NEWEST:],
            challenger_ms=(*self.challenger_ms, challenger_ms)[-NEWEST:],
            window_requests=self.window_requests + 1,
        )
        if state.window_requests < WINDOW_REQUESTS or self.seconds - self.window_start < window_seconds:
            return state
        newest = slice(-state.window_requests, None)
        theirs, ours = (percentile(np.array(times[newest]), 95) for times in (state.champion_ms, state.challenger_ms))
        ratios = self.log_p95_ratios.with_value(math.log(ours / theirs))
        return replace(state, log_p95_ratios=ratios, window_requests=0, window_start=self.seconds)


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

"""A champion and its challenger, open side by side: both answer the same request, one after the other."""

from __future__ import annotations

import random
import time
from pathlib import Path

from objectives.arrays import Array, Arrays
from objectives.errors import one_line
from objectives.serving.bundle import Bundle
from objectives.serving.bundle_files import BundleError
from objectives.serving.pool import RefusedError
from objectives.serving.pool.pending_result import Scores
from objectives.serving.ranker import Ranker
from objectives.shadow.run_delay import run_delay_ms
from objectives.shadow.score_differences import NotFiniteScoresError
from objectives.shadow.state import Counts, ShadowState

# Requests after the start whose times are not taken: buffers grow in the first ones.
_WARM_UP = 20
# Nor are those of a request during which threads waited for a core for more than this share of the time: at the lowest
# priority, that is the work of others. Either model's wait leaves both out, so that none is favoured.
_MOST_WAITING = 0.5


class Pair:
    """Both models, each on the pool of its own placement.

    The champion is run again, since its times in the server include the requests beside it: here both are run on an
    idle pool, in an order that is drawn: the first one of a request finds colder caches, and were the order regular, so
    might be the requests. Both times are left out where other processes disturbed one of them.
    """

    def __init__(self, champion: Ranker, challenger: Ranker, window_seconds: float) -> None:
        """Take two open models.

        Args:
            window_seconds: shortest window of the comparison of their latency
        """
        self._champion, self._challenger, self._window_seconds = champion, challenger, window_seconds
        self._count, self._order = 0, random.Random(0)

    @classmethod
    def open(cls, champion: Ranker, folder: Path, window_seconds: float) -> Pair:
        """Open a challenger beside an open champion.

        Raises:
            BundleError: the challenger is no valid bundle, cannot run here, or takes or gives other arrays.
        """
        challenger = Ranker(folder)
        theirs, ours = (_interface(ranker.bundle) for ranker in (champion, challenger))
        if theirs != ours:
            challenger.close()
            raise BundleError(f"BUNDLE: {folder} must take and give the champion's arrays {theirs}, but has {ours}")
        return cls(champion, challenger, window_seconds)

    def compare(self, state: ShadowState, request: Arrays, served: Array) -> ShadowState:
        """Return the state after one more request.

        Args:
            served: scores that the champion gave to the client
        """
        self._count += 1
        waited_ms, start = run_delay_ms(), time.perf_counter_ns()
        try:
            first = self._answer(request) if self._order.random() < 0.5 else None
            _, champion_ms = _timed(self._champion, request)
            scores, challenger_ms = first or self._answer(request)
            wall_ms, waited_ms = (time.perf_counter_ns() - start) / 1e6, run_delay_ms() - waited_ms
        except _ChallengerError as error:
            return state.counted(Counts(failed=1), str(error))
        except Exception:
            # Refused for want of time, which this process has little of; or the champion, which is not on trial.
            return state.counted(Counts(dropped=1))
        try:
            differences = state.differences.with_request(served, scores)
        except NotFiniteScoresError as error:
            return state.counted(Counts(not_finite=1), str(error))
        except ValueError as error:
            return state.counted(Counts(failed=1), str(error))
        compared = state.compared(differences)
        if self._count <= _WARM_UP or waited_ms > _MOST_WAITING * wall_ms:
            return compared
        return compared.timed(champion_ms, challenger_ms, self._window_seconds)

    def _answer(self, request: Arrays) -> tuple[Scores, float]:
        try:
            return _timed(self._challenger, request)
        except RefusedError:
            raise
        except Exception as error:
            raise _ChallengerError(one_line(error)) from error


class _ChallengerError(Exception):
    """The challenger could not answer."""


def _timed(ranker: Ranker, request: Arrays) -> tuple[Scores, float]:
    """Return the scores and the milliseconds that they took."""
    start = time.perf_counter_ns()
    scores = ranker.score(request)
    return scores, (time.perf_counter_ns() - start) / 1e6


def _interface(bundle: Bundle) -> dict[str, object]:
    """Return types and shapes of what a bundle takes and gives, which a challenger has to share."""
    output = bundle.manifest.output
    arrays: dict[str, object] = {spec.name: (spec.dtype, spec.shape, spec.bags) for spec in bundle.inputs}
    return arrays | {f"output {output.name}": (output.dtype, output.shape)}

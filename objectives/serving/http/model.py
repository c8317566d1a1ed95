"""A bundle that is open for requests: its pool, its version, and its metadata as the protocol has them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from objectives.arrays import Arrays
from objectives.records import InputSpec
from objectives.serving.bundle import Bundle, open_verified
from objectives.serving.bundle_files import BundleError
from objectives.serving.http.datatypes import DATATYPES
from objectives.serving.pool import Pool, RefusedError
from objectives.serving.pool.balancing import LEAST_ROWS
from objectives.serving.pool.pending_result import PendingResult, rows_of
from spaces.techniques.placement import Placement

# Seconds for which a run may hold the event loop, which serves no other connection meanwhile.
_ON_LOOP_SECONDS = 1e-3
# Rows and runs by which it is timed how many rows that are: the shortest run counts, since the event loop is busy while
# a model is swapped.
_TIMED_ROWS, _TIMED_RUNS = 200, 20


class Model:
    """An open bundle, and its version. Pool and scores are used on the event loop's thread.

    rows_on_loop: an idle inline replica runs requests of up to so many rows on the event loop's thread, and larger ones
        on its own
    """

    def __init__(self, bundle: Bundle, pool: Pool, rows_on_loop: int = 0) -> None:
        self.bundle, self.pool, self.version, self.rows_on_loop = bundle, pool, bundle.version, rows_on_loop

    @classmethod
    def open(
        cls, folder: Path, placed: Callable[[Placement], Placement] | None = None, policy: str = LEAST_ROWS
    ) -> Model:
        """Read a bundle, open its pool, warm it up, and compare the scores of its example.

        Args:
            placed: returns the placement that takes the place of the one that was measured; None for that one
            policy: of balancing over the replicas, one of `balancing.POLICIES`

        Raises:
            BundleError: it was changed, cannot run here, or takes inputs that the protocol has no datatype for.
        """
        bundle, pool, _ = open_verified(folder, placed, True, policy)
        try:
            for spec in bundle.inputs:
                if np.dtype(spec.dtype) not in DATATYPES:
                    lacking = f"no datatype of the protocol is the {spec.dtype} of {spec.name!r}"
                    raise BundleError(f"BUNDLE: {folder}: {lacking}")
            return cls(bundle, pool, _rows_on_loop(bundle, pool))
        except BaseException:
            pool.close()
            raise

    @property
    def deadline_ms(self) -> float:
        deadline_ms = self.bundle.candidate.placement.admission.deadline_ms
        return math.inf if deadline_ms is None else deadline_ms

    @property
    def queue_on_loop(self) -> float:
        """Number of requests that may wait for a replica that runs on the event loop.

        It is infinite where there is no limit, and for all other replicas, whose queue is the pool's.
        """
        queue = self.bundle.candidate.placement.admission.queue
        return math.inf if queue is None or not self.rows_on_loop else queue

    @property
    def repeats_user(self) -> bool:
        """Return True if the graph takes the user's inputs in every row."""
        return not self.bundle.candidate.placement.user_once

    @property
    def has_free_shapes(self) -> bool:
        """Return True if inputs have dimensions besides the rows that a request chooses, and that a run may refuse."""
        return any(size is None for spec in self.bundle.inputs for size in spec.shape)

    def submit(self, request: Arrays, rows: int, waited_ns: int = 0) -> PendingResult:
        """Submit a request to the pool, where `waited_ns` counts for its deadline.

        The event loop waits for a short run of an idle inline replica. A thread beside a busy event loop would wait for
        the interpreter before and after each run.

        Returns:
            The future of the pool's `submit`, whose errors are raised.
        """
        return self.pool.submit(request, rows <= self.rows_on_loop, waited_ns)

    def metadata(self, name: str) -> dict[str, object]:
        """Return the model metadata of the protocol."""
        output = self.bundle.manifest.output
        tensor: dict[str, object] = {
            "name": output.name,
            "datatype": DATATYPES[np.dtype(output.dtype)],
            "shape": [-1, *output.shape],
        }
        if output.columns:
            tensor["parameters"] = {"columns": list(output.columns)}
        return {
            "name": name,
            "versions": [self.version],
            "platform": f"leanrec_{self.bundle.candidate.placement.instance_group.engine}",
            "inputs": [_input_metadata(spec) for spec in self.bundle.inputs],
            "outputs": [tensor],
        }

    def tell_warnings(self, say: Callable[[str], None]) -> None:
        """Call `say` with each warning of the bundle on this machine."""
        for line in self.bundle.warnings:
            say(f"warning: {line}")

    def close(self) -> None:
        """Finish the submitted requests, then release the engines."""
        self.pool.close()


def _rows_on_loop(bundle: Bundle, pool: Pool) -> int:
    """Return how many rows a run may have that holds the event loop; 0 where replicas have threads of their own."""
    if not bundle.candidate.placement.inline:
        return 0
    request = bundle.example(_TIMED_ROWS)
    rows, seconds = rows_of(request), []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        with suppress(RefusedError):
            pool.submit(request).result()
            seconds.append(time.perf_counter() - start)
    return int(rows * _ON_LOOP_SECONDS / min(seconds)) if seconds else 0


def _input_metadata(spec: InputSpec) -> dict[str, object]:
    parameters: dict[str, object] = {"side": spec.side}
    if spec.vocabulary is not None:
        parameters |= {"vocabulary": spec.vocabulary, "unseen": spec.unseen}
    if spec.bags is not None:
        parameters["bags"] = list(spec.bags.values)
    shape = [-1, *(-1 if size is None else size for size in spec.shape)]
    return {"name": spec.name, "datatype": DATATYPES[np.dtype(spec.dtype)], "shape": shape, "parameters": parameters}

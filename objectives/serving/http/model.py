"""A bundle that is open for requests: its pool, its version, and its metadata as the protocol has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from objectives.arrays import Arrays
from objectives.records import InputSpec
from objectives.serving.bundle import Bundle, open_verified
from objectives.serving.bundle_files import BundleError
from objectives.serving.http.datatypes import DATATYPES
from objectives.serving.pool import Pool
from objectives.serving.pool.pending_result import Scores
from spaces.techniques.placement import Placement


class Model:
    """An open bundle, and its version."""

    def __init__(self, bundle: Bundle, pool: Pool) -> None:
        self.bundle, self.pool, self.version = bundle, pool, bundle.version
        # An inline replica computes inside `submit`. On the event loop's thread that would stop every other connection
        # for the length of a run, so that it happens on a thread made for it. There are two, since `submit` returns
        # at once where the replica is busy: one runs, and the other one queues, where admission sees what waits.
        inline = bundle.candidate.placement.inline
        self._callers = ThreadPoolExecutor(2, "caller") if inline else None

    @classmethod
    def open(cls, folder: Path, placed: Callable[[Placement], Placement] | None = None) -> Model:
        """Read a bundle, open its pool, and compare the scores of its example.

        Args:
            placed: returns the placement that takes the place of the one that was measured; None for that one

        Raises:
            BundleError: it was changed, cannot run here, or takes inputs that the protocol has no datatype for.
        """
        bundle, pool, _ = open_verified(folder, placed)
        for spec in bundle.inputs:
            if np.dtype(spec.dtype) not in DATATYPES:
                pool.close()
                raise BundleError(f"BUNDLE: {folder}: no datatype of the protocol is the {spec.dtype} of {spec.name!r}")
        return cls(bundle, pool)

    @property
    def repeats_user(self) -> bool:
        """Return True if the graph takes the user's inputs in every row."""
        return not self.bundle.candidate.placement.user_once

    @property
    def has_free_shapes(self) -> bool:
        """Return True if inputs have dimensions besides the rows that a request chooses, and that a run may refuse."""
        return any(size is None for spec in self.bundle.inputs for size in spec.shape)

    async def scores(self, request: Arrays) -> tuple[Scores, int]:
        """Compute scores without blocking the event loop; return them and the number of requests in their batch.

        Raises:
            RefusedError: the placement's admission limits could not be met.
            Exception: any error of the engine.
        """
        if self._callers is None:
            pending = self.pool.submit(request)
        else:
            pending = await asyncio.get_running_loop().run_in_executor(self._callers, self.pool.submit, request)
        scores = pending.result() if pending.done() else await asyncio.wrap_future(pending)
        return scores, pending.together

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

    def close(self) -> None:
        """Finish the submitted requests, then release the engines."""
        if self._callers is not None:
            self._callers.shutdown()
        self.pool.close()


def _input_metadata(spec: InputSpec) -> dict[str, object]:
    parameters: dict[str, object] = {"side": spec.side}
    if spec.vocabulary is not None:
        parameters |= {"vocabulary": spec.vocabulary, "unseen": spec.unseen}
    if spec.bags is not None:
        parameters["bags"] = list(spec.bags.values)
    shape = [-1, *(-1 if size is None else size for size in spec.shape)]
    return {"name": spec.name, "datatype": DATATYPES[np.dtype(spec.dtype)], "shape": shape, "parameters": parameters}

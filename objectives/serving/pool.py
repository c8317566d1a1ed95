"""How a model is run, in measuring and in production alike: replicas, each request to the least loaded one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from objectives.serving.engines import Engine, Inputs, open_engine
from spaces.placement import Placement

Scores = NDArray[np.float32]


class Answer(Future[Scores]):
    """Scores to come; `finished_ns` is the moment (time.perf_counter_ns) at which they were there."""

    finished_ns: int = 0


class Pool:
    """Replicas of one model, each with a thread of its own.

    `submit` may be called from several threads; answers of one replica come in the order of submission.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines:
            raise ValueError("A pool needs at least one replica, but got none.")
        self._queues: list[SimpleQueue[tuple[Answer, Inputs] | None]] = [SimpleQueue() for _ in engines]
        self._waiting = [0] * len(engines)
        self._closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, args=(i, engine), name=f"replica-{i}", daemon=True)
            for i, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, model: Path, placement: Placement, compute: str = "fp32") -> Pool:
        """Load a model file into every replica of a placement."""
        return cls(
            [
                open_engine(placement.engine, model, placement.device, placement.threads, compute)
                for _ in range(placement.replicas)
            ]
        )

    def submit(self, request: Inputs) -> Answer:
        """Named arrays of (rows, ...) -> an answer that holds scores of (rows,).

        Raises:
            RuntimeError: the pool is closed.
        """
        answer = Answer()
        with self._lock:
            if self._closed:
                raise RuntimeError("The pool is closed.")
            replica = self._waiting.index(min(self._waiting))
            self._waiting[replica] += 1
        self._queues[replica].put((answer, request))
        return answer

    def close(self) -> None:
        """Finish what was submitted, then stop the replicas."""
        with self._lock:
            self._closed = True
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, replica: int, engine: Engine) -> None:
        queue = self._queues[replica]
        while (job := queue.get()) is not None:
            answer, request = job
            try:
                scores = engine.run(request)
            except Exception as error:
                answer.finished_ns = time.perf_counter_ns()
                answer.set_exception(error)
            else:
                answer.finished_ns = time.perf_counter_ns()
                answer.set_result(scores)
            with self._lock:
                self._waiting[replica] -= 1

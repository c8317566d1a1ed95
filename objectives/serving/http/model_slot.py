"""The place of the current model: a new one takes it between two requests, and the old one ends with its last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from objectives.serving.http.model import Model

# Seconds between two looks for replicas that hang.
_LOOK_SECONDS = 0.5


class ModelSlot:
    """Slot of one model. All methods are called on the event loop's thread, so that no lock is needed."""

    def __init__(self, model: Model) -> None:
        self._current = _Lease(model)
        # Models that were replaced, by the task that closes each: the event loop itself keeps no reference to a task.
        self._closing: dict[asyncio.Task[None], Model] = {}

    @property
    def model(self) -> Model:
        return self._current.model

    @property
    def hanging(self) -> int:
        """Number of replicas that hang, of models that were replaced too."""
        return sum(model.pool.hanging for model in self._models)

    async def relieve(self, seconds: float = _LOOK_SECONDS) -> None:
        """Move what waits for replicas that hang to others every so many seconds, until cancelled.

        A pool does so only when requests come. Models that were replaced get none.
        """
        while True:
            await asyncio.sleep(seconds)
            for model in self._models:
                model.pool.relieve()

    @property
    def _models(self) -> tuple[Model, ...]:
        return self._current.model, *self._closing.values()

    @contextmanager
    def use(self) -> Iterator[Model]:
        """Keep the current model open for one request, whatever takes its place meanwhile."""
        lease = self._current
        lease.users += 1
        try:
            yield lease.model
        finally:
            lease.users -= 1
            if lease.users == 0 and lease is not self._current:
                lease.idle.set()

    async def swap(self, model: Model, seconds: float) -> int:
        """Serve a new model from the next request on, and return how many requests of the old one are left.

        Return once the old one is closed, or after some seconds; in that case it is closed with its last request.
        """
        old, self._current = self._current, _Lease(model)
        closing = asyncio.create_task(old.close())
        self._closing[closing] = old.model
        closing.add_done_callback(self._closing.pop)
        done, _ = await asyncio.wait([closing], timeout=seconds)
        for task in done:
            task.result()
        return old.users


class _Lease:
    """A model and the number of requests that use it; `idle` is set once it was replaced and nothing uses it."""

    def __init__(self, model: Model) -> None:
        self.model, self.users, self.idle = model, 0, asyncio.Event()

    async def close(self) -> None:
        """Close a model that was replaced, once nothing uses it."""
        if self.users:
            await self.idle.wait()
        await asyncio.to_thread(self.model.close)

"""The place of the current model: a new one takes it between two requests, and the old one ends with its last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from objectives.serving.http.model import Model


class ModelSlot:
    """Slot of one model. All methods are called on the event loop's thread, so that no lock is needed."""

    def __init__(self, model: Model) -> None:
        self._current = _Lease(model)

    @property
    def model(self) -> Model:
        return self._current.model

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

    async def swap(self, model: Model) -> None:
        """Serve a new model from the next request on, and return once the old one is closed."""
        old, self._current = self._current, _Lease(model)
        if old.users:
            await old.idle.wait()
        await asyncio.to_thread(old.model.close)


class _Lease:
    """A model and the number of requests that use it; `idle` is set once it was replaced and nothing uses it."""

    def __init__(self, model: Model) -> None:
        self.model, self.users, self.idle = model, 0, asyncio.Event()

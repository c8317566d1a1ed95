"""Protocol of what sees the answered requests, beside their way to the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from objectives.arrays import Array, Arrays
from objectives.serving.http.model import Model


class Mirror(Protocol):
    """Observer of answered requests; nothing that it does may raise, or take the time of the event loop."""

    def start(self, model: Callable[[], Model]) -> None:
        """Start, before the first request; `model` returns the current one from any thread."""
        ...

    def offer(self, model: Model, request: Arrays, scores: Array, queued: int) -> None:
        """Offer an answered request with the scores that the client gets.

        Called on the event loop's thread, while `queued` other requests wait.
        """
        ...

    def refresh(self) -> None:
        """Look at once for what has changed."""
        ...

    def document(self) -> Mapping[str, object] | None:
        """Return a JSON document of what was seen; None before there is any."""
        ...

    def close(self) -> None:
        """End, after the last request."""
        ...


@contextmanager
def running(mirror: Mirror | None, model: Callable[[], Model]) -> Iterator[None]:
    """Start a mirror, if there is one, and close it with the block."""
    if mirror is None:
        yield
        return
    mirror.start(model)
    try:
        yield
    finally:
        mirror.close()

"""The path of one request: from the bytes of its body to the bytes of its response, counted on the way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from objectives.arrays import Array, Arrays
from objectives.errors import one_line
from objectives.serving.control.lateness import Lateness
from objectives.serving.http.inputs import check_inputs
from objectives.serving.http.intake.door import Door
from objectives.serving.http.intake.loop_load import LoopLoad
from objectives.serving.http.json_data import RequestError
from objectives.serving.http.limits import Limits
from objectives.serving.http.metrics import Metrics
from objectives.serving.http.mirror import Mirror
from objectives.serving.http.model import Model
from objectives.serving.http.model_slot import ModelSlot
from objectives.serving.http.protocol import Encoded, InferRequest, read_request, write_response
from objectives.serving.http.statistics import ModelStatistics
from objectives.serving.pool import RefusedError
from objectives.serving.pool.admission import Refusal
from objectives.serving.preparation import UnseenIdError

# Bytes of a body that is read on the event loop; a larger one goes to a thread, between whose steps the loop has turns.
_READ_HERE = 1 << 16


class OverloadedError(RuntimeError):
    """A request that is refused since too much is to be done already; it may be sent again."""


class UnknownVersionError(LookupError):
    """A request for a version that is not served."""


class ModelFailedError(RuntimeError):
    """A valid request that the model could not answer."""


@dataclass
class Receipt:
    """Receipt of a request that is whole.

    received_ns: `time.perf_counter_ns` at the last byte of its body
    refused: why there was no room for it, None where there was
    waits: whether it has not begun
    """

    received_ns: int
    refused: str | None
    waits: bool


class _Read(NamedTuple):
    """A request as the model takes it."""

    request: InferRequest
    arrays: Arrays
    rows: int


class Inference:
    """Inference on the current model, within the limits. All methods are called on the event loop's thread.

    in_flight: requests that have begun and are not answered
    waiting: requests that are whole and have not begun
    arrived: requests so far that the model could take, answered or not, and those that were refused before
    answered: requests that were scored so far
    lateness: counts late requests
    mirror: sees the answered requests
    """

    def __init__(self, name: str, slot: ModelSlot, limits: Limits, mirror: Mirror | None = None) -> None:
        self.name, self.slot, self.limits, self.mirror = name, slot, limits, mirror
        self.in_flight = self.waiting = self.arrived = self.answered = 0
        self.lateness = Lateness()
        self.metrics = Metrics(lambda: self.in_flight + self.waiting, lambda: self.queued, lambda: slot.hanging)
        self._statistics: dict[str, ModelStatistics] = {}
        self._door, self._loop_load = Door(), LoopLoad()
        self.metrics.serving(name, slot.model.version)
        if mirror is not None:
            self.metrics.shadowing(mirror.document)

    @property
    def queued(self) -> int:
        """Number of requests that wait for a replica, those included that wait for one on the event loop."""
        model = self.slot.model
        return model.pool.queued + (self.waiting if model.rows_on_loop else 0)

    def statistics(self) -> dict[str, object]:
        """Return the statistics of the version that is served, and of the shadowing beside it."""
        version = self.slot.model.version
        shadow = {} if self.mirror is None else {"shadow": self.mirror.document()}
        return self._of(version).document(self.name, version) | shadow

    def turns_away(self, length: int) -> bool:
        """Refuse a request by its headers, if one with a body of so many bytes would be refused anyway.

        Returns:
            Whether it was; it is counted like any refusal.
        """
        model, load, now = self.slot.model, self._loop_load, time.perf_counter_ns()
        waits_ms = load.arrives(now)
        reason = self._full(model)
        if reason is None and waits_ms > model.deadline_ms:
            reason = "event loop"
        if reason is None:
            reason = self._door.shut(model.pool.load, now, length, load.turns_ns(now))
        if reason is None:
            load.stays()
            return False
        self.arrived += 1
        self.metrics.refused(reason)
        self.metrics.ended(503)
        self.lateness.refused()
        return True

    def receive(self) -> Receipt:
        """Note that a request is whole, for which there is room or not; it waits until `begin`."""
        reason = self._full(self.slot.model)
        self.waiting += reason is None
        return Receipt(time.perf_counter_ns(), reason, reason is None)

    def begin(self, receipt: Receipt) -> None:
        """Note that a request does not wait any more; does nothing the second time."""
        self.waiting -= receipt.waits
        receipt.waits = False

    async def answer(
        self, body: bytes, header_length: str | None, version: str | None, receipt: Receipt | None = None
    ) -> Encoded:
        """Answer one request.

        Args:
            receipt: what `receive` returned when the request was whole; None to receive it now

        Raises:
            RequestError: it is not what the model takes.
            UnknownVersionError: `version` is given and not the one served.
            OverloadedError: it was refused for want of room or time.
            ModelFailedError: the model could not answer it.
        """
        receipt = receipt or self.receive()
        self.begin(receipt)
        if receipt.refused is not None:
            self.arrived += 1
            self.metrics.refused(receipt.refused)
            self.lateness.refused()
            raise OverloadedError(f"{receipt.refused}: too many requests wait")
        self.in_flight += 1
        try:
            with self.slot.use() as model:
                if version not in (None, model.version):
                    raise UnknownVersionError(f"version: must be {model.version}, but got {version}")
                return await self._answer_on(model, body, header_length, receipt.received_ns)
        finally:
            self.in_flight -= 1

    async def swap(self, model: Model) -> str | None:
        """Serve another model from the next request on, and wait until the old one is closed.

        Where a request of the old one hangs, return after the time in which accepted requests are answered, with a line
        about it; otherwise return None.
        """
        old = self.slot.model.version
        # The slot changes hands before the first wait, at the same time as metrics and counts.
        self.metrics.serving(self.name, model.version)
        self.lateness.model_replaced()
        self._door, self._loop_load = Door(), LoopLoad()
        left = await self.slot.swap(model, self.limits.drain_seconds)
        if old != model.version:
            self._statistics.pop(old, None)
        if not left:
            return None
        return f"the model {old} stays open beside it: {left} of its requests are not answered yet"

    def _full(self, model: Model) -> str | None:
        """Return the reason why there is no room for one more request, None where there is."""
        if self.in_flight + self.waiting >= self.limits.in_flight:
            return "in flight"
        return str(Refusal.QUEUE_FULL) if self.waiting > model.queue_on_loop else None

    async def _answer_on(self, model: Model, body: bytes, header_length: str | None, start: int) -> Encoded:
        statistics, begun = self._of(model.version), time.perf_counter_ns()
        request = self.lateness.began(start)
        try:
            if len(body) <= _READ_HERE:
                read = self._read(model, body, header_length)
            else:
                read = await asyncio.to_thread(self._read, model, body, header_length)
            after_reading = time.perf_counter_ns()
            self.arrived += 1
            scores, together = await self._scores(model, read, len(body), start)
            before_writing = time.perf_counter_ns()
            output = model.bundle.manifest.output.name
            encoded = write_response(self.name, model.version, read.request, output, scores)
        except Exception as error:
            ended = self.lateness.refused if isinstance(error, OverloadedError) else self.lateness.failed
            ended(request)
            statistics.failed(time.perf_counter_ns() - start)
            raise
        end = time.perf_counter_ns()
        self.answered += 1
        self.lateness.answered(request, end)

        def record() -> None:
            statistics.answered(read.rows, after_reading - begun, end - before_writing, end - start)
            self.metrics.answered((end - start) / 1e9, read.rows, together)
            if self.mirror is not None:
                self.mirror.offer(model, read.arrays, scores, self.queued)

        # In the loop's next turn, when the response is on its way.
        asyncio.get_running_loop().call_soon(record)
        return encoded

    def _read(self, model: Model, body: bytes, header_length: str | None) -> _Read:
        request = read_request(body, header_length, (model.bundle.manifest.output.name,))
        return _Read(request, *check_inputs(model.bundle.inputs, request.inputs, self.limits, model.repeats_user))

    async def _scores(self, model: Model, read: _Read, length: int, start: int) -> tuple[Array, int]:
        now = time.perf_counter_ns()
        loop_ns, load, at_once = self._loop_load.turns_ns(now), model.pool.load, False
        try:
            pending = model.submit(read.arrays, read.rows, loop_ns + now - start)
            at_once = pending.done()
            scores = pending.result() if at_once else await asyncio.wrap_future(pending)
        except RefusedError as error:
            self.metrics.refused(str(error.reason))
            if at_once and model is self.slot.model:  # by admission, not when its turn came
                self._door.refused(load, str(error.reason), now, length, loop_ns)
            raise OverloadedError(str(error)) from error
        except UnseenIdError as error:
            raise RequestError(str(error)) from error
        except Exception as error:
            if model.has_free_shapes:
                # What the manifest leaves open, such as the longest history, only the graph knows.
                raise RequestError(
                    f"inputs: must be of shapes that the model takes, but got {one_line(error)}"
                ) from error
            raise ModelFailedError(f"the model failed: {one_line(error)}") from error
        if not np.isfinite(scores).all():
            raise ModelFailedError("the model failed: its scores hold NaN or infinity")
        return np.asarray(scores, model.bundle.manifest.output.dtype), pending.together

    def _of(self, version: str) -> ModelStatistics:
        return self._statistics.setdefault(version, ModelStatistics())

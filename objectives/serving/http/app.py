"""Routes of Open Inference Protocol V2, health, statistics and metrics, as an ASGI application."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from objectives.serving.http.inference import Inference, ModelFailedError, OverloadedError, Receipt, UnknownVersionError
from objectives.serving.http.intake.body import BodyTooLargeError, BodyTooSlowError, ClientGoneError, Receive, read_body
from objectives.serving.http.intake.connection import RECEIPT
from objectives.serving.http.intake.loop_load import reading_done
from objectives.serving.http.json_data import RequestError, shown
from objectives.serving.http.limits import RETRY_AFTER
from objectives.serving.http.metrics import CONTENT_TYPE
from objectives.serving.http.protocol import HEADER_LENGTH

_LOGGER = logging.getLogger("leanrec.serve")
EXTENSIONS = ("binary_tensor_data", "statistics")
_LENGTH = HEADER_LENGTH.lower().encode()
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<of>|/ready|/stats|/infer)")
_JSON = {"Content-Type": "application/json"}
# A server of which all replicas hang for so long is not live. Some engines prepare kernels for several seconds when a
# request has a new size, which ends.
_DEAD_NS = 60_000_000_000
Scope = Mapping[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Response(NamedTuple):
    """A response."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class _NotFoundError(LookupError):
    """A path, or what it names, is not served."""


class _MethodError(ValueError):
    """A method that a path does not have; `allowed` are those that it has."""

    def __init__(self, allowed: str, method: str) -> None:
        super().__init__(f"method: must be {allowed}, but got {method}")
        self.allowed = allowed


# Status of each error; the classes have no common base below Exception.
_STATUS: Mapping[type[Exception], int] = {
    RequestError: 400,
    _NotFoundError: 404,
    UnknownVersionError: 404,
    _MethodError: 405,
    BodyTooSlowError: 408,
    BodyTooLargeError: 413,
    ModelFailedError: 500,
    OverloadedError: 503,
}


class Endpoints:
    """Handler of all requests, an ASGI application.

    draining: the server is about to stop: it is not ready, still answers, and asks clients to reconnect elsewhere
    """

    def __init__(self, inference: Inference, server_version: str) -> None:
        self._inference, self._server_version = inference, server_version
        self.draining = False
        self._fixed = {
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/metrics": self._metrics,
        }

    def turns_away(self, path: str, length: int) -> bool:
        """Refuse a request to infer by the length of its body, and return whether it was refused.

        False for other requests, and while draining, since answers then tell clients to reconnect elsewhere.
        """
        return not self.draining and self._is_to_infer(path) and self._inference.turns_away(length)

    def received(self, path: str) -> Receipt | None:
        """Note that a POST request is whole; None for one that is not to infer."""
        return self._inference.receive() if self._is_to_infer(path) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever it is."""
        try:
            status, body, headers = await self._answer(scope, receive)
            self._settle(scope)
            await self._send(status, body, headers, send)
        except ClientGoneError:
            return
        finally:
            # A body that nobody waits for may end while its answer waits for a client that does not read.
            self._settle(scope)

    def _settle(self, scope: Scope) -> None:
        """Note that a request does not wait any more, if it has been received."""
        if (receipt := _receipt(scope)) is not None:
            self._inference.begin(receipt)

    async def _send(self, status: int, body: bytes, headers: Mapping[str, str], send: Send) -> None:
        sent = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        path, method = scope["path"], scope["method"]
        model = _MODEL.fullmatch(path)
        infer = model if model is not None and model["of"] == "/infer" and method == "POST" else None
        try:
            if infer is None:
                if path == "/metrics":
                    await reading_done()
                response = self._read(path, method, model)
            else:
                response = await self._infer(infer, scope, receive)
        except ClientGoneError:
            raise
        except Exception as error:
            response = self._of_error(error)
        if infer is not None:
            self._inference.metrics.ended(response.status)
        return response

    async def _infer(self, model: re.Match[str], scope: Scope, receive: Receive) -> Response:
        headers = dict(scope["headers"])
        self._check_name(model["name"])
        if (encoding := headers.get(b"content-encoding", b"identity")) != b"identity":
            raise RequestError(f"Content-Encoding: must be identity, but got {shown(encoding.decode('latin-1'))}")
        body = await read_body(receive, self._inference.limits)
        length = headers.get(_LENGTH)
        header_length = None if length is None else length.decode("latin-1")
        encoded = await self._inference.answer(body, header_length, model["version"], _receipt(scope))
        if encoded.json_bytes is None:
            return self._response(200, encoded.body, _JSON)
        more = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(encoded.json_bytes)}
        return self._response(200, encoded.body, more)

    def _read(self, path: str, method: str, model: re.Match[str] | None) -> Response:
        """Answer a request for something to read."""
        of = self._fixed.get(path)
        if of is None and model is None:
            raise _NotFoundError(f"path: must be one of the protocol's, but got {shown(path)}")
        allowed = "POST" if model is not None and model["of"] == "/infer" else "GET, HEAD"
        if method not in allowed.split(", "):
            raise _MethodError(allowed, shown(method))
        if of is not None:
            return of()
        assert model is not None
        self._check_name(model["name"])
        served = self._inference.slot.model.version
        if model["version"] not in (None, served):
            raise _NotFoundError(f"version: must be {served}, but got {shown(model['version'])}")
        return {"": self._model, "/ready": self._model_ready, "/stats": self._statistics}[model["of"]]()

    def _server(self) -> Response:
        known = {"name": "leanrec", "version": self._server_version, "extensions": EXTENSIONS}
        return self._json(known)

    def _live(self) -> Response:
        return self._health("live", self._hanging(_DEAD_NS))

    def _ready(self) -> Response:
        return self._health("ready", self._not_ready())

    def _metrics(self) -> Response:
        return self._response(200, self._inference.metrics.text(), {"Content-Type": CONTENT_TYPE})

    def _model(self) -> Response:
        return self._json(self._inference.slot.model.metadata(self._inference.name))

    def _model_ready(self) -> Response:
        return self._health("ready", self._not_ready(), {"name": self._inference.name})

    def _not_ready(self) -> str | None:
        return "the server is about to stop" if self.draining else self._hanging()

    def _hanging(self, lasting_ns: int | None = None) -> str | None:
        hangs = self._inference.slot.model.pool.hangs(lasting_ns)
        return "every replica of an instance group hangs" if hangs else None

    def _health(self, state: str, lacking: str | None, of: Mapping[str, object] = MappingProxyType({})) -> Response:
        """Return that the server is in a state, or, with status 503, what it lacks."""
        if lacking is not None:
            return self._json({"error": lacking, state: False}, 503)
        return self._json({**of, state: True})

    def _statistics(self) -> Response:
        return self._json({"model_stats": [self._inference.statistics()]})

    def _is_to_infer(self, path: str) -> bool:
        """Return whether a path is that of inference by what is served."""
        model = _MODEL.fullmatch(path)
        if model is None or model["of"] != "/infer" or model["name"] != self._inference.name:
            return False
        return model["version"] in (None, self._inference.slot.model.version)

    def _check_name(self, name: str) -> None:
        if name != self._inference.name:
            raise _NotFoundError(f"model: must be {self._inference.name}, but got {shown(name)}")

    def _of_error(self, error: Exception) -> Response:
        status = _STATUS.get(type(error))
        if status is None:
            # Nothing of the inside is told to a client.
            _LOGGER.error("a request failed", exc_info=error)
            return self._json({"error": "the server failed"}, 500)
        more = {"Retry-After": RETRY_AFTER} if status == 503 else {}
        if isinstance(error, _MethodError):
            more["Allow"] = error.allowed
        if isinstance(error, (BodyTooLargeError, BodyTooSlowError)):
            more["Connection"] = "close"  # the rest of the body is not read
        return self._json({"error": str(error)}, status, more)

    def _json(self, plain: object, status: int = 200, more: Mapping[str, str] | None = None) -> Response:
        # In ASCII, which any text that a request held can be written in.
        body = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
        return self._response(status, body, {**_JSON, **(more or {})})

    def _response(self, status: int, body: bytes, headers: Mapping[str, str]) -> Response:
        closing = {"Connection": "close"} if self.draining else {}
        return Response(status, body, {**headers, "Content-Length": str(len(body)), **closing})


def _receipt(scope: Scope) -> Receipt | None:
    """Return the receipt of a request that is whole and was noted."""
    receipt: Receipt | None = scope.get("state", {}).get(RECEIPT)
    return receipt

"""Routes of Open Inference Protocol V2, health, statistics and metrics."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping

from objectives.serving.http.http1.messages import Refusal, Request, Response
from objectives.serving.http.inference import Inference, ModelFailedError, OverloadedError, UnknownVersionError
from objectives.serving.http.json_data import RequestError, shown
from objectives.serving.http.metrics import CONTENT_TYPE
from objectives.serving.http.protocol import HEADER_LENGTH

_LOGGER = logging.getLogger("leanrec.serve")
EXTENSIONS = ("binary_tensor_data", "statistics")
_LENGTH = HEADER_LENGTH.lower()
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<of>|/ready|/stats|/infer)")
_JSON = {"Content-Type": "application/json"}
# Seconds after which a refused request may be sent again.
_RETRY_AFTER = "1"


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
    ModelFailedError: 500,
    OverloadedError: 503,
}


class Endpoints:
    """Handler of all requests.

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

    async def answer(self, request: Request) -> Response:
        """Answer a request, whatever it is."""
        found = _MODEL.fullmatch(request.path)
        if found is not None and found["of"] == "/infer" and request.method == "POST":
            try:
                response = await self._infer(request, found["name"], found["version"])
            except Exception as error:
                response = self._of_error(error)
            self._inference.metrics.ended(response.status)
            return response
        try:
            return self._read(request, found)
        except Exception as error:
            return self._of_error(error)

    def refuse(self, refusal: Refusal) -> Response:
        """Answer a request that was refused before it was whole."""
        self._inference.metrics.ended(refusal.status)
        return self._json({"error": refusal.reason}, refusal.status)

    async def _infer(self, request: Request, name: str, version: str | None) -> Response:
        self._check_name(name)
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise RequestError(f"Content-Encoding: must be identity, but got {shown(encoding)}")
        encoded = await self._inference.answer(request.body, request.headers.get(_LENGTH), version)
        if encoded.json_bytes is None:
            return self._response(200, encoded.body, _JSON)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(encoded.json_bytes)}
        return self._response(200, encoded.body, headers)

    def _read(self, request: Request, model: re.Match[str] | None) -> Response:
        """Answer a request for something to read."""
        of = self._fixed.get(request.path)
        if of is None and model is None:
            raise _NotFoundError(f"path: must be one of the protocol's, but got {shown(request.path)}")
        allowed = "POST" if model is not None and model["of"] == "/infer" else "GET, HEAD"
        if request.method not in allowed.split(", "):
            raise _MethodError(allowed, shown(request.method))
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
        return self._json({"live": True})

    def _ready(self) -> Response:
        if self.draining:
            return self._json({"error": "the server is about to stop", "ready": False}, 503)
        return self._json({"ready": True})

    def _metrics(self) -> Response:
        return self._response(200, self._inference.metrics.text(), {"Content-Type": CONTENT_TYPE})

    def _model(self) -> Response:
        return self._json(self._inference.slot.model.metadata(self._inference.name))

    def _model_ready(self) -> Response:
        if self.draining:
            return self._json({"error": "the server is about to stop", "ready": False}, 503)
        return self._json({"name": self._inference.name, "ready": True})

    def _statistics(self) -> Response:
        return self._json({"model_stats": [self._inference.statistics()]})

    def _check_name(self, name: str) -> None:
        if name != self._inference.name:
            raise _NotFoundError(f"model: must be {self._inference.name}, but got {shown(name)}")

    def _of_error(self, error: Exception) -> Response:
        status = _STATUS.get(type(error))
        if status is None:
            # Nothing of the inside is told to a client.
            _LOGGER.error("a request failed", exc_info=error)
            return self._json({"error": "the server failed"}, 500)
        more = {"Retry-After": _RETRY_AFTER} if status == 503 else {}
        if isinstance(error, _MethodError):
            more["Allow"] = error.allowed
        return self._json({"error": str(error)}, status, more)

    def _json(self, plain: object, status: int = 200, more: Mapping[str, str] | None = None) -> Response:
        # In ASCII, which any text that a request held can be written in.
        body = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
        return self._response(status, body, {**_JSON, **(more or {})})

    def _response(self, status: int, body: bytes, headers: Mapping[str, str]) -> Response:
        return Response(status, body, headers, self.draining)

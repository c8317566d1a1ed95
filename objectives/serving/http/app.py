"""Routes of Open Inference Protocol V2, health, statistics and metrics, as a Starlette application."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from objectives.serving.http.body import BodyTooLargeError, BodyTooSlowError, read_body
from objectives.serving.http.inference import Inference, ModelFailedError, OverloadedError, UnknownVersionError
from objectives.serving.http.json_data import RequestError, shown
from objectives.serving.http.metrics import CONTENT_TYPE
from objectives.serving.http.protocol import HEADER_LENGTH

_LOGGER = logging.getLogger("leanrec.serve")
EXTENSIONS = ("binary_tensor_data", "statistics")
# Status of each error; the classes have no common base below Exception.
_STATUS: Mapping[type[Exception], int] = {
    RequestError: 400,
    UnknownVersionError: 404,
    BodyTooSlowError: 408,
    BodyTooLargeError: 413,
    ModelFailedError: 500,
    OverloadedError: 503,
}
# Seconds after which a refused request may be sent again.
_RETRY_AFTER = "1"


class Endpoints:
    """Handlers of all routes.

    draining: the server is about to stop: it is not ready, still answers, and asks clients to reconnect elsewhere
    """

    def __init__(self, inference: Inference, server_version: str) -> None:
        self._inference, self._server_version = inference, server_version
        self.draining = False

    def app(self) -> Starlette:
        """Make the application."""
        routes = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/stats", self.statistics),
                Route(f"{model}/infer", self.infer, methods=["POST"]),
            ]
        # HTTPException is what Starlette raises for an unknown path or method.
        return Starlette(routes=routes, exception_handlers={HTTPException: self._error, Exception: self._error})

    async def server(self, request: Request) -> Response:
        known = {"name": "leanrec", "version": self._server_version, "extensions": EXTENSIONS}
        return self._json(known)

    async def live(self, request: Request) -> Response:
        return self._json({"live": True})

    async def ready(self, request: Request) -> Response:
        if self.draining:
            return self._json({"error": "the server is about to stop", "ready": False}, 503)
        return self._json({"ready": True})

    async def metrics(self, request: Request) -> Response:
        return self._response(self._inference.metrics.text(), 200, {"Content-Type": CONTENT_TYPE})

    async def model(self, request: Request) -> Response:
        self._check_model(request)
        return self._json(self._inference.slot.model.metadata(self._inference.name))

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        if self.draining:
            return self._json({"error": "the server is about to stop", "ready": False}, 503)
        return self._json({"name": self._inference.name, "ready": True})

    async def statistics(self, request: Request) -> Response:
        self._check_model(request)
        return self._json({"model_stats": [self._inference.statistics()]})

    async def infer(self, request: Request) -> Response:
        try:
            response = await self._infer(request)
        except ClientDisconnect:
            # Nobody reads it.
            return Response(status_code=400)
        except Exception as error:
            response = self._of_error(error)
        self._inference.metrics.ended(response.status_code)
        return response

    async def _infer(self, request: Request) -> Response:
        self._check_name(request)
        if (encoding := request.headers.get("Content-Encoding", "identity")) != "identity":
            raise RequestError(f"Content-Encoding: must be identity, but got {shown(encoding)}")
        body = await read_body(request.stream(), self._inference.limits)
        version = request.path_params.get("version")
        encoded = await self._inference.answer(body, request.headers.get(HEADER_LENGTH), version)
        if encoded.json_bytes is None:
            return self._response(encoded.body, 200, {"Content-Type": "application/json"})
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(encoded.json_bytes)}
        return self._response(encoded.body, 200, headers)

    def _check_name(self, request: Request) -> None:
        if (name := request.path_params["name"]) != self._inference.name:
            raise HTTPException(404, f"model: must be {self._inference.name}, but got {shown(name)}")

    def _check_model(self, request: Request) -> None:
        """Check name and version of a path that reads the current model."""
        self._check_name(request)
        version, served = request.path_params.get("version"), self._inference.slot.model.version
        if version not in (None, served):
            raise HTTPException(404, f"version: must be {served}, but got {shown(version)}")

    async def _error(self, request: Request, error: Exception) -> Response:
        return self._of_error(error)

    def _of_error(self, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return self._json({"error": error.detail}, error.status_code, error.headers)
        status = _STATUS.get(type(error))
        if status is None:
            # Nothing of the inside is told to a client.
            _LOGGER.error("a request failed", exc_info=error)
            return self._json({"error": "the server failed"}, 500)
        headers: dict[str, str] = {}
        if status == 503:
            headers["Retry-After"] = _RETRY_AFTER
        if isinstance(error, (BodyTooLargeError, BodyTooSlowError)):
            headers["Connection"] = "close"  # the rest of the body is not read
        return self._json({"error": str(error)}, status, headers)

    def _json(self, plain: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        # In ASCII, which any text that a request held can be written in.
        body = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
        return self._response(body, status, {"Content-Type": "application/json", **(headers or {})})

    def _response(self, body: bytes, status: int, headers: Mapping[str, str]) -> Response:
        closing = {"Connection": "close"} if self.draining else {}
        return Response(body, status, {**headers, **closing})

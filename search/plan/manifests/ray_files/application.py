"""Application of Ray Serve: the bundles of a plan's offers, and a router to the one that serves now.

A request is a POST of a JSON object of the model's inputs by name; the answer has `order`, the numbers of the
candidates from best to worst, and `scores`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from plan_policy import PLAN, offer_at  # type: ignore[import-not-found]
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse

import leanrec
from objectives.serving.pool.admission import RefusedError

Answer = tuple[int, dict[str, Any]]


class Offer:
    """A bundle with the placement that was measured; a replica is one process of the plan."""

    def __init__(self, bundle: str) -> None:
        """Open a bundle, a folder or a registered one; BundleError where it does not verify."""
        self._ranker = leanrec.load(bundle)

    async def rank(self, inputs: Mapping[str, Any]) -> Answer:
        """Rank the candidates of a request; return the HTTP status with it."""
        try:
            found = await asyncio.to_thread(self._ranker.rank, inputs)
        except ValueError as error:
            return 400, {"error": str(error)}
        except RefusedError as error:
            return 503, {"error": str(error)}
        return 200, {"order": found.order.tolist(), "scores": found.scores.tolist()}


class Router:
    """Entrance of the application."""

    def __init__(self, offers: Mapping[str, DeploymentHandle]) -> None:
        """Keep the handle of each offer, by its deployment's name."""
        self._offers = offers

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request by the offer that the plan has serve now."""
        try:
            inputs = await request.json()
        except ValueError:
            inputs = None
        if not isinstance(inputs, dict):
            return JSONResponse({"error": "body: must be a JSON object of inputs by name"}, 400)
        offer = self._offers[f"offer-{offer_at(PLAN, time.time())}"]
        status, document = await offer.rank.remote(inputs)
        return JSONResponse(document, status)


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Build the application; `bundles` holds the bundle of each deployment by its name."""
    bundles: Mapping[str, str] = arguments["bundles"]
    offer = serve.deployment(Offer)
    return serve.deployment(Router).bind({name: offer.options(name=name).bind(path) for name, path in bundles.items()})

"""Addresses of runs in MLflow's UI, for a ledger that is kept by a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass(frozen=True)
class RunPages:
    """Addresses in MLflow's UI: of the study, and of runs by trial."""

    study: str | None = None
    trials: Mapping[int, str] = field(default_factory=dict)


def ui_of(tracking_uri: str) -> str | None:
    """Return the address of MLflow's UI without a user's name and password; None for a store that is no server."""
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https"):
        return None
    return urlunsplit((server.scheme, server.netloc.rpartition("@")[2], server.path.rstrip("/"), "", ""))

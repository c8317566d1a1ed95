"""Addresses of runs in MLflow's UI: of the server that keeps the ledger, or of `leanrec ui` on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

MLFLOW_PORT = 5000


@dataclass(frozen=True)
class RunPages:
    """Addresses in MLflow's UI: of the study, and of runs by trial.

    while_shown: they answer only while `leanrec ui` runs
    """

    study: str | None = None
    trials: Mapping[int, str] = field(default_factory=dict)
    while_shown: bool = False


def is_server(tracking_uri: str) -> bool:
    return urlsplit(tracking_uri).scheme in ("http", "https")


def ui_of(tracking_uri: str) -> str:
    """Return the address of MLflow's UI without a user's name and password.

    For a store that is no server, this is where `leanrec ui` shows it unless told otherwise.
    """
    if not is_server(tracking_uri):
        return f"http://127.0.0.1:{MLFLOW_PORT}"
    server = urlsplit(tracking_uri)
    return urlunsplit((server.scheme, server.netloc.rpartition("@")[2], server.path.rstrip("/"), "", ""))

"""Client of an MLflow store that fails fast, since a server that is away must not hold up a search."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as databases
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

# MLflow opens a database ten times over, in 100 seconds: as of a server, once more is enough.
_TIMES = 2
# Errors of MLflow, and of a store that cannot be reached.
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)


def open_client(uri: str) -> MlflowClient:
    """Open the client of a store; a database URI connects here."""
    databases.MAX_RETRY_COUNT = _TIMES
    return MlflowClient(tracking_uri=uri)


def first_line(error: BaseException) -> str:
    """Return the first line of a store's error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]

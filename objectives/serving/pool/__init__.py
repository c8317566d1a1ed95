"""Execution of a model behind a placement, the same in measurement and in production."""

from objectives.serving.pool.admission import Refusal, RefusedError
from objectives.serving.pool.pending_result import PendingResult
from objectives.serving.pool.pool import Pool

__all__ = ["PendingResult", "Pool", "Refusal", "RefusedError"]

"""How a model is run, in measuring and in production alike."""

from objectives.serving.pool.pending_result import PendingResult, Refusal, RefusedError
from objectives.serving.pool.pool import Pool

__all__ = ["PendingResult", "Pool", "Refusal", "RefusedError"]

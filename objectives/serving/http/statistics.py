"""Statistics of a model's version, as the protocol's statistics extension has them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class _Total:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class ModelStatistics:
    """Counts since a version is served.

    reading, writing: time from the bytes to the arrays, and from the scores to the bytes
    """

    rows: int = 0
    last_ms: int = 0
    success: _Total = field(default_factory=_Total)
    fail: _Total = field(default_factory=_Total)
    reading: _Total = field(default_factory=_Total)
    writing: _Total = field(default_factory=_Total)

    def answered(self, rows: int, read_ns: int, write_ns: int, total_ns: int) -> None:
        self.rows += rows
        self.last_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.reading.add(read_ns)
        self.writing.add(write_ns)

    def failed(self, ns: int) -> None:
        self.fail.add(ns)

    def document(self, name: str, version: str) -> dict[str, object]:
        """Return the JSON document; null where the pool does not tell: its queue and its runs are not timed apart."""
        timed = {"success": self.success, "fail": self.fail}
        timed |= {"compute_input": self.reading, "compute_output": self.writing}
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": None,
            "inference_stats": {
                **{key: {"count": total.count, "ns": total.ns} for key, total in timed.items()},
                "queue": None,
                "compute_infer": None,
            },
            "batch_stats": [],
        }

"""Timeline of a controller: one JSON document a line, in a file that others may read meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from objectives.errors import InputError
from objectives.serving.control.controller import Decision
from objectives.serving.control.options import Option


class Timeline:
    """Writer of a timeline; without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, to whose end lines are added.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self._file = None if path is None else path.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--timeline: must be a file that can be written, but got {path}: {error}") from error

    def write(self, event: str, facts: Mapping[str, object]) -> None:
        """Add a line; what cannot be written, such as on a full disk, is lost and stops no server."""
        if self._file is not None:
            with suppress(OSError):
                self._file.write(json.dumps({"at": time.time(), "event": event, **facts}, allow_nan=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def option_facts(option: Option) -> dict[str, object]:
    """Return what a timeline tells of an option."""
    return {
        "option": option.name,
        "variant": option.variant,
        "replicas": option.placement.replicas,
        "cores": option.cores,
        "loss": option.loss,
        "capacity_rps": option.capacity_rps,
    }


def decision_facts(decision: Decision) -> dict[str, object]:
    """Return what a timeline tells of a decision, but for its option."""
    return {
        "second": round(decision.now_s, 3),
        "reason": str(decision.reason),
        "panicking": decision.panicking,
        "planned_rps": decision.planned_rps,
        "stable_rps": decision.stable_rps,
        "panic_rps": decision.panic_rps,
        "held_rps": decision.held_rps,
        "backlog": decision.backlog,
        "correction": decision.correction,
        "capacity_factor": decision.capacity_factor,
    }

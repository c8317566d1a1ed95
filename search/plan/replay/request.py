"""Options of a replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from objectives.serving.control.windows import KPA, Windows


@dataclass(frozen=True)
class ReplayRequest:
    """Options of a replay.

    machine: kind of machine, None where the plan has a single one
    bundles: of all variants; none for the virtual clock alone
    policies: names, none for all
    speed: 1 or more
    windows: of the trace's own time
    """

    trace: Path
    plan: Path
    rows_column: str | None
    machine: str | None
    bundles: tuple[Path, ...]
    policies: tuple[str, ...]
    speed: float
    windows: Windows = KPA
    seed: int = 0

    @property
    def compressed_windows(self) -> Windows:
        """The windows in compressed time."""
        windows = self.windows
        times = {name: getattr(windows, name) / self.speed for name in ("stable_s", "panic_s", "tick_s")}
        return replace(windows, **times)

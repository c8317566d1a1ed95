"""Limits of the server."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spaces.techniques.placement import Placement

MEBIBYTE = 1 << 20
# Seconds after which a refused request may be sent again.
RETRY_AFTER = "1"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all together.

    body_bytes: bytes of a request's body, and of its arrays once bags are padded and the user's row is repeated
    rows: rows of a request
    in_flight: requests that have arrived and are not answered
    body_seconds: time in which a body must arrive
    header_bytes: bytes of a request's line and headers
    header_seconds: time in which they must arrive
    drain_seconds: time in which the accepted requests are answered after SIGTERM
    deadline_ms: a request that cannot be answered within it is refused; None for the deadline of the placement
    """

    body_bytes: int = 16 * MEBIBYTE
    rows: int = 10_000
    in_flight: int = 256
    body_seconds: float = 30.0
    header_bytes: int = 1 << 16
    header_seconds: float = 10.0
    drain_seconds: int = 30
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be above 0, but got {value}.")

    def placed(self, placement: Placement) -> Placement:
        """Return a placement with the deadline of the server, if it has one."""
        if self.deadline_ms is None:
            return placement
        return replace(placement, admission=replace(placement.admission, deadline_ms=self.deadline_ms))

"""Limits of the server."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all together.

    body_bytes: bytes of a request's body, and of its arrays once bags are padded and the user's row is repeated
    rows: rows of a request
    in_flight: requests that are answered at the same time
    body_seconds: time in which a body must arrive
    drain_seconds: time in which the accepted requests are answered after SIGTERM
    """

    body_bytes: int = 16 * MEBIBYTE
    rows: int = 10_000
    in_flight: int = 256
    body_seconds: float = 30.0
    drain_seconds: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name}: must be above 0, but got {value}.")

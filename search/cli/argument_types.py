"""Types of arguments on the command line; ArgumentTypeError tells what they must be."""

from __future__ import annotations

import argparse
import contextlib
import datetime
from functools import partial

from objectives.serving.control.windows import Windows


def number(rule: str, most: float, text: str) -> float:
    """Parse a number above 0 and below `most`; `rule` completes "must"."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < most:
            return value
    raise argparse.ArgumentTypeError(f"must {rule}, but got {text!r}")


above_zero = partial(number, "be above 0", float("inf"))
within_a_day = partial(number, "be above 0 and below 86400", 86400.0)
share = partial(number, "lie between 0 and 1", 1.0)


def share_or_all(text: str) -> float:
    """Parse a share that may be 1."""
    return 1.0 if text.strip() in ("1", "1.0") else share(text)


def not_negative(text: str) -> float:
    """Parse a number of 0 or more."""
    return 0.0 if text.strip() in ("0", "0.0") else above_zero(text)


def tolerated(text: str) -> float:
    """Parse a share that may be 0."""
    return 0.0 if text.strip() in ("0", "0.0") else share(text)


def at_least_one(text: str) -> float:
    """Parse a number of 1 or more."""
    with contextlib.suppress(ValueError):
        if 1 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"must be 1 or more, but got {text!r}")


def count(text: str) -> int:
    """Parse a whole number above 0."""
    if text.isascii() and text.isdecimal() and 0 < len(text) < 10 and (value := int(text)) > 0:
        return value
    raise argparse.ArgumentTypeError(f"must be a whole number above 0, but got {text!r}")


def seed(text: str) -> int:
    """Parse a seed of random numbers."""
    return _within(0, 2**32 - 1, text)


def port(text: str) -> int:
    """Parse a port to listen on."""
    return _within(1, 65535, text)


def _within(least: int, most: int, text: str) -> int:
    """Parse a whole number between two, which are included."""
    if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= (value := int(text)) <= most:
        return value
    raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, but got {text!r}")


def moment(text: str) -> float:
    """Return seconds since the epoch; a time without a zone is UTC."""
    with contextlib.suppress(ValueError, OverflowError):
        at = datetime.datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
    raise argparse.ArgumentTypeError(f"must be a time such as 2026-11-28T08:00, but got {text!r}")


def windows(text: str) -> Windows:
    """Parse the windows of an elastic controller."""
    with contextlib.suppress(ValueError):
        stable_s, panic_s, tick_s = map(float, text.split(","))
        return Windows(stable_s, panic_s, tick_s)
    raise argparse.ArgumentTypeError(f"must be STABLE,PANIC,TICK in falling order such as 60,6,2, but got {text!r}")

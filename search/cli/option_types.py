"""Types of command-line options: numbers within limits, and windows of time."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial

from objectives.serving.control.windows import Windows


def _number(rule: str, most: float, text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < most:
            return number
    raise argparse.ArgumentTypeError(f"must {rule}, but got {text!r}")


above_zero = partial(_number, "be above 0", float("inf"))
share = partial(_number, "lie between 0 and 1", 1.0)


def windows(text: str) -> Windows:
    with contextlib.suppress(ValueError):
        stable_s, panic_s, tick_s = map(float, text.split(","))
        return Windows(stable_s, panic_s, tick_s)
    raise argparse.ArgumentTypeError(f"must be STABLE,PANIC,TICK in falling order such as 60,6,2, but got {text!r}")


def at_least_one(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1 <= (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"must be 1 or more, but got {text!r}")


def tolerated(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else share(text)


def count(text: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < len(text) < 10 and (number := int(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"must be a whole number above 0, but got {text!r}")

"""What an error says, in one line, and which line of the user's own code it came from; the error of a setting."""

from __future__ import annotations

import traceback
from pathlib import Path

# Frames of these are none of the user's own code, nor are those of a library that it calls.
_NOT_THEIRS = ("/torch/", "importlib", "recommenders/own/", "tracing/program.py")
_LIBRARIES = "/site-packages/"


class SettingError(ValueError):
    """A setting of the study file that does not fit the data; one line."""


def one_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def located(error: BaseException) -> str:
    """In one line, with the place in the user's own code where there is one."""
    frame = innermost(error)
    where = f" ({frame.name}, line {frame.lineno} of {Path(frame.filename).name})" if frame else ""
    return one_line(error) + where


def innermost(error: BaseException) -> traceback.FrameSummary | None:
    """The user's own frame that is nearest to the error; None where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(part in frame.filename for part in _NOT_THEIRS)]
    plain = [frame for frame in theirs if _LIBRARIES not in frame.filename]
    found = plain or theirs
    return found[-1] if found else None

"""What an error says, in one line, and which line of the user's own code it came from."""

from __future__ import annotations

import traceback

# Frames of these are none of the user's own code.
_NOT_THEIRS = ("/torch/", "importlib", "recommenders/own/factory.py", "tracing/program.py")


def one_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def innermost(error: BaseException) -> traceback.FrameSummary | None:
    """The user's own frame that is nearest to the error; None where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(part in frame.filename for part in _NOT_THEIRS)]
    return theirs[-1] if theirs else None

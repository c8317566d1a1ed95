"""Base classes of errors, an error as one line, and the line of the user's own code that it came from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

# Frames of these are none of the user's own code.
_NOT_THEIRS = ("/torch/", "importlib", str(Path(__file__).resolve().parent), sysconfig.get_paths()["stdlib"])
# Nor are those of a library that it calls, where there are any of its own.
_LIBRARIES = ("/site-packages/", "/dist-packages/")


class InputError(ValueError):
    """The user's input is wrong: one line with the field, what it must be and what it was."""


class ExplainedError(RuntimeError):
    """The work failed, and the message says why without a traceback."""


class SettingError(InputError):
    """A setting of the study file that does not fit the data."""


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
    libraries = [frame for frame in frames if any(part in frame.filename for part in _LIBRARIES)]
    others = [frame for frame in frames if frame not in libraries]
    theirs = [
        [frame for frame in of if not any(part in frame.filename for part in parts)]
        for of, parts in ((others, _NOT_THEIRS), (libraries, _NOT_THEIRS[:2]))
    ]
    found = theirs[0] or theirs[1]
    return found[-1] if found else None

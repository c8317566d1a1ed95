"""Base classes of errors, and functions that report an error in one line, with its place in the user's own code."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

# Frames of these files are not the user's own code.
_NOT_THEIRS = ("/torch/", "importlib", str(Path(__file__).resolve().parent), sysconfig.get_paths()["stdlib"])
# Frames of libraries are not either, where there are any of the user's own.
_LIBRARIES = ("/site-packages/", "/dist-packages/")


class InputError(ValueError):
    """Invalid input of the user: one line with the field, the requirement and the value."""


class ExplainedError(RuntimeError):
    """A failure that its message explains without a traceback."""


class FullDiskError(OSError):
    """A file could not be written since the disk is full, so that nothing else can be made either."""


class SettingError(InputError):
    """A setting of the study file that does not fit the data."""


def one_line(error: BaseException) -> str:
    """Return the error's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def located(error: BaseException) -> str:
    """Return the error in one line, with its place in the user's own code where there is one."""
    frame = innermost(error)
    where = f" ({frame.name}, line {frame.lineno} of {Path(frame.filename).name})" if frame else ""
    return one_line(error) + where


def innermost(error: BaseException) -> traceback.FrameSummary | None:
    """Return the user's own frame that is nearest to the error; None where there is none."""
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    for library, others in ((False, _NOT_THEIRS), (True, _NOT_THEIRS[:2])):
        for frame in frames:
            from_library = any(part in frame.filename for part in _LIBRARIES)
            if from_library == library and not any(part in frame.filename for part in others):
                return frame
    return None

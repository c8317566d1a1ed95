"""Errors that end a command, and the warning that a name has changed."""

from __future__ import annotations

from objectives.errors import ExplainedError, InputError


class ConfigError(InputError):
    """The study file or an override is wrong; one line names the field, what it was and what it may be."""

    def __init__(self, message: str) -> None:
        # Paths and YAML's own words may hold line breaks and terminal controls.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class JobError(ExplainedError):
    """A job that the whole study depends on has failed."""


class LostJobError(JobError):
    """The process of a job died, or the job took too long."""


class NothingConfirmedError(ExplainedError):
    """No point of the front satisfies the policy on test."""


class RenamedKeyWarning(FutureWarning):
    """A study file uses a name of the version before."""

"""Ledger of a study: its runs in MLflow, written from what the study knows.

The study's database is what counts; the ledger is brought level with it after every trial and at every start, so a kill
or an absent server costs nothing but a delay. Trials are written on a thread of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from objectives.records import Prepared
from search.ablation.records import Ablation
from search.ledger.client import STORE_ERRORS, first_line, open_client
from search.ledger.data_set import data_set
from search.ledger.registry import Registered, register
from search.ledger.runs import Facts, StudyRuns
from search.ledger.writer import Writer
from search.results import Front
from search.run_pages import RunPages, is_server, ui_of
from search.trials import EndedTrial
from spaces.serialization import digest

_AGAIN_SECONDS = 60.0


class Ledger:
    """One study's runs in MLflow. Nothing raises for an absent server; `level` returns whether all is written."""

    def __init__(self, tracking_uri: str, artifacts: Path, study: str, identity: str, home: Path) -> None:
        """`identity` is that of the study among all of its name, in homes that write to the same server."""
        self._uri, self._study, self._identity, self._home = tracking_uri, study, identity, home
        self._artifacts = artifacts if tracking_uri.startswith("sqlite:") else None
        self._settings: Mapping[str, object] = {}
        self._anew = False
        self._runs: StudyRuns | None = None
        self._writer = Writer()
        self._down_since: float | None = None
        self.trouble: str | None = None

    @cached_property
    def _client(self) -> MlflowClient:
        """Open the client: a database URI connects here, under `_try`, which handles an unreachable one."""
        return open_client(self._uri)

    def open(self, settings: Mapping[str, object], anew: bool = False) -> None:
        """Find or make the study's experiment and its parent run; `anew` is as in `StudyRuns`."""
        self._settings, self._anew = settings, anew
        self._try(self._open)

    def record(self, trial: EndedTrial) -> None:
        """Write one trial as a child run, later; skipped while the server is away, for `level` to make up."""
        self._writer.put(partial(self._record, trial))

    def drain(self) -> None:
        """Wait until the recorded trials are written, or were skipped."""
        self._writer.drain()

    def level(
        self,
        trials: Sequence[EndedTrial],
        front: Container[int],
        ablations: Iterable[Ablation] = (),
        found: Front | None = None,
        prepared: Prepared | None = None,
    ) -> bool:
        """Leave one finished run for each trial and each effect of a technique, and none else.

        Front members carry a tag and their model's files, and an effect measured anew replaces the former.

        Args:
            front: numbers of the front's members
            found: the study's result, for descriptions
            prepared: for the data set

        Returns:
            False while the server is away.
        """
        self.drain()
        effects = [(ablation.trial, effect) for ablation in ablations for effect in ablation.effects]
        self._down_since = None
        named = {digest(*pair): pair for pair in effects}

        def level() -> None:
            data = None if prepared is None else data_set(self._settings, prepared)
            self._open().level(trials, front, named, Facts(found, data))

        return self._try(level)

    def pages(self, trials: Iterable[int]) -> RunPages:
        """Return the addresses of the study and these trials in MLflow's UI; none where the store is away."""
        found: list[RunPages] = []
        if not self._try(lambda: found.append(self._open().pages(ui_of(self._uri), trials))):
            return RunPages()
        return replace(found[0], while_shown=not is_server(self._uri))

    def log_file(self, path: Path, folder: str | None = None, trial: int | None = None) -> None:
        """Log a file or a folder as an artifact of the parent run, or of a trial's."""
        if self._runs is not None:
            self._try(partial(self._runs.log_file, path, folder, trial))

    def register(
        self, name: str, bundle: Path, trial: int, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> Registered | None:
        """Register a bundle as a new version of a model; None without a server.

        Args:
            tags: of the version
            metrics: of the trial's run, known since it was chosen
        """
        registered: list[Registered] = []

        def write() -> None:
            run = self._open().run_of(trial)
            if run is None:
                raise MlflowException(f"trial {trial} has no run yet")
            now = int(time.time() * 1000)
            self._client.log_batch(run, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])
            registered.append(register(self._client, self._uri, name, bundle, run, tags))

        return registered[0] if self._try(write) else None

    def _open(self) -> StudyRuns:
        if self._runs is None:
            of = self._client, self._study, self._identity, self._settings, self._artifacts, self._home
            self._runs = StudyRuns(*of, anew=self._anew)
        return self._runs

    def _record(self, trial: EndedTrial) -> None:
        resting = self._down_since is not None and time.monotonic() - self._down_since < _AGAIN_SECONDS
        if self._runs is not None and not resting:
            self._try(partial(self._runs.write, trial))

    def _try(self, work: Callable[[], object]) -> bool:
        """Do the work; errors of the store leave a line in `trouble`."""
        try:
            work()
        except STORE_ERRORS as error:
            self._down_since = time.monotonic()
            self.trouble = f"MLflow at {self._uri} did not answer ({first_line(error)}); it is brought level later"
            return False
        self.trouble, self._down_since = None, None
        return True

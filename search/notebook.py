"""The same road from Python: a study as an object, its front as a table, its figure, its choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from search.choose import run as choose_run
from search.choose.policy import Policy, Preference
from search.cli.console import Console
from search.cli.validation import validated
from search.config.sections import StudyConfig
from search.config.study_file import load, parse
from search.explore import run as explore_run
from search.home import Home
from search.profile.study_profile import read_profile
from search.report.report import Figure, front_figure, write_report
from search.results import Front, Point, choice_json, front_json
from search.session import open_session
from search.verdict import verdict
from spaces.domains import Scalar
from spaces.serialization import Json, to_plain


class Study:
    """A study in a home; one that was begun goes on.

    study = leanrec.Study.from_file("shop.yaml")
    study.run(minutes=10)
    study.front()
    study.choose(prefer="latency")
    """

    def __init__(self, settings: Mapping[str, object] | StudyConfig, home: str | Path | None = None) -> None:
        """Make a study.

        Args:
            settings: as in the study file: name, recommender, data, quality and the rest
            home: folder of mlruns/ and reports/; None for LEANREC_HOME, else the working directory

        Raises:
            ConfigError: a setting is wrong; one line.
        """
        self.config = settings if isinstance(settings, StudyConfig) else parse(dict(settings))
        self.home = Home.find(None if home is None else str(home))
        self._console = Console(quiet=False, as_json=False)

    @classmethod
    def from_file(cls, path: str | Path, home: str | Path | None = None, **overrides: object) -> Study:
        """Make the study of a preset's name or a YAML file.

        Args:
            overrides: by dotted name with __ for the dots, such as budget__minutes=5

        Raises:
            ConfigError: the file is missing or malformed, or a setting is wrong.
        """
        written = [f"{name.replace('__', '.')}={value}" for name, value in overrides.items()]
        return cls(load(str(path), written), home)

    @property
    def name(self) -> str:
        return self.config.name

    def validate(self) -> Json:
        """Run every stage once and briefly; return what can be compressed, what is left alone and why."""
        found: Json = to_plain(validated(self.config, self.home, self._console))
        return found

    def run(self, minutes: float | None = None, trials: int | None = None) -> Study:
        """Search until the minutes or trials, in all, are used up; an interrupt keeps what was finished."""
        given = {"minutes": minutes, "trials": trials}
        budget = self.config.budget.model_copy(update={k: v for k, v in given.items() if v is not None})
        explore_run.run(self.config.model_copy(update={"budget": budget}), self.home, self._console)
        return self

    def document(self) -> Json:
        """All that is known of the study, as `leanrec front --json` prints it."""
        return front_json(self._result())

    def _result(self) -> Front:
        return open_session(self.config, self.home).front()

    def front(self) -> pd.DataFrame:
        """A row for each point of the front and the baseline, the fastest first; ratios are to the baseline."""
        return _table(point for point in self._result().points if point.on_front or point.trial == 0)

    def trials(self) -> pd.DataFrame:
        """A row for each trial that was measured."""
        return _table(self._result().points)

    def figure(self) -> Figure:
        """The front: p95 ratio, loss and throughput, with intervals."""
        return front_figure(self._result())

    def verdict(self) -> str:
        """Summary of the study so far, in a sentence."""
        return verdict(self._result()).headline

    def report(self) -> Path:
        """Write the report, one HTML file, and return its path."""
        path = self.home.reports(self.name) / "report.html"
        session = open_session(self.config, self.home)
        write_report(session.front(), path, baseline_profile=read_profile(session.study.facts))
        return path

    def choose(
        self,
        max_loss: float | None = None,
        p95_ms: float | None = None,
        p95_ratio: float | None = None,
        prefer: Preference = "knee",
        out: str | Path | None = None,
        *,
        throughput_rps: float | None = None,
        throughput_ratio: float | None = None,
        memory_mb: float | None = None,
    ) -> Json:
        """Confirm finalists on test, write and register the bundle of the first that holds; limits as in `Policy`.

        Raises:
            NothingConfirmedError: none does.
        """
        limit = self.config.quality.max_loss if max_loss is None else max_loss
        slices = dict(self.config.quality.slices)
        policy = Policy(limit, p95_ms, p95_ratio, prefer, slices, throughput_rps, throughput_ratio, memory_mb)
        session = open_session(self.config, self.home)
        return choice_json(choose_run.choose(session, policy, None if out is None else Path(out), self._console))

    def _repr_html_(self) -> str:
        table = self.front()
        return f"<b>{self.name}</b>: not run yet" if table.empty else str(table.to_html())


def _table(points: Iterable[Point]) -> pd.DataFrame:
    table = pd.DataFrame([_flat(point) for point in points])
    return table if table.empty else table.sort_values("p95_ratio").set_index("trial")


def _flat(point: Point) -> dict[str, Scalar | None]:
    return {
        "trial": point.trial,
        "origin": point.origin,
        "p95_ms": point.latency_ms.p95,
        "p95_ratio": point.p95_ratio,
        "p95_ratio_low": point.p95_ratio_interval[0],
        "p95_ratio_high": point.p95_ratio_interval[1],
        "throughput_ratio": point.throughput_ratio,
        "capacity_ratio": point.capacity_ratio,
        "loss": point.quality.loss,
        "loss_low": point.quality.loss_interval[0],
        "loss_high": point.quality.loss_interval[1],
        "feasible": point.feasible,
        "model_bytes": point.model_bytes,
        **point.knobs,
    }

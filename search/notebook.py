"""The same road from Python: a study as an object, its front as a table, its figure, its choice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from search import session as launch
from search.choose.choose import Policy, Preference
from search.cli.console import Console
from search.cli.validation import validated
from search.config.sections import StudyConfig
from search.config.study_file import load, parse
from search.home import Home
from search.report.report import Figure, front_figure, write_report
from search.results import Document
from search.verdict import verdict


class Study:
    """A study in a home; one that was begun goes on.

    study = leanrec.Study.from_file("shop.yaml")
    study.run(minutes=10)
    study.front()
    study.choose(prefer="latency")
    """

    def __init__(self, settings: Mapping[str, Any] | StudyConfig, home: str | Path | None = None) -> None:
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
    def from_file(cls, path: str | Path, home: str | Path | None = None, **overrides: Any) -> Study:
        """A preset's name or a YAML file.

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

    def validate(self) -> Document:
        """Every stage once and briefly; what can be compressed, what is left alone and why."""
        return validated(self.config, self.home, self._console)

    def run(self, minutes: float | None = None, trials: int | None = None) -> Study:
        """Search until the minutes or trials, in all, are used up; an interrupt keeps what was finished."""
        given = {"minutes": minutes, "trials": trials}
        budget = self.config.budget.model_copy(update={k: v for k, v in given.items() if v is not None})
        launch.run(self.config.model_copy(update={"budget": budget}), self.home, self._console)
        return self

    def document(self) -> Document:
        """All that is known of the study, as `leanrec front --json` prints it."""
        return launch.open_session(self.config, self.home).document()

    def front(self) -> pd.DataFrame:
        """A row for each point of the front and the baseline, the fastest first; ratios are to the baseline."""
        return self._table(lambda row: row["on_front"] or row["trial"] == 0)

    def trials(self) -> pd.DataFrame:
        """A row for each trial that was measured."""
        return self._table(lambda row: True)

    def _table(self, wanted: Any) -> pd.DataFrame:
        rows = [row for row in self.document()["rows"] if row["state"] == "complete" and wanted(row)]
        table = pd.DataFrame([_flat(row) for row in rows])
        return table if table.empty else table.sort_values("p95_ratio").set_index("trial")

    def figure(self) -> Figure:
        """The front: p95 ratio, loss and throughput, with intervals."""
        return front_figure(self.document())

    def verdict(self) -> str:
        """Return the conclusion so far, in a sentence."""
        return verdict(self.document()).headline

    def report(self) -> Path:
        """One HTML file; its path."""
        path = self.home.reports(self.name) / "report.html"
        write_report(self.document(), path)
        return path

    def choose(
        self,
        max_loss: float | None = None,
        p95_ms: float | None = None,
        p95_ratio: float | None = None,
        prefer: Preference = "knee",
        out: str | Path | None = None,
    ) -> Document:
        """Confirm finalists on test, write and register the bundle of the first that holds.

        Raises:
            NothingConfirmedError: none does.
        """
        limit = self.config.quality.max_loss if max_loss is None else max_loss
        policy = Policy(limit, p95_ms, p95_ratio, prefer, dict(self.config.quality.slices))
        session = launch.open_session(self.config, self.home)
        return launch.choose(session, policy, None if out is None else Path(out), self._console)

    def _repr_html_(self) -> str:
        table = self.front()
        return f"<b>{self.name}</b>: not run yet" if table.empty else str(table.to_html())


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    latency, quality = row["latency_ms"], row["quality"]
    return {
        "trial": row["trial"],
        "origin": row["origin"],
        "p95_ms": latency["p95"],
        "p95_ratio": latency["p95_ratio"],
        "p95_ratio_low": latency["p95_ratio_interval"][0],
        "p95_ratio_high": latency["p95_ratio_interval"][1],
        "throughput_ratio": row["throughput_ratio"],
        "capacity_ratio": row["capacity_ratio"],
        "loss": quality["loss"],
        "loss_low": quality["loss_interval"][0],
        "loss_high": quality["loss_interval"][1],
        "feasible": row["feasible"],
        "model_bytes": row["model_bytes"],
        **row["knobs"],
    }

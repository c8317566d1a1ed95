"""Quality of a challenger against the champion, on the held-out rows of the study."""

from __future__ import annotations

from pathlib import Path

from objectives.records import Prepared, Quality
from objectives.serving.bundle import Bundle
from search.choose.rebuild import bundle_side, encoding_of, recoded
from search.cli.console import Console
from search.config.sections import StudyConfig
from search.home import Home
from search.locking import locked
from search.session import jobs_of, open_session
from search.study import exists
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import open_workers
from spaces.serialization import from_plain


def held_out_loss(
    config: StudyConfig, home: Home, challenger: Bundle, champion: Bundle, console: Console
) -> tuple[Quality | None, str | None]:
    """Evaluate both bundles on validation, which costs no look at test.

    Returns:
        The quality, or the reason why it cannot be known here: the study or its rows are not in this home.

    Raises:
        ConfigError: the study was begun with other settings, or is being run.
        JobError: the evaluation failed.
    """
    if not exists(config.name, home.storage(config.storage)):
        return None, f"the study {config.name!r} was not run in {home.root}"
    session = open_session(config, home)
    facts = session.study.facts
    if "prepared" not in facts:
        return None, f"the study {config.name!r} was not prepared in {home.root}"
    prepared = from_plain(Prepared, facts["prepared"])
    if not (rows := Path(prepared.holdout) / "validation.npz").is_file():
        return None, f"{rows} is gone"
    for bundle in (challenger, champion):
        if (reason := recoded(encoding_of(bundle.folder), prepared)) is not None:
            return None, f"{bundle.folder}: {reason}"
    console.say("promote: evaluating both on validation")
    with locked(home, config.name), open_workers(home.logs(config.name)) as workers:
        jobs = jobs_of(session.config, home, prepared)
        pairs = PairedComparison(jobs, workers.builder, workers.meter, console)
        ours, theirs = (bundle_side(bundle, home) for bundle in (challenger, champion))
        return pairs.evaluate(ours, "validation", beside=theirs), None

"""Quality of a challenger against the champion, on the held-out rows of the study."""

from __future__ import annotations

from objectives.records import Quality
from objectives.serving.bundle import Bundle
from search.choose.rebuild import bundle_side
from search.cli.console import Console
from search.config.sections import StudyConfig
from search.errors import ConfigError, JobError
from search.home import Home
from search.session import open_session
from search.study import exists
from search.workers.processes import open_workers


def held_out_loss(
    config: StudyConfig, home: Home, champion: Bundle, challenger: Bundle, console: Console
) -> tuple[Quality | None, str | None]:
    """Evaluate both bundles on validation, which costs no look at test.

    Returns:
        The quality, or the reason why there is none: the study is not in this home, or its rows do not fit a bundle.
    """
    if not exists(config.name, home.storage(config.storage)):
        return None, f"the study {config.name!r} was not run in {home.root}"
    try:
        session = open_session(config, home)
        with open_workers(home.logs(config.name)) as workers:
            pairs = session.pairs(session.front(), workers, console)
            sides = [bundle_side(bundle, home) for bundle in (challenger, champion)]
            return pairs.evaluate(sides[0], "validation", beside=sides[1]), None
    except (ConfigError, JobError) as error:
        return None, str(error)

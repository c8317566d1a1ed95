"""A registered model of toy bundles, and the state that its shadowing would leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from mlflow.tracking import MlflowClient

from objectives.serving.bundle import read_bundle
from objectives.shadow.batch_means import BATCHES, BatchMeans
from objectives.shadow.score_differences import ScoreDifferences
from objectives.shadow.state import Counts, ShadowState, write_state
from search.home import Home
from search.ledger.aliases import Aliases
from search.ledger.registry import register
from tests.serve_tests.bundles import write_toy

STUDY = "name: toy\nrecommender: toy_shop:factory\n"


def store(home: Home) -> str:
    return f"sqlite:///{home.mlruns / 'mlflow.db'}"


def open_aliases(home: Home) -> Aliases:
    return Aliases.open("toy", store(home), home)


def crowned(home: Home, bundle: Path) -> Aliases:
    """Register a bundle as the first champion."""
    client = MlflowClient(store(home))
    run = client.create_run(client.create_experiment("e", home.artifacts.as_uri())).info.run_id
    assert register(client, store(home), "toy", bundle, run, {}).alias == "champion"
    return open_aliases(home)


def study_file(folder: Path) -> str:
    (folder / "toy.yaml").write_text(STUDY)
    return str(folder / "toy.yaml")


def rivals(home: Home, folder: Path) -> tuple[Aliases, Path, Path]:
    """A champion and a challenger that are registered, and their folders."""
    champion, challenger = write_toy(folder / "champion"), write_toy(folder / "challenger", seed=1)
    aliases = crowned(home, champion)
    aliases.challenge(challenger, "hash", {"candidate": "c"})
    return aliases, champion, challenger


def good_state(champion: Path, challenger: Path) -> ShadowState:
    """The state of a challenger as fast as the champion, with nearly its scores."""
    rng = np.random.default_rng(0)
    scores, times = rng.normal(size=200), tuple(rng.uniform(1, 1.01, 2000).tolist())
    differences = ScoreDifferences().with_request(scores, scores + 0.1)
    state = ShadowState(read_bundle(champion).version, read_bundle(challenger).version, 700.0)
    equal = BatchMeans((0.0,) * BATCHES)
    return replace(
        state,
        counts=Counts(2000),
        differences=differences,
        champion_ms=times,
        challenger_ms=times,
        log_p95_ratios=equal,
    )


def write_good_state(home: Home, champion: Path, challenger: Path) -> Path:
    """Write the state of a server, and return the folder of all servers' states."""
    folder = home.shadow_states("toy")
    write_state(good_state(champion, challenger), folder / "server-0.json")
    return folder

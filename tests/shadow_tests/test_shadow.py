"""The server's side of shadowing beside real processes: picks, drops, failures, and a challenger that changes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from objectives.serving.http.model import Model
from objectives.shadow import child as child_module
from objectives.shadow.shadow import Shadow
from objectives.shadow.state import ShadowState
from objectives.shadow.state_files import read_states
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.process import SOON, wait_patiently

REQUEST = draw_request(3)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model.open(write_toy(tmp_path_factory.mktemp("champion") / "bundle"))
    yield model
    model.close()


@pytest.fixture(scope="module")
def scores(champion: Model) -> np.ndarray:
    return champion.pool.submit(REQUEST).result(SOON)


@contextmanager
def shadowing(
    champion: Model, find: Callable[[], Path | None], folder: Path, share: float = 1.0, patience: float = 20.0
) -> Iterator[Shadow]:
    shadow = Shadow(find, share, lambda name: folder / name, 0.1, 1.0, lambda line: None, patience)
    shadow.start(lambda: champion)
    try:
        yield shadow
    finally:
        shadow.close()
        # A busy machine may take a while to end one that was killed.
        wait_patiently(lambda: not multiprocessing.active_children())


def known(shadow: Shadow, name: str) -> Any:
    return (shadow.document() or {}).get(name)


def counted(shadow: Shadow, result: str) -> int:
    counts = known(shadow, "counts")
    return 0 if counts is None else int(counts[result])


def state_of(folder: Path) -> ShadowState | None:
    """The state of the only server."""
    states = read_states(folder / "toy")
    assert len(states) <= 1
    return next(iter(states), None)


def saved(folder: Path) -> int:
    """The requests that are known in the state's file."""
    state = state_of(folder)
    return 0 if state is None else state.counts.shadowed


def is_active(shadow: Shadow) -> bool:
    return bool(known(shadow, "active"))


def test_a_challenger_that_hangs_is_replaced_and_its_requests_failed(
    champion: Model, scores: np.ndarray, tmp_path: Path
) -> None:
    hanging = write_toy(tmp_path / "hanging", waiting(3600))
    with shadowing(champion, lambda: hanging, tmp_path, patience=2.0) as shadow:
        wait_patiently(lambda: is_active(shadow))
        for _ in range(40):
            shadow.offer(champion, REQUEST, scores, 0)
        assert counted(shadow, "dropped") >= 40 - 16 - 2, "no more wait than the queue holds"
        # The next process tells of it before it gets requests.
        wait_patiently(lambda: known(shadow, "last_failure") is not None and is_active(shadow))
        assert "did not answer within 2 s" in known(shadow, "last_failure")
    state = state_of(tmp_path)
    assert state is not None and state.counts.failed >= 1 and state.counts.shadowed == 0


def test_a_challenger_that_has_no_core_is_not_compared_and_has_not_failed(
    champion: Model, scores: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The challenger hangs; the kernel says that it waited for a core meanwhile."""
    start = time.monotonic()
    monkeypatch.setattr(child_module, "run_delay_ms", lambda process: 1e3 * (time.monotonic() - start))
    hanging = write_toy(tmp_path / "hanging", waiting(3600))
    with shadowing(champion, lambda: hanging, tmp_path, patience=0.2) as shadow:
        wait_patiently(lambda: is_active(shadow))
        first = shadow._child
        shadow.offer(champion, REQUEST, scores, 0)
        wait_patiently(lambda: counted(shadow, "starved") == 1)
        wait_patiently(lambda: shadow._child is not first and is_active(shadow))
        assert counted(shadow, "failed") == 0 and known(shadow, "last_failure") is None
    state = state_of(tmp_path)
    assert state is not None and (state.counts.starved, state.counts.failed, state.counts.not_compared) == (1, 0, 1)


def test_two_servers_in_one_home_keep_both_their_states(champion: Model, scores: np.ndarray, tmp_path: Path) -> None:
    challenger = write_toy(tmp_path / "challenger", seed=1)
    with shadowing(champion, lambda: challenger, tmp_path) as one:
        other = Shadow(lambda: challenger, 1.0, lambda name: tmp_path / name, 0.1, 1.0, lambda line: None)
        other.start(lambda: champion)
        wait_patiently(lambda: is_active(one) and is_active(other))
        for shadow, requests in ((one, 2), (other, 3)):
            for _ in range(requests):
                shadow.offer(champion, REQUEST, scores, 0)
            wait_patiently(lambda shadow=shadow, requests=requests: counted(shadow, "shadowed") == requests)
        other.close()
    states = read_states(tmp_path / "toy")
    assert sorted(state.counts.shadowed for state in states) == [2, 3]
    assert {state.challenger for state in states} == {read_bundle(challenger).version}


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure_and_the_next_one_goes_on(
    champion: Model, scores: np.ndarray, tmp_path: Path
) -> None:
    challenger = write_toy(tmp_path / "challenger", seed=1)
    with shadowing(champion, lambda: challenger, tmp_path) as shadow:
        wait_patiently(lambda: is_active(shadow))
        shadow.offer(champion, REQUEST, scores, 0)
        wait_patiently(lambda: saved(tmp_path) == 1)
        first = shadow._child
        (process,) = multiprocessing.active_children()
        process.kill()
        wait_patiently(lambda: counted(shadow, "failed") == 1)
        wait_patiently(lambda: shadow._child is not first and is_active(shadow))
        shadow.offer(champion, REQUEST, scores, 0)
        wait_patiently(lambda: counted(shadow, "shadowed") == 2)
        assert known(shadow, "last_failure") == "its process ended with status -9"


@pytest.mark.slow
def test_requests_are_picked_by_the_share_and_not_under_pressure(
    champion: Model, scores: np.ndarray, tmp_path: Path
) -> None:
    """Two requests wait, for one replica."""
    challenger = write_toy(tmp_path / "challenger", seed=1)
    with shadowing(champion, lambda: challenger, tmp_path, share=0.25) as shadow:
        shadow.offer(champion, REQUEST, scores, 2)
        wait_patiently(lambda: is_active(shadow))
        for _ in range(4000):
            shadow.offer(champion, REQUEST, scores, 2)
        # A binomial of 4000 and 0.25 lies within six standard deviations.
        assert abs(counted(shadow, "refused") - 1000) < 6 * (4000 * 0.25 * 0.75) ** 0.5
        assert counted(shadow, "dropped") == counted(shadow, "shadowed") == 0


@pytest.mark.slow
def test_the_challenger_is_followed(champion: Model, scores: np.ndarray, tmp_path: Path) -> None:
    """There is no challenger at first, then one after another, the champion itself, and a registry that is away."""
    bundles = {name: write_toy(tmp_path / name, seed=seed) for seed, name in enumerate(("same", "one", "two"))}
    now: list[str | None] = [None]

    def find() -> Path | None:
        if now[0] == "away":
            raise OSError("the registry is away")
        return None if now[0] is None else bundles[now[0]]

    with shadowing(champion, find, tmp_path) as shadow:
        for name in ("one", "two"):
            shadow.offer(champion, REQUEST, scores, 0)
            now[0] = name
            version = read_bundle(bundles[name]).version
            wait_patiently(lambda version=version: known(shadow, "challenger") == version and is_active(shadow))
            shadow.offer(champion, REQUEST, scores, 0)
            wait_patiently(lambda: counted(shadow, "shadowed") == 1)
        now[0] = "away"
        shadow.offer(champion, REQUEST, scores, 0)
        wait_patiently(lambda: counted(shadow, "shadowed") == 2)
        now[0] = "same"
        wait_patiently(lambda: not is_active(shadow))
        now[0] = None
    state = state_of(tmp_path)
    assert state is not None and state.challenger == version, "the champion itself leaves no state"

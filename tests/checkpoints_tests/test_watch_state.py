"""The steps of checkpoints, killed at every instant: nothing is lost, and nothing is done to a checkpoint twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from objectives.errors import InputError
from search.checkpoints.watch_state import MOST_BUILDS, Outcome, Step, WatchState, Work, advance, read_watch
from search.errors import LostJobError
from search.home import write_json


class KilledError(BaseException):
    """The process ends here."""


class World:
    """Files and a registry, which outlast a kill; and instants at which a process is killed, each once.

    A checkpoint's name tells what is wrong with it: "bad" is refused when it is built, "odd" when it is shadowed, and
    "same" is the champion's own, and "slow" has no verdict in time.
    """

    def __init__(self, kills: Iterable[int] = ()) -> None:
        self._kills, self.instant, self.dead = set(kills), 0, False
        self.files: set[str] = set()
        self.versions: list[str] = []
        self.challenger: str | None = None
        self.champions = ["first"]
        self.builds: list[str] = []
        self.looks = 0

    def tick(self) -> None:
        """Pass an instant; a process that was killed does nothing more, in no handler of errors either."""
        self.instant += not self.dead
        if self.dead or self.instant in self._kills:
            self.dead = True
            raise KilledError

    def save(self, state: WatchState, file: Path) -> None:
        self.tick()
        write_json(state, file)
        self.tick()

    # The steps.

    def build(self, work: Work) -> tuple[Step, str]:
        self.tick()
        self.builds.append(work.checkpoint)
        self.files.add(work.checkpoint)
        self.tick()
        if "bad" in work.checkpoint:
            return "refuse", "it is bad"
        return ("leave", "it is known") if "same" in work.checkpoint else ("register", "it is good")

    def register(self, work: Work) -> str:
        self.tick()
        assert work.checkpoint in self.files
        if work.checkpoint not in self.versions:
            self.versions.append(work.checkpoint)
        self.tick()
        self.challenger = work.checkpoint
        self.tick()
        return str(self.versions.index(work.checkpoint))

    def shadow(self, work: Work) -> tuple[Step, str, str]:
        return (*self._look(work), self.champions[-1])

    def _look(self, work: Work) -> tuple[Step, str]:
        self.tick()
        self.looks += 1
        if self.champions[-1] != work.checkpoint:
            assert self.challenger == work.checkpoint, "the server sees it"
        if self.looks % 3:
            return "shadow", work.reason
        if "slow" in work.checkpoint:
            return "give up", "its time is over"
        return ("refuse", "it is odd") if "odd" in work.checkpoint else ("promote", "it holds")

    def promote(self, work: Work) -> bool:
        self.tick()
        if self.champions[-1] != work.checkpoint:
            assert work.champion == self.champions[-1], "it is compared with the champion"
            self.champions.append(work.checkpoint)
        self.tick()
        self.challenger = None
        self.tick()
        return True

    def withdraw(self, work: Work, outcome: Outcome) -> None:
        self.tick()
        waits = "slow" in work.checkpoint and "cut short" not in work.reason
        assert work.reason and outcome == ("undecided" if waits else "refused")
        if self.challenger == work.checkpoint:
            self.challenger = None
        self.tick()

    def clear(self, work: Work) -> None:
        self.tick()
        self.files.discard(work.checkpoint)
        self.tick()


def nights(world: World, checkpoints: Sequence[str], file: Path) -> WatchState:
    """One checkpoint a night, through processes that are killed and started again."""
    for checkpoint in checkpoints:
        while not read_watch(file).knows(checkpoint):
            try:
                _process(world, checkpoint, file)
            except KilledError:
                continue
    return read_watch(file)


def _process(world: World, checkpoint: str, file: Path) -> None:
    world.dead, state = False, read_watch(file)
    if state.work is None:
        state = replace(state, work=Work(checkpoint, f"{checkpoint}.pt"))
        world.save(state, file)
    while state.work is not None:
        state = advance(state, world, lambda new: world.save(new, file), lambda: 1.0)


ALL = ("a", "bad b", "c", "odd d", "same e", "slow f", "g")
OUTCOMES = ("promoted", "refused", "promoted", "refused", "unchanged", "undecided", "promoted")


def _check(world: World, found: WatchState) -> None:
    assert [one.checkpoint for one in found.decided] == list(ALL)
    assert tuple(one.outcome for one in found.decided) == OUTCOMES
    assert all(one.reason for one in found.decided)
    assert world.champions == ["first", "a", "c", "g"], "each once, in order"
    assert world.versions == ["a", "c", "odd d", "slow f", "g"], "each once"
    assert world.challenger is None and world.files == set() and found.work is None


def _instants(tmp_path: Path) -> int:
    world = World()
    _check(world, nights(world, ALL, tmp_path / "whole.json"))
    assert world.builds == list(ALL), "without a kill, each is built once"
    return world.instant


def test_a_kill_at_any_instant_changes_nothing(tmp_path: Path) -> None:
    instants = _instants(tmp_path)
    assert instants > 100
    for instant in range(1, instants + 1):
        world = World([instant])
        _check(world, nights(world, ALL, tmp_path / f"{instant}.json"))
        assert len(world.builds) <= len(ALL) + 1


@given(kills=st.sets(st.integers(1, 250), max_size=40))
@example(kills={104, 106, 108})  # all builds of the one that waits in vain
def test_many_kills_change_nothing_but_builds_that_never_end(
    kills: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A build that is killed too often is refused, since the checkpoint may be what kills it."""
    world = World(kills)
    found = nights(world, ALL, tmp_path_factory.mktemp("nights") / "state.json")
    assert [one.checkpoint for one in found.decided] == list(ALL)
    promoted = [one.checkpoint for one in found.decided if one.outcome == "promoted"]
    assert world.champions == ["first", *promoted]
    for one, expected in zip(found.decided, OUTCOMES, strict=True):
        cut_short = "cut short" in one.reason
        assert one.outcome == ("refused" if cut_short else expected)
        assert world.builds.count(one.checkpoint) <= MOST_BUILDS
    assert len(world.versions) == len(set(world.versions)) and world.files == set()


class Ending(World):
    """A world whose builds end with an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def build(self, work: Work) -> tuple[Step, str]:
        self.builds.append(work.checkpoint)
        raise self.error


def _ended(error: BaseException, times: int, file: Path) -> tuple[World, WatchState]:
    world = Ending(error)
    for _ in range(times):
        with pytest.raises(type(error)):
            _process(world, "a", file)
    return world, read_watch(file)


def test_a_build_that_kills_its_workers_is_refused_after_a_few_attempts(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    world, found = _ended(LostJobError("The meter was ended by SIGKILL"), MOST_BUILDS, file)
    assert found.work is not None and found.work.builds == MOST_BUILDS
    _process(world, "a", file)
    (decided,) = read_watch(file).decided
    assert decided.outcome == "refused" and str(MOST_BUILDS) in decided.reason and len(world.builds) == MOST_BUILDS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("the study is being run")])
def test_what_says_nothing_of_the_checkpoint_is_tried_again_for_ever(error: BaseException, tmp_path: Path) -> None:
    _, found = _ended(error, 3 * MOST_BUILDS, tmp_path / "state.json")
    assert found.work == Work("a", "a.pt") and found.decided == ()


@pytest.mark.parametrize("text", ["", "[]", '{"work": {"file": 1}}', json.dumps({"decided": [{}]})])
def test_a_file_that_is_no_state_is_bad_input(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state.json: must be the state of a watch"):
        read_watch(tmp_path / "state.json")

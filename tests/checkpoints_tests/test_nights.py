"""Five retrained checkpoints and poisoned ones through `leanrec watch`, under traffic."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from objectives.serving.bundle import read_bundle
from search.ledger.aliases import Aliases
from tests.checkpoints_tests.nights import Shop, Traffic, wait_until_long
from tests.serve_tests.process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# What is wrong with a checkpoint: a word of the reason for which it is refused.
POISONED = {"shuffled": "loses", "nan": "NaN", "shapes": "state_dict", "truncated": "the factory failed"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    found = Shop(tmp_path_factory.mktemp("shop"))
    found.crown()
    return found


def version_of(shop: Shop, alias: str) -> str:
    aliases = Aliases.open("shop", shop.home.tracking_uri(None), shop.home)
    version = aliases.version(alias)
    assert version is not None
    return read_bundle(aliases.folder(version)).version


@pytest.mark.parametrize("nights", [1, pytest.param(5, marks=pytest.mark.nightly)])
def test_retrained_checkpoints_are_promoted_and_poisoned_ones_refused(nights: int, tmp_path: Path) -> None:
    """A night has a retrained checkpoint; after them come as many poisoned ones, at most one of each kind."""
    shop = Shop(tmp_path)
    shop.crown()
    with shop.served() as server:
        traffic = Traffic(server.url)
        expected = [version_of(shop, "champion")]
        with traffic.running():
            for seed in range(1, nights + 1):
                shop.train(shop.checkpoints / f"night-{seed}.pt", "retrained", seed)
                if seed == min(2, nights):
                    shop.killed_while("shadow")
                if seed == 3:
                    shop.killed_while("build")
                found = shop.decide()
                assert found["outcome"] == "promoted", found
                expected.append(version_of(shop, "champion"))
                wait_until(lambda seed=seed: server.metric("leanrec_swaps_total", result="done") == seed)
                assert httpx.get(server.url).json()["versions"] == [expected[-1]]
                assert shop.decide()["outcome"] is None, "the same checkpoint again changes nothing"
            for seed, (kind, word) in enumerate([*POISONED.items()][:nights], 6):
                shop.train(shop.checkpoints / f"night-{seed}.pt", kind, seed)
                found = shop.decide()
                assert found["outcome"] == "refused" and word in found["reason"], found
                assert version_of(shop, "champion") == expected[-1]
            wait_until_long(lambda: traffic.versions[-1:] == expected[-1:])
        assert traffic.ended.keys() == {200}, "no request failed"
        assert traffic.versions == expected and len(set(expected)) == nights + 1
        assert shop.step is None and not [path for path in shop.home.watch("shop").iterdir() if path.is_dir()]


def test_a_challenger_that_nobody_asks_is_undecided_in_the_end(shop: Shop) -> None:
    """No server runs, so that nothing is shadowed."""
    shop.train(shop.checkpoints / "night-20.pt", "retrained", 20)
    process = shop.watch("--patience-minutes", "0.05")
    out, _ = process.communicate(timeout=600)
    assert (
        process.returncode == 1
        and json.loads(out)["outcome"] == "undecided"
        and "after 0.05 minutes of shadowing" in out
    )
    aliases = Aliases.open("shop", shop.home.tracking_uri(None), shop.home)
    assert aliases.version("challenger") is None


def test_a_watch_that_cannot_be_is_one_line_and_status_2(shop: Shop, tmp_path: Path) -> None:
    process = shop.watch("--checkpoint", str(tmp_path / "nowhere" / "model.pt"))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2 and out == "" and len(err.splitlines()) == 1 and "--checkpoint" in err

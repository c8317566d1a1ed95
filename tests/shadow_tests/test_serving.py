"""A real server with a challenger: clients see the champion's answers only, whatever the challenger does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from objectives.shadow.score_differences import ScoreDifferences
from objectives.shadow.state_files import read_states
from search.cli.parser import run_command
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.process import SOON, ServerProcess, serving, wait_patiently
from tests.shadow_tests.challengers import write_failing, write_not_finite

ROWS = 24


def requests(count: int) -> list[dict[str, np.ndarray]]:
    return [draw_request(ROWS, seed) for seed in range(count)]


def served(bundle: Path, asked: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    with read_bundle(bundle).open() as pool:
        return [pool.submit(request).result(SOON) for request in asked]


def shadowing(server: ServerProcess) -> dict[str, Any] | None:
    """The document of the shadowing in the server's statistics."""
    (found,) = httpx.get(f"{server.url}/stats").json()["model_stats"]
    return found["shadow"]  # type: ignore[no-any-return]


def counted(server: ServerProcess, result: str) -> float:
    return server.metric("leanrec_shadow_requests_total", result=result)


def send(server: ServerProcess, asked: list[dict[str, np.ndarray]], expected: list[np.ndarray]) -> None:
    """Send requests one after another; each answer is the champion's, byte for byte."""
    with httpx.Client(timeout=SOON) as client:
        for request, scores in zip(asked, expected, strict=True):
            response = client.post(f"{server.url}/infer", json=oracle.json_request(request))
            assert response.status_code == 200
            assert oracle.read_scores(response.content, None)[1].tobytes() == scores.tobytes()


def options(tmp_path: Path, challenger: Path) -> tuple[str, ...]:
    state = str(tmp_path / "states")
    return ("--challenger", str(challenger), "--shadow-share", "1", "--shadow-state", state)


def active(server: ServerProcess) -> None:
    wait_patiently(lambda: server.metric("leanrec_shadow_active") == 1)


@pytest.mark.parametrize("starts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_scores_are_compared_and_the_state_survives_a_restart(starts: int, tmp_path: Path) -> None:
    champion, challenger = write_toy(tmp_path / "champion"), write_toy(tmp_path / "challenger", seed=1)
    asked = requests(16)
    theirs, ours = served(champion, asked), served(challenger, asked)
    expected = ScoreDifferences()
    for pair in zip(theirs, ours, strict=True):
        expected = expected.with_request(*pair)
    for start in range(1, starts + 1):
        with serving(champion, tmp_path / "log", *options(tmp_path, challenger)) as server:
            active(server)
            found = shadowing(server)
            assert found is not None and found["counts"]["shadowed"] == 16 * (start - 1), "from the state's file"
            send(server, asked, theirs)  # no more than may wait, so that none is dropped
            wait_patiently(lambda server=server, start=start: counted(server, "shadowed") == 16 * start)
            wait_patiently(lambda server=server, start=start: shadowing(server)["ranked_requests"] == 16 * start)
            found = shadowing(server)
            assert found is not None and found["counts"] == {
                "shadowed": 16 * start, "dropped": 0, "refused": 0, "starved": 0, "failed": 0, "not_finite": 0,
            }  # fmt: skip
            assert found["mean_difference"] == pytest.approx(expected.mean_difference)
            assert found["rank_agreement"] == pytest.approx(expected.rank_agreement)
            assert server.metric("leanrec_shadow_mean_score_difference") == pytest.approx(expected.mean_difference)
            versions = {"champion": server.version, "challenger": read_bundle(challenger).version}
            assert server.metric("leanrec_shadow_model", **versions) == 1
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(SOON) == 0
    (state,) = read_states(tmp_path / "states")
    assert state.counts.shadowed == 16 * starts and state.seconds > 0


Write = Callable[[Path], Path]


def write_hanging(folder: Path) -> Path:
    return write_toy(folder, waiting(3600), seed=1)


def write_slow(folder: Path) -> Path:
    return write_toy(folder, waiting(0.05), seed=1)


@pytest.mark.parametrize(
    ("write", "result"),
    [
        pytest.param(write_failing, "failed", id="fails"),
        pytest.param(write_not_finite, "not_finite", id="is not finite", marks=pytest.mark.slow),
        pytest.param(write_hanging, "dropped", id="hangs", marks=pytest.mark.slow),
        pytest.param(write_slow, "shadowed", id="is slow", marks=pytest.mark.slow),
    ],
)
def test_clients_see_nothing_of_a_challenger(write: Write, result: str, tmp_path: Path) -> None:
    champion, challenger = write_toy(tmp_path / "champion"), write(tmp_path / "challenger")
    asked = requests(60)
    expected = served(champion, asked)
    with serving(champion, tmp_path / "log", *options(tmp_path, challenger)) as server:
        active(server)
        for _ in range(2):
            send(server, asked, expected)
        wait_patiently(lambda: counted(server, result) > 0)
        assert server.metric("leanrec_requests_total", status="200") == 120
        if result == "failed":
            wait_patiently(lambda: "indices" in ((shadowing(server) or {})["last_failure"] or ""))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SOON) == 0, "a challenger that hangs does not keep the server"
    assert "120 requests were answered, 0 were not" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_challenger_that_cannot_be_used_is_told_and_the_champion_serves(tmp_path: Path) -> None:
    champion, challenger = write_toy(tmp_path / "champion"), write_toy(tmp_path / "challenger", seed=1)
    data = (challenger / "model.onnx").read_bytes()
    (challenger / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    asked = requests(5)
    with serving(champion, tmp_path / "log", *options(tmp_path, challenger)) as server:
        wait_patiently(lambda: "model.onnx was changed" in ((shadowing(server) or {}).get("unusable") or ""))
        send(server, asked, served(champion, asked))
        assert counted(server, "shadowed") == 0 and server.metric("leanrec_shadow_active") == 0
        # Mended, it is used after a SIGHUP.
        write_toy(challenger, seed=1)
        server.process.send_signal(signal.SIGHUP)
        active(server)
    (state,) = read_states(tmp_path / "states")
    assert state.unusable is None


def test_a_shadowing_that_cannot_be_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    champion, notes = str(write_toy(tmp_path / "champion")), tmp_path / "notes" / "notes.json"
    notes.parent.mkdir()
    notes.write_text("mine")
    for wrong, words in (
        (("--challenger", str(tmp_path / "nothing")), "--challenger: must be a folder"),
        (("--challenger", "models:/nobody@challenger"), "--challenger: models:/nobody@challenger must be registered"),
        (("--challenger", champion, "--shadow-state", str(notes.parent)), "must be the state of a shadowing"),
        (("--challenger", champion, "--shadow-state", str(notes)), "--shadow-state: must be a folder"),
        (("--challenger", champion, "--shadow-state", str(tmp_path / "no" / "states")), "--shadow-state"),
        (("--challenger", champion, "--shadow-window", "0"), "--shadow-window"),
        *(
            (("--challenger", champion, "--shadow-share", share), "--shadow-share")
            for share in ("0", "1.5", "x", "nan")
        ),
    ):
        assert run_command(["serve", champion, "--home", str(tmp_path / "home"), *wrong]) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.splitlines()) == 1
    assert notes.read_text() == "mine" and not (tmp_path / "home").exists()

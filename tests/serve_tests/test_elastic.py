"""A server with a controller: a real process, real clients, and no failed request."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from objectives.serving.bundle import open_verified, read_bundle
from objectives.serving.control.elastic import Elastic, ElasticSettings
from objectives.serving.control.plan_file import read_plan
from objectives.serving.control.windows import Windows
from objectives.serving.http.inference import Inference
from objectives.serving.http.limits import Limits
from objectives.serving.http.model import Model
from objectives.serving.http.model_slot import ModelSlot
from spaces.serialization import digest
from spaces.techniques.quantization import Precision
from tests.control_tests.plans import PLACEMENT, document, write_bundles, write_plan
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, write_toy
from tests.serve_tests.clients import Clients
from tests.serve_tests.process import ROOT, SOON, ServerProcess, serving, wait_until

REQUEST = draw_request(3)
PLAIN = oracle.json_request(REQUEST)
WINDOWS = "2,1,0.1"


def events(timeline: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in timeline.read_text().splitlines()]


def served(server: ServerProcess) -> tuple[float, float]:
    return server.metric("leanrec_controller_loss"), server.metric("leanrec_controller_replicas")


def slow_plan(folder: Path) -> Path:
    """Write a plan in which a replica of the exact variant can do 4 requests/s, and one is to come."""
    return write_plan(folder / "plan.json", document([(0, 1.0)], time.time(), exact_rps=4.0))


def expected_scores(bundle: Path) -> tuple[str, np.ndarray]:
    opened, pool, _ = open_verified(bundle)
    with pool:
        return digest(opened.manifest)[:12], pool.submit(REQUEST).result()


def test_variants_are_switched_under_load_and_back_and_no_request_fails(tmp_path: Path) -> None:
    """Three clients send requests without a pause, then one every 3 s.

    By the plan, a replica of the exact variant can do 4 requests/s, so that clients on a busy machine send more than
    two replicas can do. A window of 1 s of the slow clients has at most three requests that came and three that wait:
    they start no panic.
    """
    exact, fast = write_bundles(tmp_path)
    versions = dict(expected_scores(folder) for folder in (exact, fast))
    plan, timeline = slow_plan(tmp_path), tmp_path / "timeline"
    options = ("--plan", str(plan), "--variant", str(fast), "--windows", WINDOWS, "--timeline", str(timeline))
    with serving(exact, tmp_path / "log", *options) as server:
        assert served(server) == (0.0, 1.0)
        clients = Clients(server.url, PLAIN, 0.001)

        def degraded() -> bool:
            """Return whether the fast variant serves, and clients have sent a number of requests and seen both."""
            seen = {version for version, _ in tuple(clients.seen)} == set(versions)
            return seen and clients.ended[200] > 20 and server.metric("leanrec_controller_loss") == 0.01

        with clients.running(3):
            wait_until(degraded, every_s=0.2)
            clients.gap_s = 3.0
            wait_until(lambda: served(server) == (0.0, 1.0), every_s=0.2)
        assert set(clients.ended) == {200}
        for version, scores in clients.seen:
            np.testing.assert_allclose(np.frombuffer(scores, np.float32), versions[version], rtol=1e-5)
        assert server.metric("leanrec_controller_changes_total", change="degrade") >= 1
        assert server.metric("leanrec_controller_changes_total", change="recover") >= 1
        assert server.metric("leanrec_controller_replica_seconds_total") > 1
        assert server.metric("leanrec_swaps_total", result="done") >= 2
        told = events(timeline)
        switched = [line for line in told if line["event"] == "serving"]
        planned = {"1x1": 0.1, "2x1": 0.2}
        for line in switched:
            assert 0 < line["load_seconds"] < SOON
            assert line["planned_load_seconds"] == planned[line["option"].split()[-1]]
        assert server.metric("leanrec_controller_load_seconds_count") == len(switched)
        seconds = sum(line["load_seconds"] for line in switched)
        assert server.metric("leanrec_controller_load_seconds_sum") == pytest.approx(seconds, abs=0.001 * len(switched))
        assert told[0]["event"] == "start" and told[0]["option"] == "trial 10 1x1"
        decided = [line for line in told if line["event"] == "decision"]
        assert decided[0]["reason"] in ("panic window", "stable window") and decided[0]["held_rps"] > 4
        assert "calm" in [line["reason"] for line in decided if line["change"] == "recover"]
        panics = [line["event"] for line in told if line["event"] in ("panic", "calm")]
        assert panics == ["panic", "calm"] * (len(panics) // 2)
        # Clients that a busy machine slows may need no panic, only another option.
        assert len(panics) >= 2 or decided[0]["reason"] == "stable window"
        log = server.log.read_text()
        assert "degrade from trial 10" in log and "(calm): " in log
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SOON) == 0


@pytest.mark.slow
def test_a_plan_is_followed_and_read_again_and_a_broken_bundle_is_left_out(tmp_path: Path) -> None:
    exact, fast = write_bundles(tmp_path)
    plan = write_plan(tmp_path / "plan.json", document([(0, 5.0)], time.time() + 3600, 1.0))
    timeline = tmp_path / "timeline"
    options = ("--plan", str(plan), "--variant", str(fast), "--windows", "0.4,0.2,0.1", "--timeline", str(timeline))
    with serving(exact, tmp_path / "log", *options) as server:
        assert "nothing is foreseen" in server.log.read_text()
        # The fast variant from second 1 on.
        write_plan(plan, document([(0, 5.0), (1, 150.0)], time.time(), 3.0))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served(server) == (0.01, 2.0))
        planned = next(line for line in events(timeline) if line["event"] == "decision" and line["reason"] == "plan")
        assert planned["planned_rps"] in (5.0, 150.0)
        wait_until(lambda: served(server) == (0.0, 1.0))  # the plan has ended
        (fast / "model.onnx").write_bytes(b"")
        write_plan(plan, document([(1, 150.0)] * 60, time.time(), 1.0))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.metric("leanrec_controller_failures_total") == 1)
        assert served(server) == (0.0, 1.0)
        assert "the new plan cannot be served: BUNDLE: " in server.log.read_text()
        write_bundles(tmp_path)
        write_plan(plan, document([(0, 35.0)] * 60, time.time(), 1.0))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served(server) == (0.0, 2.0))
        assert httpx.post(f"{server.url}/infer", json=PLAIN).status_code == 200
        assert any(line["event"] == "reload" for line in events(timeline))


def test_an_option_that_cannot_be_opened_leaves_the_old_one_serving(tmp_path: Path) -> None:
    exact, fast = write_bundles(tmp_path)
    options = ("--plan", str(slow_plan(tmp_path)), "--variant", str(fast), "--windows", WINDOWS)
    with serving(exact, tmp_path / "log", *options) as server:
        (fast / "model.onnx").write_bytes(b"")
        clients = Clients(server.url, PLAIN, 0.001)

        def left_out() -> bool:
            return server.metric("leanrec_controller_failures_total") == 1 and served(server) == (0.0, 2.0)

        with clients.running(3):
            wait_until(left_out, every_s=0.2)
        assert set(clients.ended) == {200}
        assert "cannot be served: BUNDLE: " in server.log.read_text()
        assert {version for version, _ in clients.seen} == {digest(read_bundle(exact).manifest)[:12]}


def test_an_option_of_the_serving_bundle_that_cannot_be_opened_does_not_take_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas of the exact variant are planned for two seconds, but cannot be opened: the fast one serves.

    Then one replica of the exact variant serves again.
    """
    exact, fast = write_bundles(tmp_path)
    phases = [(0, 5.0), (0, 35.0), *[(0, 5.0)] * 60]
    plan = write_plan(tmp_path / "plan.json", document(phases, time.time(), 2.0))
    settings, said = ElasticSettings(plan, None, lambda: (exact, fast), Windows(0.4, 0.2, 0.05), None), list[str]()
    opened = Model.open

    def limited(bundle: Path, placed: Any, policy: str) -> Model:
        if bundle == exact and placed(None).replicas > 1:
            raise MemoryError("two are too many")
        return opened(bundle, placed, policy)

    monkeypatch.setattr(Model, "open", limited)
    versions = [read_bundle(folder).version for folder in (exact, fast, exact)]

    async def served() -> list[str]:
        elastic = Elastic(settings, said.append)
        inference = Inference("toy", ModelSlot(elastic.open(Limits().placed)), Limits())
        running, seen = asyncio.create_task(elastic.run(inference)), [inference.slot.model.version]
        async with asyncio.timeout(SOON):
            while seen != versions:
                await asyncio.sleep(0.01)
                if inference.slot.model.version != seen[-1]:
                    seen.append(inference.slot.model.version)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(inference.slot.model.close)
        return seen

    assert asyncio.run(served()) == versions
    assert sum("trial 10 2x1 cannot be served: " in line for line in said) == 1


def test_bundles_that_move_are_followed(tmp_path: Path) -> None:
    """An alias finds another version of a variant, then one that no plan offers, which is not taken."""
    exact, fast = write_bundles(tmp_path)
    newer = write_toy(tmp_path / "newer", PLACEMENT, seed=5)
    strange = write_toy(tmp_path / "strange", PLACEMENT, seed=6, precision=Precision((("mlp", "int4"),)))
    plan, now, said = write_plan(tmp_path / "plan.json", document([(0, 5.0)], time.time())), [exact], list[str]()
    settings = ElasticSettings(plan, None, lambda: (now[0], fast), Windows(1.0, 0.4, 0.05), None, 0.02)

    async def served() -> list[str]:
        elastic = Elastic(settings, said.append)
        inference = Inference("toy", ModelSlot(elastic.open(Limits().placed)), Limits())
        running, versions = asyncio.create_task(elastic.run(inference)), [inference.slot.model.version]
        now[0] = newer
        async with asyncio.timeout(SOON):
            while inference.slot.model.version == versions[0]:
                await asyncio.sleep(0.01)
            versions.append(inference.slot.model.version)
            now[0] = strange
            while not any("cannot be served" in line for line in said):
                await asyncio.sleep(0.01)
        versions.append(inference.slot.model.version)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(inference.slot.model.close)
        return versions

    assert asyncio.run(served()) == [read_bundle(folder).version for folder in (exact, newer, newer)]


class Steady(Inference):
    """15 requests arrive a second from the first look on, whatever the process does meanwhile."""

    @property
    def arrived(self) -> int:
        now_s = time.monotonic()
        self.began_s = min(self.began_s, now_s)
        return int(15 * (now_s - self.began_s))

    @arrived.setter
    def arrived(self, _: int) -> None:
        self.began_s = math.inf


@pytest.mark.parametrize("step_s", [-2.0, 2.0])
def test_a_clock_that_is_set_is_followed_and_looks_like_no_surge(
    step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One replica can do 20 requests/s, and the wall clock is set by two seconds."""
    exact, fast = write_bundles(tmp_path)
    plan, timeline = write_plan(tmp_path / "plan.json", document([(0, 15.0)], time.time())), tmp_path / "timeline"
    settings = ElasticSettings(plan, None, lambda: (exact, fast), Windows(0.4, 0.2, 0.05), timeline)
    ahead_s, wall_s, said = 0.0, time.time, list[str]()
    monkeypatch.setattr(time, "time", lambda: wall_s() + ahead_s)

    async def served() -> float:
        nonlocal ahead_s
        elastic = Elastic(settings, said.append)
        inference = Steady("toy", ModelSlot(elastic.open(Limits().placed)), Limits())
        running = asyncio.create_task(elastic.run(inference))
        await asyncio.sleep(2)
        ahead_s = step_s
        await asyncio.sleep(2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(inference.slot.model.close)
        return elastic._now_s() - (time.time() - float(read_plan(plan)["start_s"]))

    apart_s = asyncio.run(served())
    assert [line["event"] for line in events(timeline)] == ["start", "clock"]
    assert events(timeline)[1]["step_seconds"] == pytest.approx(step_s, abs=0.5)
    assert abs(apart_s) < 0.5 and sum("the clock was set" in line for line in said) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--variant", "fast"), "--variant: must come with --plan"),
        (("--plan", "none.json"), "--plan: must be a plan.json"),
        (("--windows", "1,2,3"), "--windows: must be STABLE,PANIC,TICK"),
        (("--plan", "plan.json", "--timeline", "none/timeline"), "--timeline: must be a file"),
        (("--plan", "plan.json", "--machine", "huge"), "--machine: must be one of small"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    exact, _ = write_bundles(tmp_path)
    write_plan(tmp_path / "plan.json", document([(0, 5.0)]))
    command = [sys.executable, str(ROOT / "leanrec.py"), "serve", str(exact), "--port", "0", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SOON)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1

"""A shop's home with its first champion, a server under traffic, and checkpoints that arrive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from mlflow.tracking import MlflowClient

from search.choose import rebuild as recipe
from search.choose.policy import Policy
from search.choose.rebuild import BesideOld, Recipe
from search.cli.console import Console
from search.config.study_file import load
from search.home import Home
from search.ledger.registry import register
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.serve_tests import oracle
from tests.serve_tests.process import ROOT, SOON, ServerProcess, serving

STUDY = """
name: shop
recommender: shop:factory
quality: {max_loss: 0.05}
space: {distillation: {epochs: 1}}
timing: {final_blocks: 20, confirm_blocks: 20, patience_seconds: 0.5}
"""
SHOP = Path(__file__).with_name("shop.py")
# Short, since traffic is, and with room for the latency of a busy machine: the limits themselves are tested elsewhere.
LIMITS = ("--min-requests", "300", "--min-seconds", "4", "--max-p95-ratio", "20", "--max-difference", "1")


class Shop:
    """A folder as a user has it: the factory, the study file, a folder of checkpoints, and leanrec's home."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, Home(folder)
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(exist_ok=True)
        shutil.copy(SHOP, folder)
        (folder / "shop.yaml").write_text(STUDY)
        self.environment = {**os.environ, "LEANREC_HOME": str(folder), "PYTHONPATH": str(ROOT)}
        for name in ("MLFLOW_TRACKING_URI", "LEANREC_CHECKPOINT"):
            self.environment.pop(name, None)

    def train(self, file: Path, kind: str, seed: int) -> None:
        command = [sys.executable, "shop.py", str(file), kind, str(seed)]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, timeout=300)

    def crown(self) -> None:
        """Build the first bundle, where a study would have chosen it, and register it as the champion.

        It has the search's place only: the recipe, the build and the registration are the real ones.
        """
        self.train(self.folder / "first.pt", "retrained", 0)
        code = f"from tests.checkpoints_tests.nights import first; first({str(self.folder)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=self.environment, check=True, timeout=600)

    def watch(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "leanrec", "watch", "shop.yaml", "--checkpoint", str(self.checkpoints)]
        command += ["--once", "--json", "--settle", "0.2", "--patience-minutes", "5", *LIMITS, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def decide(self) -> dict[str, Any]:
        """Return the decision of a watch on the newest checkpoint, which its status agrees with."""
        process = self.watch()
        out, err = process.communicate(timeout=600)
        assert out, err
        found: dict[str, Any] = json.loads(out)
        assert process.returncode == (1 if found["outcome"] in ("refused", "undecided") else 0), err
        return found | {"said": err}

    @property
    def step(self) -> str | None:
        """The step of the checkpoint at work."""
        file = self.home.watch("shop") / "state.json"
        work = json.loads(file.read_text())["work"] if file.exists() else None
        return None if work is None else str(work["step"])

    def killed_while(self, step: str) -> None:
        """Start a watch, and kill it once it is at a step."""
        process = self.watch()
        wait_until_long(lambda: self.step == step)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    @contextmanager
    def served(self) -> Iterator[ServerProcess]:
        options = ("--home", str(self.folder), "--challenger", "models:/shop@challenger", "--shadow-share", "1")
        options += ("--shadow-window", "0.5")
        with serving("models:/shop@champion", self.folder / "server.log", *options, "--follow-seconds", "1") as server:
            yield server


def wait_until_long(true: Any) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def first(folder: str) -> None:
    """Build and register the first champion; run in the shop's folder."""
    home, console = Home(Path(folder)), Console(True, True)
    home.claim()
    config = load("shop.yaml", [])
    candidate = Candidate(placement=Placement(InstanceGroup("onnxruntime", "cpu", threads=1)))
    recipe._beside_old = lambda *given: BesideOld(trouble="it is the first")  # type: ignore[assignment]
    bundle: Any = type("First", (), {"candidate": candidate, "name": "shop"})
    out = home.reports("shop") / "bundle"
    found = recipe.rebuild(Recipe(bundle, config, Policy(config.quality.max_loss)), home, out, console)
    assert found.accepted, found.reason
    store = home.tracking_uri(None)
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("shop", home.artifacts.as_uri())).info.run_id
    assert register(client, store, "shop", out, run, {}).alias == "champion"


class Traffic:
    """Clients that send a request every so often.

    ended: responses by status, and failed requests by their error's class
    versions: of the responses, in the order of their first
    """

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.ended: Counter[int | str] = Counter()
        self.versions: list[str] = []

    @contextmanager
    def running(self, clients: int = 2, seconds: float = 0.02) -> Iterator[None]:
        threads = [threading.Thread(target=self._send, args=(seed, seconds)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _send(self, seed: int, seconds: float) -> None:
        rng = np.random.default_rng(seed)
        with httpx.Client(timeout=SOON) as client:
            while not self._stop.wait(seconds):
                rows = int(rng.integers(20, 60))
                request = {"user": np.full(rows, rng.integers(200)), "item": rng.integers(300, size=rows)}
                body, headers = oracle.binary_request(request)
                try:
                    response = client.post(f"{self._url}/infer", content=body, headers=headers)
                except httpx.TransportError as error:
                    self.ended[type(error).__name__] += 1
                    continue
                self.ended[response.status_code] += 1
                if response.status_code == 200:
                    version = oracle.read_scores(response.content, None)[0]["model_version"]
                    if version not in self.versions:
                        self.versions.append(version)

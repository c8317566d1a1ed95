"""A study whose MLflow server is away for a minute: no trial waits for it, and none is missing in the end.

    python tests/benchmarks/outage.py [--away 60] [--minutes 3] [--home FOLDER]

A real `mlflow server` keeps the runs of a small study. Once two trials have ended the server is killed, and it starts
again on its database after so many seconds. Printed: how many trials ended before, meanwhile and after, the longest
time for which the study's loop waited for its ledger in each of these, and the MLflow runs that are missing or double.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlflow.tracking import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.kills import STUDY, ended

ROOT = Path(__file__).resolve().parents[2]
_UP_SECONDS = 60.0
# Run in the study's process: a line of each time that its loop waited for the ledger to take a trial.
_TIMED = """
import json, sys, time
from search.cli.parser import run_command
from search.ledger.ledger import Ledger
record = Ledger.record
def timed(self, trial):
    began = time.time()
    record(self, trial)
    print(json.dumps([began, time.time() - began]), file=sys.stderr, flush=True)
Ledger.record = timed
sys.exit(run_command(["run", *sys.argv[1:], "--quiet"]))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def start_server(home: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the server in a process group of its own, and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{home}/server.db",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    with (home / "server.txt").open("ab") as printed:
        process = subprocess.Popen(command, cwd=home, stdout=printed, stderr=printed, start_new_session=True)
    wait_for(lambda: answers(port), _UP_SECONDS)
    return process


def answers(port: int) -> bool:
    with suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200)
    return False


def kill(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_for(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"nothing happened within {seconds:g} s")
        time.sleep(0.1)


def trials(home: Path) -> int:
    return len(ended(home)) if (home / "mlruns/optuna.db").exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--away", type=float, default=60.0, help="seconds (default 60)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of the study's search (default 3)")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="outage-"))
    (home / "outage.yaml").write_text(STUDY.replace("name: kills", "name: outage"))
    port = free_port()
    server = start_server(home, port)
    environment = {**os.environ, "LEANREC_HOME": str(home), "PYTHONPATH": str(ROOT)}
    settings = [f"tracking_uri=http://127.0.0.1:{port}", f"budget.minutes={options.minutes:g}"]
    command = [sys.executable, "-c", _TIMED, "outage.yaml", *(part for one in settings for part in ("--set", one))]
    with (home / "waits.txt").open("w") as printed:
        study = subprocess.Popen(command, env=environment, cwd=home, stdout=subprocess.DEVNULL, stderr=printed)
    wait_for(lambda: trials(home) >= 2, 600)
    kill(server)
    away, before = time.time(), trials(home)
    time.sleep(options.away)
    server = start_server(home, port)
    back, meanwhile = time.time(), trials(home)
    status = study.wait()
    print(f"the study ended with status {status}; the server was away for {back - away:.0f} s")
    report(home, port, away, back, (before, meanwhile))
    kill(server)


def report(home: Path, port: int, away: float, back: float, counted: tuple[int, int]) -> None:
    """Print what was waited for, and what the server has in the end."""
    lines = [line for line in (home / "waits.txt").read_text().splitlines() if line.startswith("[")]
    waits = [json.loads(line) for line in lines]
    known, (before, meanwhile) = ended(home), counted
    parts = {
        "before": (0.0, away, before),
        "meanwhile": (away, back, meanwhile - before),
        "after": (back, float("inf"), len(known) - meanwhile),
    }
    for name, (first, last, count) in parts.items():
        longest = max((wait for at, wait in waits if first <= at < last), default=0.0)
        print(f"{name}: {count} trials ended; the longest wait for the ledger {longest * 1e3:.2f} ms")
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("outage")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'trial'", max_results=50_000)
    recorded = Counter(int(run.data.tags["leanrec.trial"]) for run in runs)
    missing, double = set(known) - set(recorded), sum(count > 1 for count in recorded.values())
    print(f"trials: {len(known)}; MLflow runs: {len(recorded)}; missing: {len(missing)}; double: {double}")


if __name__ == "__main__":
    main()

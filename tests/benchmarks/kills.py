"""Processes of a study killed at random instants: no finished trial is lost or recorded twice, and none stays behind.

    python tests/benchmarks/kills.py [--kills 100] [--seed 0] [--home FOLDER]

A small study is run and resumed until so many processes were killed by SIGKILL: its coordinator, a builder or a meter.
After each kill the trials that had ended in Optuna's database are noted. Printed: a line for each kill, and in the end
the number of trials that were lost, of candidates that were measured twice, of MLflow runs that are missing or double,
and of processes that outlived their coordinator.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: kills
data: {source: synthetic, rows: 4000, users: 120, items: 100, fields: 5}
quality: {max_loss: 0.4}
traffic: {rows: {median: 50, sigma: 0.3, max: 100}}
space: {distillation: {epochs: 1}}
timing: {final_blocks: 20, confirm_blocks: 20, patience_seconds: 1}
budget: {minutes: 600}
"""
# Longest time from the start of a study, or from the kill before, to a kill.
_LONGEST_SECONDS = 90.0
# Longest time of the run after the last kill, which goes on until a trial has ended.
_LAST_SECONDS = 300.0
# Time in which the workers of a coordinator that was killed end.
_ORPHANED_SECONDS = 10.0


def ended(home: Path) -> dict[int, str]:
    """Return the outcomes in Optuna's database, by trial; none before it has tables."""
    file = home / "mlruns/optuna.db"
    if not file.exists():
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as database:
        query = (
            "select t.number, a.value_json from trials t join trial_user_attributes a on a.trial_id = t.trial_id "
            "where a.key = 'outcome'"
        )
        try:
            return dict(database.execute(query).fetchall())
        except sqlite3.OperationalError:
            return {}


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    try:
        children = [
            int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [*children, *(each for child in children for each in descendants(child))]


def command(pid: int) -> str:
    """Return the command of a process, empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def outlived(workers: dict[int, str]) -> int:
    """Count the workers that still run some seconds after their coordinator was killed."""
    end = time.monotonic() + _ORPHANED_SECONDS
    while (left := sum(bool(was) and command(pid) == was for pid, was in workers.items())) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def start(home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LEANREC_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "leanrec", "run", str(home / "kills.yaml")]
    with (home / "printed.txt").open("ab") as printed:
        return subprocess.Popen(command, env=environment, cwd=home, stdout=printed, stderr=printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="kills-"))
    (home / "kills.yaml").write_text(STUDY)
    draw, known, lost, left, kinds = random.Random(options.seed), dict[int, str](), set[int](), 0, Counter[str]()
    process = start(home)
    for kill in range(options.kills):
        time.sleep(draw.uniform(0.0, _LONGEST_SECONDS))
        workers = {pid: command(pid) for pid in descendants(process.pid)}
        target = draw.choice([process.pid, *workers])
        kind = "coordinator" if target == process.pid else "meter" if "measure" in workers[target] else "builder"
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)
        kinds[kind] += 1
        if kind == "coordinator":
            process.wait()
            left += outlived(workers)
        elif process.poll() is None:
            time.sleep(1.0)
        now = ended(home)
        lost |= {number for number, outcome in known.items() if now.get(number) != outcome}
        known = now
        print(f"kill {kill + 1}: {kind}; {len(known)} trials ended", flush=True)
        if process.poll() is not None:
            process = start(home)
    # The last run also records what the runs before it were killed too early to send to MLflow.
    end = time.monotonic() + _LAST_SECONDS
    while process.poll() is None and len(ended(home)) <= len(known) and time.monotonic() < end:
        time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.wait()
    report(home, known, lost, left, kinds)


def report(home: Path, known: dict[int, str], lost: set[int], left: int, kinds: Counter[str]) -> None:
    """Print what the databases hold in the end."""
    last = ended(home)
    lost |= {number for number, outcome in known.items() if last.get(number) != outcome}
    with closing(sqlite3.connect(home / "mlruns/optuna.db")) as database:
        query = (
            "select a.value_json from trials t join trial_user_attributes a on a.trial_id = t.trial_id "
            "where a.key = 'candidate' and t.state = 'COMPLETE'"
        )
        measured = Counter(value for (value,) in database.execute(query))
        (running,) = database.execute("select count(*) from trials where state = 'RUNNING'").fetchone()
    client = MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("kills")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'trial'", max_results=50_000)
    recorded = Counter(int(run.data.tags["leanrec.trial"]) for run in runs)
    print(f"{sum(kinds.values())} kills: {', '.join(f'{count} of a {kind}' for kind, count in kinds.items())}")
    print(f"trials ended: {len(last)}; lost: {len(lost)}; left running: {running}")
    print(f"candidates measured: {len(measured)}; twice: {sum(count > 1 for count in measured.values())}")
    missing = set(last) - set(recorded)
    print(f"MLflow runs: {len(recorded)}; missing: {len(missing)}; double: {sum(n > 1 for n in recorded.values())}")
    print(f"processes that outlived their coordinator: {left}")


if __name__ == "__main__":
    main()

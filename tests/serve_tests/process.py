"""A real server process, and what its metrics say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which a test gives up.
SOON = 30.0


@dataclass
class ServerProcess:
    """A server process.

    url: of the model
    """

    process: subprocess.Popen[str]
    name: str
    version: str
    root: str
    log: Path

    @property
    def url(self) -> str:
        return f"{self.root}/v2/models/{self.name}"

    def metric(self, name: str, /, **labels: str) -> float:
        """Return a sample's value; 0 where nothing was counted yet."""
        text = httpx.get(f"{self.root}/metrics", verify=False).text  # no certificates are read
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def serving(
    bundle: Path | str, log: Path, *options: str, program: Sequence[str] = (str(ROOT / "leanrec.py"),)
) -> Iterator[ServerProcess]:
    """Serve a bundle, a folder or a registered one, on a free port."""
    command = [sys.executable, *program, "serve", str(bundle), "--port", "0", "--json", *options]
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        started = json.loads(line)
        yield ServerProcess(process, started["name"], started["version"], started["url"], log)
    finally:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], bool], seconds: float = SOON, every_s: float = 0.005) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(every_s)


def wait_patiently(true: Callable[[], bool]) -> None:
    """Wait for what a process of the lowest priority does, which beside busy cores takes minutes."""
    wait_until(true, 200.0, 0.1)

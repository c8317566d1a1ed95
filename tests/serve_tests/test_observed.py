"""A real server that is observed into one file, before and after it is started again."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from search.cli.parser import run_command
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.process import SOON, serving, wait_until

BODY = oracle.json_request(draw_request(3))


def lines_of(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def test_two_lives_of_a_server_are_one_observation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests wait for a batch: 50 ms in the first life, 250 ms in the second; both are of 6 requests."""
    file, port, took_ms = tmp_path / "samples.jsonl", 0, list[float]()
    for life, seconds in enumerate((0.05, 0.25)):
        bundle = write_toy(tmp_path / f"bundle-{life}", waiting(seconds))
        with serving(bundle, tmp_path / f"log-{life}", "--port", str(port)) as server:
            port = urlsplit(server.root).port or 0
            httpx.post(f"{server.url}/infer", json=BODY, timeout=SOON)

            def send(url: str, kept: int) -> None:
                wait_until(lambda: lines_of(file) > kept)
                for _ in range(6):
                    began = time.monotonic()
                    httpx.post(f"{url}/infer", json=BODY, timeout=SOON).raise_for_status()
                    took_ms.append(1000 * (time.monotonic() - began))

            thread = threading.Thread(target=send, args=(server.url, lines_of(file)))
            thread.start()
            command = ["observe", server.root, "--samples", str(file), "--seconds", "6", "--every", "0.2", "--json"]
            assert run_command([*command, "--out", str(tmp_path / "out")]) == 0
            thread.join()
            found = json.loads(capsys.readouterr().out)["service"]
            assert found["restarts"] == life
            assert sum(hour["answered"] for hour in found["hours"]) == 6 * (life + 1) == len(took_ms)
    whole = found["whole"]
    assert 150 < whole["mean_ms"] < sum(took_ms) / 12, "a client's time is longer by the transport"
    assert whole["p95_ms"] > 200
    assert whole["seconds"] < found["end_s"] - found["start_s"] and whole["cpu_cores"] > 0
    assert found["samples"] == lines_of(file)
    assert run_command(["observe", str(file), "--json", "--out", str(tmp_path / "alone")]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == found

"""Metrics of the server's own collectors, read over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.http.metrics import CONTENT_TYPE, Metrics
from planning.observation.metrics_samples import MetricsSample, histogram_quantile, work_between
from planning.observation.weekly_service import ServiceHour
from search.cli import planning
from search.cli.console import Console
from search.cli.parser import run_command
from search.errors import ConfigError
from search.plan.figures import hours_figure, week_figures
from search.plan.observe.samples_file import append_sample, check_appendable
from search.plan.observe.scrape import metrics_address, parse_sample, read_sample, sample
from search.plan.observe.server import observe_samples, observe_server
from search.plan.observe.suggestions import service_suggestions
from tests.serve_tests.process import ROOT, wait_until

QUIET = Console(quiet=True, as_json=False)


class Server:
    """The collectors of a server behind HTTP, which observe a request of 3 ms and 50 rows before each answer.

    asked: requests so far
    away: numbers of the requests that are answered with an error
    """

    def __init__(self, port: int = 0) -> None:
        metrics = self.metrics = Metrics(lambda: 3.0, lambda: 2.0, lambda: 0.0)
        self.asked, self.away = 0, range(0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                if server.asked in server.away:
                    self.send_error(503)
                    return
                metrics.answered(0.003, 50)
                metrics.ended(200)
                body = metrics.text() if self.path == "/metrics" else b"nothing"
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *said: object) -> None: ...

        self.http = HTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, daemon=True)
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_what_happened_between_two_samples_is_read_from_the_servers_metrics(server: Server) -> None:
    before = read_sample(metrics_address(server.url))
    for _ in range(98):
        server.metrics.answered(0.001, 10)
        server.metrics.ended(200)
    server.metrics.ended(429)
    server.metrics.refused("queue full")
    after = read_sample(metrics_address(server.url + "/metrics"))
    found = work_between(before, after)
    assert found is not None
    assert found.rate_rps * found.seconds == pytest.approx(100) and found.refused_rps * found.seconds == pytest.approx(
        1
    )
    assert found.mean_ms == pytest.approx((98 * 1 + 3) / 99)
    # Of 99 requests 98 lie between 0.5 and 1 ms, in PromQL's linear interpolation.
    assert found.p95_ms == pytest.approx(0.5 + 0.5 * 0.95 * 99 / 98)
    assert found.mean_rows == pytest.approx((98 * 10 + 50) / 99)
    assert (after.queue, after.in_flight) == (2, 3) and found.cpu_cores >= 0


def test_a_server_is_observed_for_a_time(server: Server, tmp_path: Path) -> None:
    found = observe_server(server.url, 1.0, 0.1, None, None, tmp_path, QUIET)
    service = found.service
    assert len(service.intervals) >= 1 and service.whole.mean_ms == pytest.approx(3)
    assert (service.whole.queue, service.in_flight_max) == (2, 3)
    assert found.samples_file is None and {hour.queue_mean for hour in service.hours} == {2}
    assert any("slo" in said for said in found.suggestions)
    page = (tmp_path / "observe.html").read_text()
    assert "plotly" in page and server.url in page and '<script src="http' not in page
    assert (tmp_path / "server.json").exists()


@pytest.mark.parametrize("url", ["ftp://a", "http://", "file:///etc/hosts"])
def test_only_addresses_of_servers_are_read(url: str) -> None:
    with pytest.raises(ConfigError, match="URL: must be"):
        metrics_address(url)


def test_other_pages_and_silence_are_errors(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"URL: .*leanrec_request_seconds_count|text format"):
        read_sample(f"{server.url}/other")
    with pytest.raises(ConfigError, match="URL: must be a running leanrec serve"):
        read_sample("http://127.0.0.1:9/metrics")
    with pytest.raises(ConfigError, match="--every"):
        observe_server(server.url, 1.0, 2.0, None, None, tmp_path, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_started_again_is_noticed() -> None:
    metrics = Metrics(lambda: 0.0, lambda: 0.0, lambda: 0.0)
    fresh = parse_sample(metrics.text().decode(), 2.0, "it")
    metrics.answered(0.1, 1)
    used = parse_sample(metrics.text().decode(), 1.0, "it")
    assert work_between(used, fresh) is None and work_between(fresh, used) is None, "the clock was set back"
    assert work_between(used, dataclasses.replace(used, at_s=2.0)) is not None
    # One that was started again and has counted more than before since.
    assert work_between(used, dataclasses.replace(used, at_s=2.0, answered=9.0, started_s=1.5)) is None


@given(st.lists(st.floats(0.001, 9.9), min_size=1, max_size=60), st.sampled_from([0.5, 0.95]))
def test_a_quantile_lies_in_the_bucket_of_the_sample_of_its_rank(samples: list[float], quantile: float) -> None:
    limits = [0.01, 0.1, 1.0, 10.0]
    buckets = {limit: float(sum(sample <= limit for sample in samples)) for limit in limits}
    found = histogram_quantile(buckets | {float("inf"): float(len(samples))}, quantile)
    exact = np.sort(samples)[int(np.ceil(quantile * len(samples))) - 1]
    upper = min(limit for limit in limits if limit >= exact)
    lower = max([0.0, *(limit for limit in limits if limit < exact)])
    assert found is not None and lower <= found <= upper
    assert histogram_quantile({0.01: 0.0, float("inf"): 5.0}, quantile) is None
    assert histogram_quantile({float("inf"): 0.0}, quantile) is None


def test_samples_are_kept_and_joined_over_calls_and_restarts(tmp_path: Path) -> None:
    """Two servers, one after the other at one address, are observed into one file, which is then shown without any."""
    file, out, port = tmp_path / "new" / "samples.jsonl", tmp_path / "out", 0
    counts = []
    for _ in range(2):
        server = Server(port)
        port = server.http.server_port
        thread = threading.Thread(target=server.http.serve_forever, daemon=True)
        thread.start()
        found = observe_server(server.url, 0.5, 0.1, file, None, out, QUIET)
        counts.append(found.service.samples)
        server.http.shutdown()
        server.http.server_close()
    lines = file.read_text().splitlines()
    assert counts[1] == len(lines) > counts[0] >= 2
    assert found.service.restarts == 1 and found.samples_file == str(file)
    # Each sample is one request of 3 ms later than the one before, but for the first of the second server.
    assert found.service.whole.rate_rps * found.service.whole.seconds == pytest.approx(len(lines) - 2)
    assert found.service.whole.mean_ms == pytest.approx(3)
    assert abs(found.service.end_s - time.time()) < 60 and found.service.start_s < found.service.end_s
    alone = observe_samples(file, None, tmp_path / "alone")
    assert alone.service == found.service and alone.url == server.url
    written = json.loads((tmp_path / "alone" / "server.json").read_text())
    assert written["service"]["samples"] == len(lines) and len(written["service"]["hours"]) in (1, 2)


def test_a_killed_observation_loses_no_sample_and_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    command = [sys.executable, str(ROOT / "leanrec.py"), "observe", server.url, "--samples", str(file)]
    with subprocess.Popen([*command, "--seconds", "600", "--every", "0.05"], cwd=tmp_path) as process:
        wait_until(lambda: server.asked >= 8)
        process.kill()
    lines = file.read_text().splitlines()
    assert len(lines) >= server.asked - 1, "what was read is kept, but for the last answer"
    assert not (tmp_path / "reports").exists()
    # What a full disk or a power failure leaves of a line is cut off.
    with file.open("a") as stream:
        stream.write(lines[-1][:40])
    assert observe_samples(file, None, tmp_path / "out").service.samples == len(lines)
    found = observe_server(server.url, 0.3, 0.1, file, None, tmp_path / "out", QUIET)
    assert found.service.samples == len(file.read_text().splitlines()) > len(lines) and found.service.restarts == 0
    assert found.service.whole.rate_rps * found.service.whole.seconds == pytest.approx(server.asked - 1)


def test_a_server_that_is_away_for_a_while_is_asked_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[MetricsSample] = []
    said: list[str] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    virtual = SimpleNamespace(monotonic=lambda: now, sleep=sleep, time=time.time)
    monkeypatch.setattr("search.plan.observe.scrape.time", virtual)
    server.away = range(3, 6)
    sample(metrics_address(server.url), 1.5, 0.1, found.append, said.append)
    assert len(found) == server.asked - 3 >= 4 and sum("must be" in line for line in said) == 1
    server.away = range(1000)
    with pytest.raises(ConfigError, match="URL: must be a running leanrec serve"):
        sample(metrics_address(server.url), 1.5, 0.1, found.append, said.append)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: "", "must have samples"),
        (lambda line: line, "must have samples"),
        (lambda line: "timestamp,rows\n1,2\n", "line 1: must be a sample"),
        (lambda line: f"{line}\n[]\n", "line 2: must be a sample"),
        (lambda line: f"{line}\n" + line.replace('"queue": 2.0', '"queue": -1') + "\n", "line 2: must be a sample"),
        (lambda line: f"{line}\n" + line.replace('"queue": 2.0', '"queue": NaN') + "\n", "line 2: must be a sample"),
        (lambda line: f"{line}\n" + line.replace("/metrics", "/others") + "\n", "line 2: must be a sample of http://"),
        (lambda line: f"{line}\n", "two samples or more"),
    ],
)
def test_files_that_are_none_of_samples_are_explained_and_left(
    change: Callable[[str], str], expected: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "samples.jsonl"
    append_sample(file, metrics_address(server.url), read_sample(metrics_address(server.url)))
    text = change(file.read_text().rstrip("\n"))
    file.write_text(text)
    assert run_command(["observe", str(file), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line and "LOG: " in line and not (tmp_path / "out").exists()
    if "line" in expected:
        command = ["observe", server.url, "--seconds", "1", "--samples", str(file), "--every", "0.5"]
        assert run_command(command) == 2 and "--samples: " in capsys.readouterr().err
        assert file.read_text() == text, "no other file is written to"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["URL", "--samples", "samples.csv"], "--samples: must be a file with the suffix .jsonl, but got samples.csv"),
        (["log.csv", "--samples", "samples.jsonl"], "--samples: must come with the URL of a server"),
        (["a.jsonl", "--samples", "samples.jsonl"], "--samples: must come with the URL of a server"),
        (["URL", "--rows-column", "n"], "--rows-column: must come with a request log, but got 'http://127.0.0.1"),
        (["URL", "--latency-column", "n"], "--latency-column: must come with a request log"),
        (["a.jsonl", "--cpu-column", "n"], "--cpu-column: must come with a request log, but got 'a.jsonl'"),
        (["a.jsonl", "--queue-column", "n"], "--queue-column: must come with a request log"),
        (["URL", "--seed", "1"], "--seed: must come with a request log"),
        (["log.csv", "--seconds", "60"], "--seconds: must come with the URL of a server, but got 'log.csv'"),
        (["a.jsonl", "--every", "2"], "--every: must come with the URL of a server, but got 'a.jsonl'"),
        (["log.csv", "--set", "seed=1"], "--set: must come with --study, but there is none"),
        (["URL", "--study", "ml-100k"], "STUDY: 'ml-100k' was not run"),
        (["URL", "--slo-ms", "0"], "--slo-ms: must be above 0"),
        (["none.jsonl"], "LOG: must be a file of samples"),
    ],
)
def test_wrong_options_are_one_line(
    given: list[str], expected: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["observe", *(server.url if each == "URL" else each for each in given), "--home", str(tmp_path)]
    with contextlib.suppress(SystemExit):
        assert run_command(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize(("given", "slo_ms"), [([], 2.5), (["--slo-ms", "7"], 7.0)])
def test_a_study_gives_its_slo_to_the_hours_of_a_server(
    given: list[str],
    slo_ms: float,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def existing(options: argparse.Namespace) -> Any:
        asked.append((options.study, options.set))
        return SimpleNamespace(front=lambda: SimpleNamespace(slo_ms=2.5))

    monkeypatch.setattr(planning, "_existing", existing)
    command = ["observe", server.url, "--study", "shop", "--set", "seed=3", "--seconds", "0.5", "--every", "0.1"]
    assert run_command([*command, *given, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert asked == [("shop", ["seed=3"])] and found["slo_ms"] == slo_ms
    # Requests of 3 ms lie between 2 and 5 ms.
    assert any(said.startswith(f"p95 {'exceeds' if slo_ms < 3 else 'keeps'}") for said in found["suggestions"])


def test_a_file_of_another_server_is_not_appended_to(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    append_sample(file, "http://other:8000/metrics", read_sample(metrics_address(server.url)))
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"--samples: must be a file of http://127\.0\.0\.1"):
        observe_server(server.url, 1.0, 0.5, file, None, tmp_path / "out", QUIET)
    assert file.read_text() == before


def test_a_file_that_another_observation_began_meanwhile_is_left_to_it(server: Server, tmp_path: Path) -> None:
    """Both observations found no file; the other one's first sample comes first."""
    file, address = tmp_path / "samples.jsonl", metrics_address(server.url)
    check_appendable(file, address)
    one = read_sample(address)
    append_sample(file, "http://other:8000/metrics", one)
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"--samples: must be a file of http://127\.0\.0\.1.* of http://other:8000"):
        append_sample(file, address, one)
    assert file.read_text() == before


def test_what_a_full_disk_left_of_the_first_line_is_cut_off(server: Server, tmp_path: Path) -> None:
    file, address = tmp_path / "samples.jsonl", metrics_address(server.url)
    one = read_sample(address)
    append_sample(file, address, one)
    line = file.read_text()
    for length in (3, len(address), len(address) + 20, len(line) - 1):
        file.write_text(line[:length])
        check_appendable(file, address)
        append_sample(file, address, one)
        assert file.read_text() == line
        file.write_text(line[:length])
        if length > len(address) + 10:
            with pytest.raises(ConfigError, match="--samples: must have samples"):
                check_appendable(file, "http://other:8000/metrics")
    file.write_text("a note of the user's")
    with pytest.raises(ConfigError, match="--samples: must have samples"):
        check_appendable(file, address)


def service_hour(hour: int, **given: Any) -> ServiceHour:
    plain = ServiceHour(hour // 24, hour % 24, 1.0, 10.0, 100, 5.0, 20.0, 0.5, 0.0, 0.0)
    return dataclasses.replace(plain, **given)


def test_the_busiest_hour_is_one_whose_rate_is_known(server: Server, tmp_path: Path) -> None:
    """A sample each 2 hours belongs to no hour; the last two are of one, with 360 requests in 30 minutes."""
    file, one = tmp_path / "samples.jsonl", read_sample(metrics_address(server.url))
    start = 100 * 3600.0

    def said(sample: MetricsSample) -> str:
        append_sample(file, "http://server/metrics", sample)
        found = observe_samples(file, None, tmp_path / "out")
        (line,) = [each for each in found.suggestions if each.startswith("traffic: ")]
        return line

    append_sample(file, "http://server/metrics", dataclasses.replace(one, at_s=start))
    later = dataclasses.replace(one, at_s=start + 7200, requests=one.requests + 7200)
    assert said(later) == "traffic: 1 requests per second arrived in the mean"
    last = dataclasses.replace(later, at_s=later.at_s + 1800, requests=later.requests + 360)
    # 102 hours after Thursday, January 1, 1970.
    assert "0.2 requests per second in the busiest hour (Monday 6:00 to 7:00)" in said(last)


def test_suggestions_name_the_hours_that_they_follow_from() -> None:
    hours = [service_hour(hour) for hour in range(30)]
    assert service_suggestions(hours, 20.0, None, 4) == (), "no hour is twice as slow as all"
    (kept,) = service_suggestions(hours, 20.0, 25.0, 4)
    assert "keeps the SLO of 25 ms in all 30 hours" in kept
    hours[18] = service_hour(18, p95_ms=45.0, cpu_cores=2.9, queue_mean=3.0)
    hours[19] = service_hour(19, p95_ms=None)
    hours[20] = service_hour(20, answered=0, mean_ms=None, p95_ms=None)
    for slo_ms in (None, 25.0):
        late, busy, waiting = service_suggestions(hours, 20.0, slo_ms, 4)
        assert "in 2 of 29 hours of the week (Monday 18:00 to 20:00)" in late
        assert "70% of 4 cores, as this machine has," in busy and "(Monday 18:00 to 19:00)" in busy
        assert "3 in the mean of the worst hour" in waiting and "(Monday 18:00 to 19:00)" in waiting
    assert ("SLO of 25 ms" in late) and service_suggestions([], None, None, 4) == ()


def test_weekly_graphs_have_gaps_where_nothing_is_known() -> None:
    hours = [service_hour(hour, p95_ms=float(hour)) for hour in (5, 7, 30)]
    figures = week_figures((), hours)
    assert list(figures) == ["week", "week-mean", "week-p95", "week-cpu", "week-queue"]
    values = figures["week-p95"]["data"][0]["z"]  # type: ignore[index]
    assert [(24 * day + hour, values[day][hour]) for day in range(7) for hour in range(24) if values[day][hour]] == [
        (5, 5.0), (7, 7.0), (30, 30.0)
    ]  # fmt: skip
    lines = hours_figure((), hours)["data"]
    (line,) = [each for each in lines if each["name"] == "p95"]  # type: ignore[attr-defined]
    assert line["x"][0] == "Mon 5:00" and line["x"][-1] == "Tue 6:00" and line["mode"] == "lines+markers"
    assert line["y"] == [5.0, None, 7.0, *[None] * 22, 30.0]
    none = [dataclasses.replace(each, cpu_cores=None, queue_mean=None) for each in hours]
    assert list(week_figures((), none)) == ["week", "week-mean", "week-p95"]

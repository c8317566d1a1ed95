"""Metrics of the server's own collectors, read over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.http.metrics import CONTENT_TYPE, Metrics
from planning.metrics_samples import histogram_quantile, interval
from search.cli.console import Console
from search.errors import ConfigError
from search.plan.observe import observe_server
from search.plan.scrape import metrics_address, parse_sample, read_sample


class Server:
    """The collectors of a server behind HTTP, which observe a request of 3 ms and 50 rows before each answer."""

    def __init__(self) -> None:
        metrics = self.metrics = Metrics(lambda: 3.0, lambda: 2.0)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                metrics.answered(0.003, 50)
                metrics.ended(200)
                body = metrics.text() if self.path == "/metrics" else b"nothing"
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *said: object) -> None: ...

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
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
    found = interval(before, after)
    assert found.rate_rps * found.seconds == pytest.approx(100) and found.refused_rps * found.seconds == pytest.approx(
        1
    )
    assert found.mean_ms == pytest.approx((98 * 1 + 3) / 99)
    # Of 99 requests 98 lie between 0.5 and 1 ms, in PromQL's linear interpolation.
    assert found.p95_ms == pytest.approx(0.5 + 0.5 * 0.95 * 99 / 98)
    assert found.mean_rows == pytest.approx((98 * 10 + 50) / 99)
    assert (found.queue, found.in_flight) == (2, 3) and found.cpu_cores >= 0


def test_a_server_is_observed_for_a_time(server: Server, tmp_path: Path) -> None:
    found = observe_server(server.url, 1.0, 0.1, tmp_path, Console(quiet=True, as_json=False))
    assert len(found.intervals) >= 1 and found.whole.mean_ms == pytest.approx(3)
    assert (found.queue_mean, found.in_flight_max) == (2, 3)
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
        observe_server(server.url, 1.0, 2.0, tmp_path, Console(quiet=True, as_json=False))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_started_again_is_noticed() -> None:
    metrics = Metrics(lambda: 0.0, lambda: 0.0)
    fresh = parse_sample(metrics.text().decode(), 2.0, "it")
    metrics.answered(0.1, 1)
    used = parse_sample(metrics.text().decode(), 1.0, "it")
    with pytest.raises(ValueError, match="counters fell"):
        interval(used, fresh)


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

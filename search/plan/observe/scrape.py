"""Samples of the Prometheus metrics of a running `leanrec serve`."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from planning.observation.metrics_samples import MetricsSample
from search.errors import ConfigError, JobError

_TIMEOUT_SECONDS = 5.0
_LARGEST_BYTES = 1 << 24
# Seconds between two lines of progress.
_SAY_SECONDS = 30.0
# Metrics without which a page is not that of a server of ours.
_NEEDED = ("leanrec_request_seconds_count", "leanrec_queue_length", "leanrec_in_flight")


def metrics_address(url: str) -> str:
    """Return the address of a server's metrics; ConfigError where the URL is none of http or https."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"URL: must be http://HOST:PORT of a leanrec serve, but got {url!r}")
    return url if parts.path.rstrip("/").endswith("/metrics") else f"{url.rstrip('/')}/metrics"


def read_sample(address: str) -> MetricsSample:
    """Read the metrics of a server now.

    Raises:
        ConfigError: nothing answers there, or not with the metrics of `leanrec serve`.
    """
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer:  # http or https only
            body, length = answer.read(_LARGEST_BYTES), answer.headers["Content-Length"]
            if length is not None and len(body) != int(length):
                raise http.client.IncompleteRead(body)
            text = body.decode("utf-8")
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        raise ConfigError(f"URL: must be a running leanrec serve, but {address}: {error}") from error
    return parse_sample(text, time.time(), address)


def parse_sample(text: str, at_s: float, address: str) -> MetricsSample:
    """Parse metrics in Prometheus' text format; ConfigError where they are not those of `leanrec serve`."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise JobError("observing a URL needs prometheus-client: pip install 'leanrec[serve]'") from error
    values: dict[str, float] = {}
    buckets: dict[float, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
                if sample.name == "leanrec_request_seconds_bucket":
                    limit = float(sample.labels["le"])
                    buckets[limit] = buckets.get(limit, 0.0) + sample.value
    except (ValueError, KeyError) as error:
        raise ConfigError(f"URL: {address} must give metrics in Prometheus' text format, but: {error}") from error
    if missing := [name for name in _NEEDED if name not in values]:
        raise ConfigError(f"URL: must be a leanrec serve, but {address} has no {missing[0]}")
    return MetricsSample(
        at_s=at_s,
        started_s=values.get("process_start_time_seconds"),
        answered=values["leanrec_request_seconds_count"],
        latency_sum_s=values.get("leanrec_request_seconds_sum", 0.0),
        buckets=buckets,
        requests=values.get("leanrec_requests_total", 0.0),
        refused=values.get("leanrec_refusals_total", 0.0),
        rows_sum=values.get("leanrec_request_rows_sum", 0.0),
        cpu_s=values.get("process_cpu_seconds_total", 0.0),
        queue=values["leanrec_queue_length"],
        in_flight=values["leanrec_in_flight"],
    )


def sample(
    address: str, seconds: float, every_s: float, keep: Callable[[MetricsSample], None], say: Callable[[str], None]
) -> None:
    """Read the metrics at once and then every so many seconds, for a given time, and hand each sample to `keep`.

    A server that stops answering after the first sample, as one that is started again, is asked on.

    Raises:
        ConfigError: the first sample cannot be read.
    """
    keep(read_sample(address))
    count, silent, said_s = 1, False, time.monotonic()
    end = said_s + seconds
    while time.monotonic() + every_s / 2 < end:
        time.sleep(every_s)
        try:
            found = read_sample(address)
        except ConfigError as error:
            if not silent:
                say(f"observe: {error}; asked on")
            silent = True
            continue
        keep(found)
        count, silent = count + 1, False
        if time.monotonic() - said_s >= _SAY_SECONDS:
            said_s = time.monotonic()
            say(f"observe: {count} samples of {address}")

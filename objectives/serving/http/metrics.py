"""Prometheus metrics of the server, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds: three buckets in each power of ten, from a small model on one core to an overloaded server.
_SECONDS = tuple(round(digit * 10.0**power, 6) for power in range(-4, 1) for digit in (1, 2, 5))
_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """Collectors of one server.

    Latency runs from the last byte of the body to the first of the response, so that a slow sender does not count; of a
    request that came before the answer to the one before it, from its turn. How long a body was in the socket before an
    overloaded event loop read it is not known.
    """

    def __init__(
        self, in_flight: Callable[[], float], queued: Callable[[], float], hanging: Callable[[], float]
    ) -> None:
        """Make the collectors.

        Args:
            in_flight: number of requests that have arrived and are not answered
            queued: number of requests that wait in the pool, or for an event loop that runs the model
            hanging: number of replicas that hang
        """
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "leanrec_request_seconds",
            "Time from a whole body to the response, of answered requests",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = Histogram("leanrec_request_rows", "Rows of requests", buckets=_ROWS, registry=self.registry)
        self._batch = Histogram(
            "leanrec_batch_requests",
            "Requests that were run as one batch, once for each of them",
            buckets=_BATCH,
            registry=self.registry,
        )
        self._requests = Counter("leanrec_requests", "Requests by HTTP status", ["status"], registry=self.registry)
        self._refusals = Counter("leanrec_refusals", "Requests refused", ["reason"], registry=self.registry)
        self._swaps = Counter("leanrec_swaps", "Attempts to swap the model", ["result"], registry=self.registry)
        self._model = Gauge("leanrec_model", "1 for the model served", ["name", "version"], registry=self.registry)
        for name, text, read in (
            ("leanrec_in_flight", "Requests that have arrived and are not answered", in_flight),
            ("leanrec_queue_length", "Requests that wait to be run", queued),
            ("leanrec_hanging_replicas", "Replicas whose run does not end", hanging),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
        # CPU seconds, resident memory, open files and start time.
        ProcessCollector(registry=self.registry)

    def shadowing(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        """Add the metrics of a shadowing, whose document `read` returns."""
        self.registry.register(_ShadowCollector(read))

    def answered(self, seconds: float, rows: int, together: int = 1) -> None:
        self._seconds.observe(seconds)
        self._rows.observe(rows)
        self._batch.observe(together)

    def ended(self, status: int) -> None:
        """Count a request to infer by the status of its response."""
        self._requests.labels(str(status)).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def swapped(self, result: str) -> None:
        self._swaps.labels(result).inc()

    def serving(self, name: str, version: str) -> None:
        self._model.clear()
        self._model.labels(name, version).set(1)

    def controlled(self) -> ControllerMetrics:
        """Add the collectors of a controller."""
        return ControllerMetrics(self.registry)

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self.registry)


class _ShadowCollector(Collector):
    """Metrics of a shadowing, made of its document at each scrape; numbers that are not known yet are left out."""

    def __init__(self, read: Callable[[], Mapping[str, Any] | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        document = self._read()
        if document is None:
            return
        counts = CounterMetricFamily("leanrec_shadow_requests", "Requests picked for shadowing", labels=["result"])
        for result, count in document["counts"].items():
            counts.add_metric([result], count)
        yield counts
        pair = ["champion", "challenger"]
        versions = GaugeMetricFamily("leanrec_shadow_model", "1 for the two that are compared", labels=pair)
        versions.add_metric([document[model] for model in pair], 1)
        yield versions
        yield GaugeMetricFamily("leanrec_shadow_active", "1 while requests are shadowed", int(document["active"]))
        yield GaugeMetricFamily("leanrec_shadow_seconds", "Time of shadowing", document["seconds"])
        seconds = GaugeMetricFamily(
            "leanrec_shadow_latency_seconds", "Time of the same requests", labels=["model", "quantile"]
        )
        for model in pair:
            for quantile, milliseconds in document[f"{model}_ms"].items():
                if milliseconds is not None:
                    seconds.add_metric([model, f"0.{quantile[1:]}"], milliseconds / 1000)
        yield seconds
        low, high = document["p95_ratio_interval"] or (None, None)
        for name, text, value in (
            ("mean_score_difference", "Mean difference of scores over their spread", document["mean_difference"]),
            ("max_score_difference", "Largest difference of scores over their spread", document["max_difference"]),
            ("rank_agreement", "Share of the top rows that both models have", document["rank_agreement"]),
            ("windows", "Windows of time in which both p95 were taken", document["windows"]),
            ("p95_ratio", "p95 of the challenger over the champion's", document["p95_ratio"]),
            ("p95_ratio_low", "Lower bound of its interval, 95% at all looks together", low),
            ("p95_ratio_high", "Upper bound of its interval, 95% at all looks together", high),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"leanrec_shadow_{name}", text, value)


class ControllerMetrics:
    """Collectors of an elastic controller."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"leanrec_controller_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"leanrec_controller_{name}", text, labels, registry=registry)

        self._changes = counter("changes", "Decisions for another option", "change", "reason")
        self._failures = counter("failures", "Options that could not be opened")
        self._loads = Summary(
            "leanrec_controller_load_seconds", "Time from a switch's beginning until it serves", registry=registry
        )
        self._replica_seconds = counter("replica_seconds", "Seconds of all replicas that serve")
        self._rates = gauge("rate_rps", "Rates that decisions follow from, over the capacity factor", "of")
        self._capacity = gauge("capacity_rps", "Rate at which what serves keeps the SLO on a machine alone")
        self._capacity_factor = gauge(
            "capacity_factor", "Factor by which the capacity of each of the machines of the plan's phase exceeds that"
        )
        self._replicas = gauge("replicas", "Replicas that serve")
        self._loss = gauge("loss", "Quality loss of the variant that serves")
        self._panicking = gauge("panicking", "1 while what serves may only grow")
        self._correction = gauge("correction", "Times that a rate counts for, since answers were late")

    def changed(self, change: str, reason: str) -> None:
        self._changes.labels(change, reason).inc()

    def loaded(self, seconds: float) -> None:
        self._loads.observe(seconds)

    def failed(self) -> None:
        self._failures.inc()

    def ticked(
        self,
        rates: Mapping[str, float],
        panicking: bool,
        correction: float,
        capacity_factor: float,
        replica_seconds: float,
    ) -> None:
        """Note the rates of a tick, and the seconds of replicas since the one before."""
        for name, rate in rates.items():
            self._rates.labels(name).set(rate)
        self._panicking.set(panicking)
        self._correction.set(correction)
        self._capacity_factor.set(capacity_factor)
        self._replica_seconds.inc(replica_seconds)

    def serving(self, capacity_rps: float, replicas: int, loss: float) -> None:
        self._capacity.set(capacity_rps)
        self._replicas.set(replicas)
        self._loss.set(loss)

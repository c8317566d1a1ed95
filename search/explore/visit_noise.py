"""Variance of ratios between visits, from the study's earlier benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from objectives.measurement.recording import RatioNoise
from objectives.measurement.visits import pooled_noise
from objectives.records import Latency, Measurement, Throughput


def ratio_noise(measurements: Sequence[Measurement]) -> RatioNoise:
    """Estimate the variances between the visits of each benchmark, pooled over benchmarks of one study on
    one machine.
    """
    return pooled([m.latency for m in measurements], [m.throughput for m in measurements])


def pooled(latencies: Sequence[Latency], throughputs: Sequence[Throughput]) -> RatioNoise:
    return RatioNoise(
        p95=pooled_noise([latency.p95_visits for latency in latencies]),
        p99=pooled_noise([latency.p99_visits for latency in latencies]),
        service_p50=pooled_noise([latency.service_p50_visits for latency in latencies]),
        throughput=pooled_noise([throughput.ratio_visits for throughput in throughputs]),
        capacity=pooled_noise([throughput.capacity_visits for throughput in throughputs]),
    )

"""Two pools in turns, one request at a time: what the benchmarks say of service times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from objectives.measurement.load_generator import closed_loop, settle
from objectives.measurement.statistics import Floats, ratio_of_percentiles
from objectives.serving.pool import Pool


def paired_service(ours: Pool, theirs: Pool, requests: Sequence[Any], pairs: int) -> tuple[float, tuple[float, float]]:
    """Ratio of the p50 over paired blocks, each of all requests, with its 95% interval."""
    pools, blocks = (ours, theirs), (list[Floats](), list[Floats]())
    for number in range(-1, pairs):  # the first pair warms up
        for deployment in (0, 1) if number % 2 else (1, 0):
            settle()
            closed_loop(pools[deployment].submit, requests[:2])
            blocks[deployment].append(closed_loop(pools[deployment].submit, requests))
    return ratio_of_percentiles(np.array(blocks[0][1:]), np.array(blocks[1][1:]), 50, seed=0)

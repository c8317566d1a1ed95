"""Time that HTTP adds to a request, measured on the baseline: its server beside its bare pool, in alternation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import UNHEARD, PartProgress
from objectives.jobs.requests import TransportRequest, TransportResponse
from objectives.measure.deployment import kept_open, load_target, quiet
from objectives.measure.served import open_server
from objectives.measure.targets import served_target
from objectives.measurement.load_generator import typical_requests

_ROUNDS, _REQUESTS = 20, 12


def transport(request: TransportRequest, progress: PartProgress = UNHEARD) -> TransportResponse:
    """Measure a request of the baseline through its server and without, one at a time; the pool stays open.

    Args:
        progress: `next_part` is called before each part

    Returns:
        The median over the rounds of what is added to the mean of a round, at least 0, and of the pool's own mean.

    Raises:
        RuntimeError: the server does not start.
    """
    requests, baseline = read_requests(Path(request.holdout)), request.baseline
    sample = typical_requests(requests, _REQUESTS)
    with quiet(), ExitStack() as stack:
        pool = load_target(kept_open(baseline, requests), baseline.placement, requests)
        server = stack.enter_context(open_server(baseline, request.served_inputs, requests))
        remote = served_target(server, baseline, requests, (server.process,), stack)
        remote = replace(remote, next_part=progress.next_part)
        rounds = []
        for _ in range(_ROUNDS):
            means = []
            for target in (pool, remote):
                remote.settle()  # which waits for both
                means.append(float(target.closed_loop(sample).mean()))
            rounds.append(means)
    bare, served = np.array(rounds).T
    return TransportResponse(max(float(np.median(served - bare)), 0.0), float(np.median(bare)))

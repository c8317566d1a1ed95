"""Time that HTTP adds to a request, measured on the baseline: its server beside its bare pool, in alternation."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import UNHEARD, PartProgress
from objectives.jobs.requests import TransportRequest, TransportResponse
from objectives.measure.deployment import load_target, open_deployment, pace_ms, quiet, warm_up
from objectives.measure.served import open_server
from objectives.measure.targets import served_target
from objectives.measurement.load_generator import typical_requests

_ROUNDS, _REQUESTS = 20, 12


def transport(request: TransportRequest, progress: PartProgress = UNHEARD) -> TransportResponse:
    """Measure a request of the baseline through its server and without, one at a time.

    Args:
        progress: `next_part` is called before each part

    Returns:
        The median over the rounds of what is added to the mean of a round, at least 0, and the machine's pace.

    Raises:
        RuntimeError: the server does not start.
    """
    requests, baseline = read_requests(Path(request.holdout)), request.baseline
    sample = typical_requests(requests, _REQUESTS)
    with quiet(), ExitStack() as stack:
        progress.next_part()
        opened = stack.enter_context(open_deployment(baseline))
        warm_up(opened.submit, requests, baseline.placement)
        pool = load_target(opened, baseline.placement, requests)
        server = stack.enter_context(open_server(baseline, request.served_inputs, requests))
        remote = served_target(server, baseline, requests, (server.process,), stack)
        remote = replace(remote, next_part=progress.next_part)
        remote.settle()
        progress.next_part()
        looks = [pace_ms(baseline, requests)]
        rounds = []
        for _ in range(_ROUNDS):
            means = []
            for target in (pool, remote):
                remote.settle()  # which waits for both
                means.append(float(target.closed_loop(sample).mean()))
            rounds.append(means)
        remote.settle()  # a server's threads would slow the pace down
        looks.append(pace_ms(baseline, requests))
    bare, served = np.array(rounds).T
    return TransportResponse(max(float(np.median(served - bare)), 0.0), math.sqrt(math.prod(looks)))

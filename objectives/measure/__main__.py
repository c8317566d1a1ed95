"""The meter process: times and profiles model files. Run as `python -m objectives.measure`.

Loads no torch and no user code: requests are plain arrays that a builder wrote.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.jobs import requests as jobs
from objectives.jobs.protocol import Jobs, serve, silent
from objectives.measure.benchmark import benchmark, benchmark_group, visit_together, weigh, weigh_here
from objectives.measure.deployment import quiet
from objectives.measure.served import serve_here
from objectives.measure.service_curves import service_curve
from objectives.measure.transport import transport
from objectives.measurement.profile.profile import median_request, profile_model
from objectives.measurement.profile.roofline import measure_roofline
from objectives.records import Footprint
from objectives.serving.devices import int8_weight_bits


def profile(request: jobs.ProfileRequest) -> jobs.ProfileResponse:
    median, cpu_bits = median_request(read_requests(Path(request.holdout))), int8_weight_bits()
    with quiet():
        found = profile_model(Path(request.model), request.groups, median, threads=request.threads, cpu_bits=cpu_bits)
        roofline = measure_roofline(request.threads, sum(group.weight_bytes for group in found.groups))
    return jobs.ProfileResponse(found, roofline)


def weigh_deployment(request: jobs.WeighRequest) -> Footprint:
    return weigh(Path(request.holdout), request.candidate)


JOBS: Jobs = {
    jobs.BenchmarkRequest: benchmark,
    jobs.ServiceCurveRequest: service_curve,
    jobs.TransportRequest: transport,
    jobs.GroupBenchmarkRequest: benchmark_group,
    jobs.VisitRequest: visit_together,
    jobs.WeighRequest: silent(weigh_deployment),
    jobs.ProfileRequest: silent(profile),
}

if __name__ == "__main__":
    if sys.argv[1:] == ["weigh"]:
        sys.stdout.write(json.dumps(weigh_here(**json.loads(sys.stdin.read()))))
    elif sys.argv[1:] == ["serve"]:
        serve_here(**json.loads(sys.stdin.read()))
    else:
        # Every measurement begins with a collection, which need not look at the modules each time.
        gc.collect()
        gc.freeze()
        serve(JOBS)

"""The meter process: evaluates, benchmarks and profiles model files. Run as `python -m objectives.measure`.

Loads no torch and no user code: held-out rows and requests are plain arrays that a builder wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from objectives.held_out_rows import read_requests
from objectives.jobs import serve
from objectives.measure.benchmark import Load, time, weigh, weigh_here
from objectives.measure.deployment import Deployment, quiet
from objectives.measure.evaluate import evaluate, score
from objectives.measure.quick_benchmark import quick_benchmark
from objectives.measurement.latency import Window
from objectives.measurement.profile.profile import median_request, profile_model
from objectives.measurement.profile.roofline import measure_roofline
from objectives.measurement.recording import RatioNoise
from objectives.records import Artifact, Footprint
from spaces.model_structure import Group
from spaces.serialization import from_plain, to_plain


def _main() -> None:
    if sys.argv[1:] == ["weigh"]:
        sys.stdout.write(json.dumps(weigh_here(**json.loads(sys.stdin.read()))))
        return

    def evaluate_job(progress: Any, candidate: Any, baseline: Any, cache: str, holdout: str, **options: Any) -> Any:
        quality, reused = evaluate(
            cache=Path(cache), holdout=Path(holdout), candidate=_pair(candidate), baseline=_pair(baseline), **options
        )
        return {"quality": to_plain(quality), "reused": reused}

    def score_job(progress: Any, candidate: Any, baseline: Any, cache: str, holdout: str, **options: Any) -> Any:
        ours, theirs, reused = score(
            cache=Path(cache), holdout=Path(holdout), candidate=_pair(candidate), baseline=_pair(baseline), **options
        )
        return {"candidates": ours, "baseline": theirs, "reused": reused}

    def quick_benchmark_job(progress: Any, holdout: str, candidate: Any, baseline: Any) -> Any:
        return to_plain(
            quick_benchmark(Path(holdout), from_plain(Deployment, candidate), from_plain(Deployment, baseline))
        )

    def time_job(
        progress: Any,
        holdout: str,
        artifact: Any,
        candidate: Any,
        baseline: Any,
        load: Any,
        window: Any,
        recording: str,
        weighed: bool,
        noise: Any,
        **options: Any,
    ) -> Any:
        of = from_plain(Artifact, artifact)
        # Measured first: a recording belongs to a benchmark that no later failure can undo.
        footprint = (
            weigh(Path(holdout), of, from_plain(Deployment, candidate)) if weighed else Footprint(of.model_bytes)
        )
        latency, throughput = time(
            holdout=Path(holdout),
            candidate=from_plain(Deployment, candidate),
            baseline=from_plain(Deployment, baseline),
            load=from_plain(Load, load),
            window=from_plain(Window, window),
            recording=Path(recording),
            noise=from_plain(RatioNoise, noise),
            **options,
        )
        return {"latency": to_plain(latency), "throughput": to_plain(throughput), "footprint": to_plain(footprint)}

    def profile_job(progress: Any, model: str, groups: Any, holdout: str) -> Any:
        request = median_request(read_requests(Path(holdout)))
        with quiet():
            found = profile_model(Path(model), [from_plain(Group, g) for g in groups], request)
            roofline = measure_roofline(working_set=sum(group.weight_bytes for group in found.groups))
        return {"profile": to_plain(found), "roofline": to_plain(roofline)}

    serve(
        {
            "evaluate": evaluate_job,
            "score": score_job,
            "quick_benchmark": quick_benchmark_job,
            "benchmark": time_job,
            "profile": profile_job,
        }
    )


def _pair(plain: Any) -> tuple[Artifact, Deployment]:
    return from_plain(Artifact, plain["artifact"]), from_plain(Deployment, plain["deployment"])


if __name__ == "__main__":
    _main()

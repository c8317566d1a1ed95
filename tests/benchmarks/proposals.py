"""Time of a proposal by the number of trials that it learns from.

    python tests/benchmarks/proposals.py [--trials 30,100,300,1000] [--asked 20] [--spaces small,wide] [--profile]

The study in closed form of `tests/samplers_tests/problem.py` is filled at random; then trials are proposed from all
evidence and told. Printed: milliseconds of CPU time of the sampler for a proposal, none of them at random.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.samplers.drawn import Drawn
from search.samplers.expected_gain import Evidence, ExpectedGainSampler
from search.study import Study
from spaces.domains import Choice, Float, Integer
from spaces.search_space import SearchSpace
from spaces.techniques.placement import PlacementSpace, layouts
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import WeightsSpace
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, SPACE, Problem

_GROUPS = ("mlp", "cross", "top", "tables")
# As many knobs as a study of DCN-V2 has.
WIDE = SearchSpace(
    WeightsSpace(
        {"hidden": Choice(("64", "128-64", "256-128", "400-400-400")), "crosses": Integer(1, 3)},
        {group: Float(0.0, 0.875, step=0.125) for group in _GROUPS[:2]},
        {"temperature": Choice((1.0, 3.0)), "teacher_weight": Choice((0.5, 0.9)), "feature_weight": Choice((0.0,))},
        epochs=2,
        low_rank={group: Choice((1.0, 0.5, 0.25)) for group in _GROUPS[:2]},
    ),
    PrecisionSpace(
        {group: Choice(("fp32", "int8-dynamic", "int8-static", "int4")) for group in _GROUPS[:3]}
        | {"tables": Choice(("fp32", "fp16", "int8"))},
        compute=Choice(("fp32", "bf16")),
    ),
    PlacementSpace(
        Choice(("onnxruntime", "openvino")), Choice(layouts(2)), pinned=Choice((False, True)),
        inline=Choice((False, True)), batch_rows=Choice((0, 256, 1024)), batch_wait_us=Choice((0, 200, 1000)),
        split_rows=Choice((0, 100, 400)), route_rows=Choice((0, 100, 400)),
    ),
)  # fmt: skip
SPACES = {"small": SPACE, "wide": WIDE}


class TimedSampler(ExpectedGainSampler):
    """The sampler, with the milliseconds of its proposals."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        super().__init__(OBJECTIVES, LIMITS, 0, explored=0.0)
        self.ms: list[float] = []
        self._profile = profile

    def propose(self, evidence: Evidence, number: int) -> Drawn:
        start = time.process_time()
        if self._profile is None:
            found = super().propose(evidence, number)
        else:
            found = self._profile.runcall(super().propose, evidence, number)
        self.ms.append(1000 * (time.process_time() - start))
        return found


def measure(space: SearchSpace, count: int, asked: int, profile: cProfile.Profile | None) -> list[float]:
    """Return the milliseconds of so many proposals in a study of `count` trials."""
    problem = Problem("random", 0, space)
    for _ in range(count):
        problem.step()
    sampler = TimedSampler(profile)
    problem.study = Study("s", problem.study._storage, OBJECTIVES, LIMITS, 0, "auto")
    problem.study._sampler = problem.study._study.sampler = sampler
    for _ in range(asked):
        problem.step()
    return sampler.ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="30,100,300,1000")
    parser.add_argument("--asked", type=int, default=20)
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--profile", action="store_true", help="print the functions that take longest, too")
    options = parser.parse_args()
    measure(SPACE, 10, 2, None)  # loads scikit-learn
    for name in options.spaces.split(","):
        for count in map(int, options.trials.split(",")):
            profile = cProfile.Profile() if options.profile else None
            ms = measure(SPACES[name], count, options.asked, profile)
            median, p90 = np.percentile(ms, (50, 90))
            print(f"{name}, {count} trials: median {median:.0f} ms, p90 {p90:.0f}, most {max(ms):.0f}", flush=True)
            if profile is not None:
                pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()

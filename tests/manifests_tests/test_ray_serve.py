"""The application and its policy in a real Ray Serve, from an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import leanrec
from search.plan.manifests.run import write_manifests
from spaces.serialization import to_plain
from tests.cli_tests.test_cli import free_port
from tests.manifests_tests.plans import CLUSTER, Kind, plan_of
from tests.serve_tests.bundles import draw_request, write_toy

ROOT = Path(__file__).resolve().parents[2]
# The Python of an environment with ray[serve] and what a light install of leanrec needs.
PYTHON = os.environ.get("LEANREC_TEST_RAY")
PHASE_S, START_S = 12.0, 5.0


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="LEANREC_TEST_RAY names no Python with ray[serve]")
def test_replicas_and_answers_follow_the_plan(tmp_path: Path) -> None:
    """Two machines of one point, then one of another; replicas are ordered before they serve."""
    assert PYTHON is not None
    bundles = [write_toy(tmp_path / f"trial-{10 + number}", seed=number) for number in (0, 1)]
    begin_s = time.time() + 25
    plan = plan_of([Kind(START_S), Kind(START_S)], [(0, 2), (1, 1)], PHASE_S, begin_s)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(to_plain(plan)))
    write_manifests(file, None, CLUSTER, tmp_path / "out")
    folder = tmp_path / "out" / "ray"
    _adapt(folder / "serve.yaml", bundles)
    request = {name: values.tolist() for name, values in draw_request(6).items()}
    seconds = begin_s + 2 * PHASE_S - time.time()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    driver = [PYTHON, str(ROOT / "tests" / "manifests_tests" / "ray_driver.py")]
    arguments = [f"{seconds}", f"{free_port()}", json.dumps(request)]
    done = subprocess.run(
        [*driver, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expected = []
    for bundle in bundles:
        with leanrec.load(str(bundle)) as ranker:
            expected.append(ranker.rank({name: np.array(values) for name, values in request.items()}))
    for number, (offer, machines) in enumerate(((0, 2), (1, 1))):
        begins_s, ends_s = begin_s + number * PHASE_S, begin_s + (number + 1) * PHASE_S
        inside = [each for each in seen if begins_s < each["at_s"] and each["ended_s"] < ends_s]
        assert len(inside) >= 3, seen
        assert {each["running"][f"offer-{offer}"] for each in inside[2:]} == {machines}, seen
        for each in inside:
            status, answer = each["answer"]
            assert status == 200 and answer["order"] == expected[offer].order.tolist()
            np.testing.assert_allclose(answer["scores"], expected[offer].scores, rtol=1e-6)
            assert each["wrong"][0] == 400 and "item" in each["wrong"][1]["error"]


def _adapt(file: Path, bundles: list[Path]) -> None:
    """Give the bundles of this machine, and do not wait a minute before replicas end."""
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    (application,) = config["applications"]
    application["args"]["bundles"] = {f"offer-{number}": str(bundle) for number, bundle in enumerate(bundles)}
    for deployment in application["deployments"]:
        if deployment["name"] != "Router":
            deployment["autoscaling_config"] |= {"downscale_delay_s": 2}
    file.write_text(yaml.safe_dump(config))

"""Balancing over the replicas of a server, by the option of the command line: a real process of two replicas.

A replica runs a batch once it has 100 rows, and else after a minute: which requests are answered at once tells where
they went. Every case tells its policy from all the others.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from objectives.serving.bundle import open_verified
from objectives.serving.pool.balancing import LEAST_ROWS, POLICIES, Cost
from search.cli.serving_options import POOL_POLICIES
from tests.serve_tests import oracle
from tests.serve_tests.bundles import EXAMPLE_ROWS, draw_request, waiting, write_toy
from tests.serve_tests.process import SOON, ServerProcess, serving, wait_until

TWO = replace(waiting(60.0), instance_group=replace(waiting(60.0).instance_group, replicas=2, threads=1))


def test_the_command_line_has_the_policies_of_the_pool() -> None:
    assert tuple(POLICIES) == POOL_POLICIES and POOL_POLICIES[0] == LEAST_ROWS


@pytest.mark.parametrize(
    ("policy", "rows", "answered"),
    [
        # The fourth goes to the replica that has fewer rows, though more requests.
        ("least-rows", [10, 30, 10, 80], {0, 2, 3}),
        # The second is answered, and the third goes to the first one's replica all the same.
        ("round-robin", [20, 100, 80], {0, 1, 2}),
        # The second is answered, so the third goes to its replica, and the fourth to the first one's, with as many.
        ("least-outstanding", [60, 100, 30, 40], {0, 1, 3}),
        # A request costs as much as 100 rows: the fourth goes to the one large request rather than to two small ones.
        ("shortest-delay", [90, 1, 1, 10], {0, 3}),
        # The third and the fifth meet equal loads, and the replica that is drawn is the second one's both times.
        ("two-choices", [10, 30, 30, 30, 40], {1, 2, 4}),
    ],
)
def test_requests_go_where_the_policy_sends_them(
    policy: str, rows: Sequence[int], answered: set[int], tmp_path: Path
) -> None:
    bundle = write_toy(tmp_path / "bundle", TWO, costs=[Cost(100.0, 1.0)])
    with serving(bundle, tmp_path / "log", "--balance", policy) as server:
        ended: set[int] = set()

        def send(number: int) -> None:
            request = oracle.json_request(draw_request(rows[number]))
            try:
                httpx.post(f"{server.url}/infer", json=request, timeout=2 * SOON)
            except httpx.TransportError:  # the server ends with requests that wait
                return
            ended.add(number)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(len(rows))]
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda number=number: _arrived(server) == number + 1)  # type: ignore[misc]
            if rows[number] == EXAMPLE_ROWS:  # it fills a batch
                thread.join(SOON)
        wait_until(lambda: ended == answered)
        server.process.kill()
    for thread in threads:
        thread.join(SOON)
    assert ended == answered


def test_a_bundle_without_a_service_curve_counts_rows_alone(tmp_path: Path) -> None:
    known, unknown = (write_toy(tmp_path / name, costs=costs) for name, costs in (("a", [Cost(5.0, 2.0)]), ("b", [])))
    found = []
    for folder in (known, unknown):
        bundle, pool, _ = open_verified(folder, policy="shortest-delay")
        pool.close()
        found.append(bundle.costs)
    assert found == [[Cost(5.0, 2.0)], [Cost(0.0, 1.0)]]


def _arrived(server: ServerProcess) -> float:
    """Return the requests that are in flight or answered."""
    return server.metric("leanrec_in_flight") + server.metric("leanrec_requests_total")

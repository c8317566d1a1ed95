"""Load targets of deployments: pools in this process, or HTTP servers in front of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from objectives.measure.deployment import (
    Deployment,
    close_kept,
    load_target,
    on_one_thread,
    open_deployment,
    quiet,
    saturating,
    warm_up,
)
from objectives.measure.remote_model import CONNECTIONS, RemoteModel
from objectives.measure.served import Served, open_server
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LiveTarget
from objectives.records import InputSpec
from objectives.serving.pool.keep_warm import WARM_NS

# Requests in flight through a server, beside those that saturate its pool: they are on their way to it or back.
_TRAVELLING = 4


@contextmanager
def open_targets(
    deployments: Sequence[Deployment],
    requests: Sequence[Request],
    served_inputs: Sequence[InputSpec] | None = None,
    next_part: Callable[[], None] = lambda: None,
) -> Iterator[tuple[LiveTarget, ...]]:
    """Open deployments anew, in this order, warmed up, under `quiet`; no other pool stays open.

    Engines that are kept warm rest before each part, since they would disturb the others.

    Args:
        served_inputs: what the HTTP server in front of each takes; None for their pools in this process
        next_part: called before each deployment is opened and warmed up, and as in `LiveTarget`

    Raises:
        RuntimeError: a server does not start; the message has its reason.
    """
    close_kept()
    with quiet(), ExitStack() as stack:
        if served_inputs is None:
            opened = _open_pools(deployments, requests, stack, next_part)
        else:
            opened = _open_servers(deployments, requests, served_inputs, stack, next_part)
        yield opened


@contextmanager
def open_pace_target(baseline: Deployment, requests: Sequence[Request], beside: LiveTarget) -> Iterator[LiveTarget]:
    """Open the baseline's model on one thread, whose time tells the machine's pace, beside targets that are open.

    It waits for the processes of the targets, too, until they are idle. Each of its two parts begins with their
    `next_part`.
    """
    beside.next_part()
    deployment = on_one_thread(baseline)
    with open_deployment(deployment) as pool:
        beside.next_part()
        warm_up(pool.submit, requests, deployment.placement)
        target = load_target(pool, deployment.placement, requests)
        yield replace(target, children=beside.children, next_part=beside.next_part)


def _open_pools(
    deployments: Sequence[Deployment],
    requests: Sequence[Request],
    stack: ExitStack,
    next_part: Callable[[], None],
) -> tuple[LiveTarget, ...]:
    pools = []
    for each in deployments:
        next_part()
        pools.append(stack.enter_context(open_deployment(each)))
    for pool, each in zip(pools, deployments, strict=True):
        next_part()
        warm_up(pool.submit, requests, each.placement)

    def next_with_all_at_rest() -> None:
        next_part()
        for pool in pools:
            pool.rest()

    targets = (load_target(pool, each.placement, requests) for pool, each in zip(pools, deployments, strict=True))
    return tuple(replace(target, next_part=next_with_all_at_rest) for target in targets)


def _open_servers(
    deployments: Sequence[Deployment],
    requests: Sequence[Request],
    inputs: Sequence[InputSpec],
    stack: ExitStack,
    next_part: Callable[[], None],
) -> tuple[LiveTarget, ...]:
    servers, targets = list[Served](), list[LiveTarget]()
    for each in deployments:
        next_part()
        servers.append(stack.enter_context(open_server(each, inputs, requests)))
    children = tuple(server.process for server in servers)
    for server, each in zip(servers, deployments, strict=True):
        next_part()
        targets.append(served_target(server, each, requests, children, stack))
    warm = [each.placement.keep_warm_ms is not None for each in deployments]
    rest = _Rest(next_part, any(warm))
    return tuple(replace(target, next_part=rest.before(own)) for target, own in zip(targets, warm, strict=True))


class _Rest:
    """Wait before each part until the servers that are kept warm rest: in other processes, they are only left alone."""

    def __init__(self, next_part: Callable[[], None], warm: bool) -> None:
        self._next_part, self._warm, self._rests_ns = next_part, warm, 0

    def before(self, warm: bool) -> Callable[[], None]:
        """Return the `next_part` of a server that is kept warm, or is not."""

        def next_with_all_at_rest() -> None:
            if self._warm:  # the part that ends here asked it
                self._rests_ns = time.perf_counter_ns() + WARM_NS
            self._next_part()
            time.sleep(max(0, self._rests_ns - time.perf_counter_ns()) / 1e9)
            self._warm = warm

        return next_with_all_at_rest


def served_target(
    server: Served, deployment: Deployment, requests: Sequence[Request], children: tuple[int, ...], stack: ExitStack
) -> LiveTarget:
    """Connect to a server and warm it up; the connections are closed with the stack.

    Args:
        children: as in `LiveTarget`
    """
    placement = deployment.placement
    connections = max(CONNECTIONS, saturating(placement, requests) + _TRAVELLING)
    remote = stack.enter_context(RemoteModel(server.url, connections))
    warm_up(remote.submit, requests, placement)
    return replace(load_target(remote, placement, requests, _TRAVELLING), children=children)

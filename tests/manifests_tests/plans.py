"""Plans that are given or drawn, for tests of their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from hypothesis import strategies as st

from search.plan.document import ForecastRow, OfferRow, PhaseRow, PlanDocument
from search.plan.manifests.settings import Cluster

CLUSTER = Cluster(
    image="shop/leanrec:1.4",
    namespace="recommend",
    bundles=PurePosixPath("/bundles"),
    prometheus="http://prometheus.monitoring:9090",
)
FORECAST = ForecastRow(
    model="seasonal naive (day)", reason=None, scores=(), held_out_model="last", mape=0.1, coverage={0.9: 0.9}
)
# Saturday 2026-11-28 08:00 UTC.
START_S = 1_795_852_800.0
WEEK_S = 7 * 86_400.0


class Kind(NamedTuple):
    """An offer of a test: seconds until a machine serves, processes of a machine, and their rate within the SLO."""

    start_seconds: float = 0.0
    copies: int = 1
    process_rps: float = 50.0
    loss: float = 0.0
    memory_bytes: int | None = 150_000_000
    machine: str = "small"


def plan_of(
    kinds: Sequence[Kind],
    phases: Sequence[tuple[int, int]],
    phase_seconds: float = 900.0,
    start_s: float | None = START_S,
    weekly: bool = False,
    study: str = "shop",
    utilisation: float = 0.5,
    gain: float = 0.0,
) -> PlanDocument:
    """Return a plan whose phases have these offers and machines, all with the same utilisation expected.

    Each machine beyond the first one lets every machine serve more by this share.
    """
    return PlanDocument(
        study=study,
        source="requests.csv",
        slo_ms=20.0,
        percent=95,
        max_loss=0.005,
        max_money=None,
        headroom=0.95 if weekly else 0.9,
        phase_seconds=phase_seconds,
        start_s=None if weekly else start_s,
        seed=0,
        offers=tuple(_offer(number, kind) for number, kind in enumerate(kinds)),
        left_out={},
        phases=tuple(
            _phase(number * phase_seconds, offer, machines, kinds[offer], utilisation, gain)
            for number, (offer, machines) in enumerate(phases)
        ),
        money=1.0,
        loss=0.001,
        gap=0.0,
        forecast=None if weekly else FORECAST,
        policies=(),
        warnings=(),
    )


def _offer(number: int, kind: Kind) -> OfferRow:
    return OfferRow(
        offer=number,
        trial=10 + number,
        variant=f"v{number}",
        machine=kind.machine,
        most=20,
        machine_cores=kind.copies,
        machine_speed=1.0,
        copies=kind.copies,
        cores=1,
        replicas=kind.copies,
        placement={"engine": "onnxruntime", "replicas": 1, "threads": 1},
        loss=kind.loss,
        price_per_hour=0.1,
        load_seconds=0.5,
        start_seconds=kind.start_seconds,
        memory_bytes=kind.memory_bytes,
        capacity_rps={1: kind.copies * kind.process_rps},
        deployed={},
        layouts=(),
    )


def _phase(start_s: float, offer: int, machines: int, kind: Kind, utilisation: float, gain: float) -> PhaseRow:
    capacity = machines * kind.copies * kind.process_rps * (1 + gain * (machines - 1))
    return PhaseRow(
        start_s=start_s,
        offer=offer,
        trial=10 + offer,
        machine=kind.machine,
        machines=machines,
        machines_started=0,
        replicas=machines * kind.copies,
        expected_rps=utilisation * capacity,
        demand_rps=0.9 * capacity,
        capacity_rps=capacity,
        alone_rps=kind.copies * kind.process_rps,
        short=False,
    )


@st.composite
def kinds(draw: st.DrawFn) -> list[Kind]:
    count = draw(st.integers(1, 3))
    starts = st.sampled_from((0.0, 2.5, 45.0, 60.0, 400.0, 4000.0))
    return [Kind(draw(starts), draw(st.integers(1, 3)), draw(st.floats(1.0, 500.0))) for _ in range(count)]


def _phases(offers: int, count: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    one = st.tuples(st.integers(0, offers - 1), st.integers(1, 3))
    return st.lists(one, min_size=count, max_size=count)


@st.composite
def dated_plans(draw: st.DrawFn) -> PlanDocument:
    """Plans of some phases from a second of 2026 or 2027 on, February's end and New Year among them."""
    given = draw(kinds())
    phase_seconds = draw(st.sampled_from((6.0, 45.0, 60.0, 600.0, 900.0, 7000.0)))
    starts = st.sampled_from((START_S, 1_798_761_000.0, 1_772_322_300.0)) | st.floats(1.77e9, 1.83e9)
    phases = draw(_phases(len(given), draw(st.integers(1, 12))))
    return plan_of(given, phases, phase_seconds, draw(starts), gain=draw(st.floats(0.0, 0.5)))


@st.composite
def weekly_plans(draw: st.DrawFn) -> PlanDocument:
    """Plans of a week, in phases that may not divide it; days may be alike."""
    given = draw(kinds())
    hours = draw(st.sampled_from((3, 5, 6, 12, 24)))
    count = round(168 / hours)
    alike = draw(st.booleans()) and 24 % hours == 0
    phases = draw(_phases(len(given), 24 // hours)) * 7 if alike else draw(_phases(len(given), count))
    return plan_of(given, phases, 3600.0 * hours, weekly=True, gain=draw(st.floats(0.0, 0.5)))

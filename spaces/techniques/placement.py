"""Placement of a model file: engine, replicas, threads, and the path of requests to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from spaces.domains import Choice, Scalar, Suggester, pick
from spaces.serialization import added_later, formerly
from spaces.techniques.quantization import Precision


@dataclass(frozen=True)
class InstanceGroup:
    """Equal replicas of one engine on one device.

    threads: threads of each replica; None leaves the number to the engine
    pinned: the threads of each replica are bound to separate cores
    """

    engine: str = "onnxruntime"
    device: str = "cpu"
    replicas: int = 1
    threads: int | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"There is at least one replica, but got {self.replicas}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"A replica has at least one thread, but got {self.threads}.")
        if self.pinned and self.threads is None:
            raise ValueError("Pinned replicas have a number of threads, but got None.")

    @property
    def layout(self) -> str:
        return f"{self.replicas}x{self.threads or 'auto'}"

    @property
    def place(self) -> str:
        return self.engine if self.device == "cpu" else f"{self.engine}:{self.device}"


@dataclass(frozen=True)
class Batching:
    """Dynamic batching of waiting requests.

    A free replica takes waiting requests together, up to `rows` rows, and waits at most `wait_us` microseconds for
    more.
    """

    rows: int
    wait_us: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2 or self.wait_us < 0:
            raise ValueError(f"A batch has 2 rows or more and waits 0 us or more, but got {self}.")


@dataclass(frozen=True)
class Route:
    """Routing of requests of more than `above_rows` rows to a second instance group."""

    above_rows: int
    instance_group: InstanceGroup = field(metadata=formerly("seat"))

    def __post_init__(self) -> None:
        if self.above_rows < 1:
            raise ValueError(f"A route begins above 1 row or more, but got {self.above_rows}.")


@dataclass(frozen=True)
class Admission:
    """Admission control of requests; None sets no limit.

    At most `queue` requests wait, and a request that cannot finish within `deadline_ms` milliseconds is refused at
    once.
    """

    queue: int | None = None
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.queue is not None and self.queue < 1:
            raise ValueError(f"A queue holds 1 request or more, but got {self.queue}.")
        if self.deadline_ms is not None and not (math.isfinite(self.deadline_ms) and self.deadline_ms > 0):
            raise ValueError(f"A deadline is above 0 ms, but got {self.deadline_ms}.")


@dataclass(frozen=True)
class EmbeddingDevice:
    """Engine and device of the embedding stage where they differ from those of the dense stage.

    The graph is split behind the embedding tables.
    """

    engine: str
    device: str = "cpu"

    @property
    def place(self) -> str:
        return InstanceGroup(self.engine, self.device).place


# Milliseconds after a request until which an idle engine is kept warm, and the fewest after which a row is run. A
# service without requests takes no core; of fewer than four requests a second for each replica, many find it cold.
WARM_MS = 250.0
LEAST_WARM_MS = 0.01


@dataclass(frozen=True)
class Placement:
    """Instance group of the replicas, and the path of requests to them; every default is the baseline's.

    inline: an idle single replica computes on the caller's own thread
    split_rows: a request of more rows is split among the replicas
    user_once: the subgraph that depends on the user alone is computed once a request (a transform of the graph)
    score_catalogue: a whole table is multiplied with the request's vector, and the products are looked up by item
        instead of the table's rows (a transform of the graph)
    keep_warm_ms: an idle replica runs a single row after so many milliseconds without a run, so that the next request
        finds a warm engine; None for none
    """

    instance_group: InstanceGroup = field(default=InstanceGroup(), metadata=formerly("seat"))
    inline: bool = False
    batching: Batching | None = None
    split_rows: int | None = None
    route: Route | None = None
    embedding_device: EmbeddingDevice | None = field(default=None, metadata=formerly("lookup"))
    user_once: bool = False
    score_catalogue: bool = field(default=False, metadata=added_later())
    keep_warm_ms: float | None = field(default=None, metadata=added_later())
    admission: Admission = Admission()

    def __post_init__(self) -> None:
        if self.inline and (self.instance_group.replicas > 1 or self.batching is not None):
            raise ValueError("A replica that answers inline is the only one and batches nothing.")
        if self.split_rows is not None and (self.instance_group.replicas < 2 or self.split_rows < 1):
            raise ValueError(f"Requests are split above 1 row or more, over two replicas or more, but got {self}.")
        if self.user_once and self.batching is not None:
            raise ValueError("What is computed once a request is not batched with other users' requests.")
        if self.score_catalogue and (self.embedding_device is not None or self.batching is not None):
            raise ValueError("A graph that scores the whole catalogue has no embedding device and is not batched.")
        if self.keep_warm_ms is not None and not LEAST_WARM_MS <= self.keep_warm_ms < WARM_MS:
            limits = f"{LEAST_WARM_MS:g} to {WARM_MS:g} ms"
            raise ValueError(f"An engine is kept warm by a run after {limits}, but got {self.keep_warm_ms}.")

    @property
    def instance_groups(self) -> tuple[InstanceGroup, ...]:
        """All instance groups that serve requests, the first for the smallest requests."""
        return (self.instance_group,) if self.route is None else (self.instance_group, self.route.instance_group)

    @property
    def of_graph(self) -> Placement:
        """The same with those settings only on which the files of a graph depend."""
        return Placement(
            embedding_device=self.embedding_device, user_once=self.user_once, score_catalogue=self.score_catalogue
        )

    @property
    def of_scores(self) -> tuple[Placement, ...]:
        """One replica of each instance group, with those settings only on which its scores depend."""
        groups = (InstanceGroup(group.engine, group.device) for group in self.instance_groups)
        return tuple(replace(self.of_graph, instance_group=group) for group in groups)

    @property
    def replicas(self) -> int:
        return sum(instance_group.replicas for instance_group in self.instance_groups)

    @property
    def served_together(self) -> int:
        """Requests that are served at the same time, at least: one that is split takes all replicas of its group."""
        return self.replicas if self.split_rows is None else len(self.instance_groups)

    @property
    def prepared_by_size(self) -> bool:
        """True if an engine prepares its kernels for each new number of rows."""
        places = [place for place in (*self.instance_groups, self.embedding_device) if place is not None]
        return any({place.engine, place.device.partition(":")[0]} & PREPARED_BY_SIZE for place in places)

    @property
    def in_turn(self) -> int | None:
        """Replicas that serve requests one by one as they arrive; None where they batch, split, route or refuse."""
        plain = replace(self, batching=None, split_rows=None, route=None, admission=Admission())
        return self.replicas if self == plain else None

    def with_replicas(self, replicas: int) -> Placement:
        """Return the same with so many replicas in the first instance group.

        Inline and splitting are left out where they do not apply to so many.
        """
        return replace(
            self,
            instance_group=replace(self.instance_group, replicas=replicas),
            inline=self.inline and replicas == 1,
            split_rows=self.split_rows if replicas > 1 else None,
        )

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name; 0 and "same" stand for a feature that is off."""
        batching, route, admission = self.batching, self.route, self.admission
        return {
            "placement.engine": self.instance_group.engine,
            "placement.device": self.instance_group.device,
            "placement.replicas": self.instance_group.replicas,
            "placement.threads": self.instance_group.threads or "auto",
            "placement.pinned": self.instance_group.pinned,
            "placement.inline": self.inline,
            "placement.batch_rows": batching.rows if batching else 0,
            "placement.batch_wait_us": batching.wait_us if batching else 0,
            "placement.split_rows": self.split_rows or 0,
            "placement.route_rows": route.above_rows if route else 0,
            "placement.route_engine": route.instance_group.place if route else "same",
            "placement.route_layout": route.instance_group.layout if route else "same",
            "placement.embedding_device": self.embedding_device.place if self.embedding_device else "same",
            "placement.user_once": self.user_once,
            "placement.score_catalogue": self.score_catalogue,
            "placement.keep_warm_ms": self.keep_warm_ms or 0.0,
            "placement.queue": admission.queue or 0,
            "placement.deadline_ms": admission.deadline_ms or 0.0,
        }


@cache
def parse_place(text: str) -> tuple[str, str]:
    """Parse a place such as `onnxruntime:cuda` into engine and device; the default device is the CPU.

    Raises:
        ValueError: the text is not ENGINE or ENGINE:DEVICE.
    """
    engine, colon, device = text.partition(":")
    if not engine or (colon and not device):
        raise ValueError(f"A place reads ENGINE or ENGINE:DEVICE, such as onnxruntime:cuda, but got {text!r}.")
    return engine, device or "cpu"


@cache
def parse_layout(text: str) -> tuple[int, int | None]:
    """Parse a layout such as `2x1` or `1xauto` into replicas and threads (None for `auto`).

    Raises:
        ValueError: the text is not REPLICASxTHREADS.
    """
    replicas, _, threads = text.partition("x")
    if not replicas.isdecimal() or not (threads == "auto" or threads.isdecimal()):
        raise ValueError(f"A layout reads REPLICASxTHREADS, such as 2x1 or 1xauto, but got {text!r}.")
    return int(replicas), None if threads == "auto" else int(threads)


def layouts(cores: int) -> tuple[str, ...]:
    """List the baseline's layout, then every split of the cores into equal replicas that share no core."""
    return ("1xauto", *(f"{r}x{t}" for r in range(1, cores + 1) for t in range(1, cores // r + 1)))


# The only engine that computes fp32 graphs in bf16; bf16 therefore determines the engine.
BF16_ENGINE = "openvino"
# Engines, and devices of ONNX Runtime, that prepare their kernels for each new number of rows.
PREPARED_BY_SIZE = frozenset({"openvino", "tensorrt"})
# Engines whose threads beyond the first belong to the process and cannot be bound to a replica's cores.
_UNBOUND = frozenset({"openvino"})
_ENGINE, _LAYOUT = "onnxruntime", "1xauto"
# Domains that fix a knob at the baseline's value.
_NO, _NONE, _SAME, _NEVER = Choice((False,)), Choice((0,)), Choice(("same",)), Choice((0.0,))
# Settings of the user's serving policy, which may apply to every candidate; a wait has no effect without batches.
_FREE = ("batch_wait_us", "queue", "deadline_ms")


@dataclass(frozen=True)
class PlacementSpace:
    """Domains by knob; a knob with a single value is fixed and not suggested.

    0 rows disables batching, splitting or routing, and 0 ms the runs that keep an engine warm.

    engine: places such as `onnxruntime` or `onnxruntime:cuda`; a route leads to another of them
    embedding_device: `same`, or the place of the embedding stage
    queue, deadline_ms: the user's admission policy rather than choices to search; 0 is none
    tables: names of the tables and of their groups, which all are in fp32 where the catalogue is scored as a whole
    """

    engine: Choice
    layout: Choice
    pinned: Choice = _NO
    inline: Choice = _NO
    batch_rows: Choice = _NONE
    batch_wait_us: Choice = _NONE
    split_rows: Choice = _NONE
    route_rows: Choice = _NONE
    embedding_device: Choice = _SAME
    user_once: Choice = _NO
    score_catalogue: Choice = field(default=_NO, metadata=added_later())
    keep_warm_ms: Choice = field(default=_NEVER, metadata=added_later())
    queue: Choice = _NONE
    deadline_ms: Choice = _NEVER
    tables: tuple[str, ...] = field(default=(), metadata=added_later())

    def __post_init__(self) -> None:
        for name, value in _baseline().items():
            domain: Choice = getattr(self, name)
            if name not in _FREE and value not in domain:
                raise ValueError(f"placement.{name} must offer the baseline's {value}, but got {list(domain.values)}.")

    def baseline(self) -> dict[str, Scalar]:
        """Return the knob values of the baseline's placement."""
        return {f"placement.{name}": value for name, value in _baseline().items()}

    def lean(self) -> dict[str, Scalar]:
        """Return the knob values that suit small models, where they are offered.

        They are one thread, inline, the whole catalogue and a warm engine: of a small model, copying a row of the table
        for each item may take most of a request, and so may finding code and weights in cold caches.
        """
        layout = "1x1" if "1x1" in self.layout else _LAYOUT
        offered = {name: True in getattr(self, name) for name in ("inline", "score_catalogue")}
        warm = next((value for value in self.keep_warm_ms.values if value), 0.0)
        values: dict[str, Scalar] = {"layout": layout, **offered, "keep_warm_ms": warm}
        return {f"placement.{name}": value for name, value in values.items()}

    def suggest(self, suggester: Suggester, precision: Precision, full_tables: bool = True) -> Placement:
        """Suggest a placement; only the knobs that apply given the earlier choices are suggested.

        Args:
            full_tables: whether the tables have a row for each code
        """
        baseline = _baseline()
        # Widths that only one engine can read or compute determine the engine, for every stage and every size of
        # request.
        settled = parse_place(BF16_ENGINE if precision.compute == "bf16" else _ENGINE)
        free = precision.compute == "fp32" and not precision.packed

        def ask(name: str, asked: bool = True) -> Any:
            domain: Choice = getattr(self, name)
            return pick(domain, suggester, f"placement.{name}") if asked else baseline[name]

        replicas, threads = parse_layout(ask("layout"))
        engine, device = parse_place(ask("engine")) if free else settled
        user_once = ask("user_once")
        inline = ask("inline", replicas == 1)
        # Batches have any number of rows.
        by_size = bool({engine, device.partition(":")[0]} & PREPARED_BY_SIZE)
        # Scores that depend on the other rows of the batch are defined for whole requests, as they were evaluated.
        whole = precision.depends_on_batch
        batch_rows = ask("batch_rows", not inline and not user_once and not by_size and not whole)
        wait_us = ask("batch_wait_us", batch_rows > 0)
        split_rows = ask("split_rows", replicas > 1 and not whole)
        embedding_device = ask("embedding_device", free)
        own = InstanceGroup(engine, device).place
        # A row of the user's side for each item is no single vector.
        single = user_once or True not in self.user_once
        full = full_tables and all(precision.width(name) == "fp32" for name in self.tables)
        unsplit = not batch_rows and embedding_device in ("same", own)
        score_catalogue = ask("score_catalogue", single and full and unsplit)
        others = tuple(place for place in self.engine.values if place != own)
        route_rows = ask("route_rows", bool(others) and free and not inline and not batch_rows)
        pinnable = threads is not None and (engine not in _UNBOUND or threads == 1)
        pinned = ask("pinned", pinnable and not route_rows)
        return Placement(
            instance_group=InstanceGroup(engine, device, replicas, threads, pinned),
            inline=inline,
            batching=Batching(batch_rows, wait_us) if batch_rows else None,
            split_rows=split_rows or None,
            route=Route(route_rows, self._route(suggester, own, others)) if route_rows else None,
            embedding_device=None
            if embedding_device in ("same", own)
            else EmbeddingDevice(*parse_place(embedding_device)),
            user_once=user_once,
            score_catalogue=score_catalogue,
            keep_warm_ms=ask("keep_warm_ms") or None,
            admission=Admission(ask("queue") or None, ask("deadline_ms") or None),
        )

    def _route(self, suggester: Suggester, own: str, others: tuple[Scalar, ...]) -> InstanceGroup:
        """Suggest the instance group of large requests; the knob's name holds the place on which its domain depends."""
        place = pick(Choice(others), suggester, f"placement.route_from_{own}")
        layout = pick(self.layout, suggester, "placement.route_layout")
        return InstanceGroup(*parse_place(place), *parse_layout(layout))


@cache
def _baseline() -> Mapping[str, Scalar]:
    """Return the baseline's engine and layout, and for every other knob the only value of its default domain."""
    rest = {f.name: f.default.values[0] for f in fields(PlacementSpace) if isinstance(f.default, Choice)}
    return {"engine": _ENGINE, "layout": _LAYOUT, **rest}

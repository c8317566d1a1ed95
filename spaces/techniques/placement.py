"""Placement of a model file: engine, replicas, threads, and the path of requests to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spaces.domains import Scalar
from spaces.serialization import formerly


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
        return _place(self.engine, self.device)


@dataclass(frozen=True)
class Batching:
    """Dynamic batching: a free replica takes waiting requests together, up to `rows` rows, and waits at most `wait_us`
    microseconds for more.
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
    """Admission control: at most `queue` requests wait, and a request that cannot finish within `deadline_ms`
    milliseconds is refused at once; None sets no limit.
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
    """Engine and device of the embedding stage where they differ from those of the dense stage; the graph is split
    behind the embedding tables.
    """

    engine: str
    device: str = "cpu"

    @property
    def place(self) -> str:
        return _place(self.engine, self.device)


@dataclass(frozen=True)
class Placement:
    """Instance group of the replicas, and the path of requests to them; every default is the baseline's.

    inline: an idle single replica computes on the caller's own thread
    split_rows: a request of more rows is split among the replicas
    user_once: the subgraph that depends on the user alone is computed once a request (a transform of the graph)
    """

    instance_group: InstanceGroup = field(default=InstanceGroup(), metadata=formerly("seat"))
    inline: bool = False
    batching: Batching | None = None
    split_rows: int | None = None
    route: Route | None = None
    embedding_device: EmbeddingDevice | None = field(default=None, metadata=formerly("lookup"))
    user_once: bool = False
    admission: Admission = Admission()

    def __post_init__(self) -> None:
        if self.inline and (self.instance_group.replicas > 1 or self.batching is not None):
            raise ValueError("A replica that answers inline is the only one and batches nothing.")
        if self.split_rows is not None and (self.instance_group.replicas < 2 or self.split_rows < 1):
            raise ValueError(f"Requests are split above 1 row or more, over two replicas or more, but got {self}.")
        if self.user_once and self.batching is not None:
            raise ValueError("What is computed once a request is not batched with other users' requests.")

    @property
    def instance_groups(self) -> tuple[InstanceGroup, ...]:
        """All instance groups that serve requests, the first for the smallest requests."""
        return (self.instance_group,) if self.route is None else (self.instance_group, self.route.instance_group)

    @property
    def replicas(self) -> int:
        return sum(instance_group.replicas for instance_group in self.instance_groups)

    @property
    def in_turn(self) -> int | None:
        """Number of replicas that serve requests one by one in the order of arrival; None where requests are batched,
        split, routed to a second instance group or refused.
        """
        plain = Placement(
            self.instance_group, self.inline, embedding_device=self.embedding_device, user_once=self.user_once
        )
        return self.replicas if self == plain else None

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
            "placement.queue": admission.queue or 0,
            "placement.deadline_ms": admission.deadline_ms or 0.0,
        }


def _place(engine: str, device: str) -> str:
    return engine if device == "cpu" else f"{engine}:{device}"


def parse_place(text: str) -> tuple[str, str]:
    """Parse a place such as `onnxruntime:cuda` into engine and device; the default device is the CPU.

    Raises:
        ValueError: the text is not ENGINE or ENGINE:DEVICE.
    """
    engine, colon, device = text.partition(":")
    if not engine or (colon and not device):
        raise ValueError(f"A place reads ENGINE or ENGINE:DEVICE, such as onnxruntime:cuda, but got {text!r}.")
    return engine, device or "cpu"


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

"""Domains of the placement's knobs, and the conditions under which each is suggested."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from spaces.domains import Choice, Scalar, Suggester, pick
from spaces.techniques.placement import (
    Admission,
    Batching,
    EmbeddingDevice,
    InstanceGroup,
    Placement,
    Route,
    parse_layout,
    parse_place,
)
from spaces.techniques.quantization import Precision

# The only engine that computes fp32 graphs in bf16; bf16 therefore determines the engine.
BF16_ENGINE = "openvino"
_ENGINE, _LAYOUT = "onnxruntime", "1xauto"
# Domains that fix a knob at the baseline's value.
_NO, _NONE, _SAME, _NEVER = Choice((False,)), Choice((0,)), Choice(("same",)), Choice((0.0,))
# Settings of the user's serving policy, which may apply to every candidate; a wait has no effect without batches.
_FREE = ("batch_wait_us", "queue", "deadline_ms")


@dataclass(frozen=True)
class PlacementSpace:
    """Domains by knob; a knob with a single value is fixed and not suggested. 0 rows disables batching, splitting or
    routing.

    engine: places such as `onnxruntime` or `onnxruntime:cuda`; a route leads to another of them
    embedding_device: `same`, or the place of the embedding stage
    queue, deadline_ms: the user's admission policy rather than choices to search; 0 is none
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
    queue: Choice = _NONE
    deadline_ms: Choice = _NEVER

    def __post_init__(self) -> None:
        for name, value in self._baseline().items():
            domain: Choice = getattr(self, name)
            if name not in _FREE and value not in domain:
                raise ValueError(f"placement.{name} must offer the baseline's {value}, but got {list(domain.values)}.")

    @staticmethod
    def _baseline() -> dict[str, Scalar]:
        """Return the baseline's engine and layout, and for every other knob the only value of its default domain."""
        rest = {f.name: f.default.values[0] for f in fields(PlacementSpace) if isinstance(f.default, Choice)}
        return {"engine": _ENGINE, "layout": _LAYOUT, **rest}

    def baseline(self) -> dict[str, Scalar]:
        """Return the knob values of the baseline's placement."""
        return {f"placement.{name}": value for name, value in self._baseline().items()}

    def lean(self) -> dict[str, Scalar]:
        """Return the knob values of a placement that suits small models: one thread, inline (the caller's own thread)
        where that is offered.
        """
        layout = "1x1" if "1x1" in self.layout else _LAYOUT
        return {"placement.layout": layout, "placement.inline": True in self.inline}

    def suggest(self, suggester: Suggester, precision: Precision) -> Placement:
        """Suggest a placement; only the knobs that apply given the earlier choices are suggested."""

        baseline = self._baseline()
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
        # OpenVINO prepares its kernels anew for each number of rows, and batches have any number.
        by_size = engine == BF16_ENGINE
        # Scores that depend on the other rows of the batch are defined for whole requests, as they were evaluated.
        whole = precision.depends_on_batch
        batch_rows = ask("batch_rows", not inline and not user_once and not by_size and not whole)
        wait_us = ask("batch_wait_us", batch_rows > 0)
        split_rows = ask("split_rows", replicas > 1 and not whole)
        embedding_device = ask("embedding_device", free)
        others = [p for p in self.engine.values if parse_place(str(p)) != (engine, device)]
        route_rows = ask("route_rows", bool(others) and free and not inline and not batch_rows)
        # OpenVINO's threads beyond the first belong to the process and cannot be bound to a replica's cores.
        pinnable = threads is not None and (engine != BF16_ENGINE or threads == 1)
        pinned = ask("pinned", pinnable and not route_rows)
        return Placement(
            instance_group=InstanceGroup(engine, device, replicas, threads, pinned),
            inline=inline,
            batching=Batching(batch_rows, wait_us) if batch_rows else None,
            split_rows=split_rows or None,
            route=Route(route_rows, self._route(suggester, engine, device)) if route_rows else None,
            embedding_device=None
            if embedding_device in ("same", InstanceGroup(engine, device).place)
            else EmbeddingDevice(*parse_place(embedding_device)),
            user_once=user_once,
            admission=Admission(ask("queue") or None, ask("deadline_ms") or None),
        )

    def _route(self, suggester: Suggester, engine: str, device: str) -> InstanceGroup:
        """Suggest the instance group of the large requests. The place is suggested only where there are several, under
        a name that contains the place of the small requests, on which its domain depends.
        """
        own = InstanceGroup(engine, device).place
        others = Choice(tuple(place for place in self.engine.values if place != own))
        place = pick(others, suggester, f"placement.route_from_{own}")
        layout = pick(self.layout, suggester, "placement.route_layout")
        return InstanceGroup(*parse_place(place), *parse_layout(layout))

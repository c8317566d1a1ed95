"""What the knobs of a placement may be, and which of them are asked for beside which others."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from spaces.domains import Choice, Scalar, Suggester
from spaces.placement import Admission, Batching, Lookup, Placement, Route, Seat, parse_layout, parse_place

# The engine that alone computes fp32 graphs in bf16; choosing bf16 settles the engine.
BF16_ENGINE = "openvino"
_ENGINE, _LAYOUT = "onnxruntime", "1xauto"
# Domains that leave a knob as the baseline has it.
_NO, _NONE, _SAME, _NEVER = Choice((False,)), Choice((0,)), Choice(("same",)), Choice((0.0,))
# A policy of the user's, which may hold in every candidate; a wait means nothing without batches.
_FREE = ("batch_wait_us", "queue", "deadline_ms")


@dataclass(frozen=True)
class PlacementSpace:
    """Domains by knob; one with a single value is settled and not asked for. 0 rows: no batching, splitting, routing.

    engine: places such as `onnxruntime` or `onnxruntime:cuda`; a route leads to another of them.
    lookup: `same`, or the place of the embedding stage.
    queue and deadline_ms are a policy of the user's rather than a choice to search: 0 is none.
    """

    engine: Choice
    layout: Choice
    pinned: Choice = _NO
    inline: Choice = _NO
    batch_rows: Choice = _NONE
    batch_wait_us: Choice = _NONE
    split_rows: Choice = _NONE
    route_rows: Choice = _NONE
    lookup: Choice = _SAME
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
        """The baseline's engine and layout, and of every other knob the value that its default holds alone."""
        rest = {f.name: f.default.values[0] for f in fields(PlacementSpace) if isinstance(f.default, Choice)}
        return {"engine": _ENGINE, "layout": _LAYOUT, **rest}

    def baseline(self) -> dict[str, Scalar]:
        """Knob values of the baseline's own placement."""
        return {f"placement.{name}": value for name, value in self._baseline().items()}

    def suggest(self, suggester: Suggester, compute: str) -> Placement:
        """Only what makes sense beside what was drawn before is asked for."""

        baseline = self._baseline()

        def pick(name: str, asked: bool = True) -> Any:
            domain: Choice = getattr(self, name)
            if not asked:
                return baseline[name]
            return _pick(domain, suggester, f"placement.{name}")

        replicas, threads = parse_layout(pick("layout"))
        engine, device = (BF16_ENGINE, "cpu") if compute == "bf16" else parse_place(pick("engine"))
        user_once = pick("user_once")
        inline = pick("inline", replicas == 1)
        # It prepares kernels anew for each number of rows, and batches have any number.
        by_size = engine == BF16_ENGINE
        batch_rows = pick("batch_rows", not inline and not user_once and not by_size)
        wait_us = pick("batch_wait_us", batch_rows > 0)
        split_rows = pick("split_rows", replicas > 1)
        lookup = pick("lookup", compute == "fp32")
        others = [p for p in self.engine.values if parse_place(str(p)) != (engine, device)]
        route_rows = pick("route_rows", bool(others) and compute == "fp32" and not inline and not batch_rows)
        # OpenVINO's threads beyond the first belong to the process, and stay on no replica's cores.
        pinnable = threads is not None and (engine != BF16_ENGINE or threads == 1)
        pinned = pick("pinned", pinnable and not route_rows)
        return Placement(
            seat=Seat(engine, device, replicas, threads, pinned),
            inline=inline,
            batching=Batching(batch_rows, wait_us) if batch_rows else None,
            split_rows=split_rows or None,
            route=Route(route_rows, self._route(suggester, engine, device)) if route_rows else None,
            lookup=None if lookup in ("same", Seat(engine, device).place) else Lookup(*parse_place(lookup)),
            user_once=user_once,
            admission=Admission(pick("queue") or None, pick("deadline_ms") or None),
        )

    def _route(self, suggester: Suggester, engine: str, device: str) -> Seat:
        """Where the large requests go. The place is asked for only where there are several, under a name by where the
        small ones go: its domain depends on that."""
        own = Seat(engine, device).place
        others = Choice(tuple(place for place in self.engine.values if place != own))
        place = _pick(others, suggester, f"placement.route_from_{own}")
        layout = _pick(self.layout, suggester, "placement.route_layout")
        return Seat(*parse_place(place), *parse_layout(layout))


def _pick(domain: Choice, suggester: Suggester, name: str) -> Any:
    return domain.values[0] if len(domain.values) == 1 else domain.suggest(suggester, name)

"""Each technique alone, at two settings, for one family: time, bytes and quality beside the baseline.

    python tests/benchmarks/techniques/alone.py STUDY.yaml --home DIR [--length screen]

The study file says the model, its data and how long a student learns; its baseline is trained first where it is not in
the cache. Every cell is built, judged on validation and timed beside the baseline in a run of its own; one that cannot
be built says why, and one whose load generator fell behind is looked at in a closed loop. What was measured is kept in
the home, and a second call measures the rest.

Groups out of the profile's focus, which a study would leave alone, are marked with a dot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from objectives.records import Prepared
from objectives.serving.devices import describe
from search.ablation.records import Difference
from search.cli.console import Console
from search.config.defaults import space_for
from search.config.study_file import load
from search.errors import JobError
from search.explore.cost_model import CostModel
from search.explore.run import profiled
from search.home import Home
from search.locking import locked
from search.session import Session, jobs_of, open_session, prepare
from search.workers.meter_jobs import Length, Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Worker
from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.focus import SHARE
from spaces.model_structure import Group
from spaces.search_space import SearchSpace
from spaces.serialization import digest, from_plain, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import (
    BF16_ENGINE,
    Batching,
    InstanceGroup,
    Placement,
    Route,
    parse_layout,
    parse_place,
)
from spaces.techniques.pruning import IMPORTANCES, Pruning, ways_to_prune
from spaces.techniques.quantization import CALIBRATIONS, LINEAR_WIDTHS, STATIC, TABLE_WIDTHS, Precision
from spaces.weights import Weights

RATIOS, RANKS = (0.3, 0.6), (0.375, 0.125)
FULL_ROWS, TEMPERATURES_OF_DIMENSIONS = (0.3, 0.05), (0.2, 0.6)
TEMPERATURES, FEATURE_WEIGHT = (1.0, 4.0), 0.5
_STEPS = 3
_LOOKS = 5


@dataclass(frozen=True)
class Cell:
    """One technique at one setting, and the layer group that it concerns, if it is one."""

    technique: str
    setting: str
    candidate: Candidate
    group: str | None = None


def cells(prepared: Prepared, space: SearchSpace) -> Iterator[Cell]:
    learning = Distillation(temperature=2.0, teacher_weight=0.5, epochs=space.weights.epochs)
    groups = prepared.structure.groups
    yield from _students(space, learning)
    for group in groups:
        yield from _reshaped(group, space, learning)
    yield from _attention(space, learning)
    for t in TEMPERATURES:
        teacher_scores = replace(learning, temperature=t)
        yield Cell("distillation", f"its own shape, T={t:g}", Candidate(Weights(distillation=teacher_scores)))
    if prepared.featured:
        teacher_scores = replace(learning, feature_weight=FEATURE_WEIGHT)
        told = f"its own shape, features {FEATURE_WEIGHT:g}"
        yield Cell("distillation", told, Candidate(Weights(distillation=teacher_scores)))
    for group in groups:
        yield from _narrowed(group, learning)
    yield from _placed(prepared, space)


def _students(space: SearchSpace, learning: Distillation) -> Iterator[Cell]:
    """Each size in the middle of its values, and each at its least."""
    sizes = {name: d.values for name, d in space.weights.architecture.items() if isinstance(d, Choice)}
    for setting, place in (("middle", lambda n: (n - 1) // 2), ("smallest", lambda n: 0)):
        chosen = Architecture(tuple((name, values[place(len(values))]) for name, values in sizes.items()))
        told = ", ".join(f"{name} {value}" for name, value in chosen.sizes)
        yield Cell(
            "lighter architecture",
            f"{setting}: {told}",
            Candidate(Weights(architecture=chosen, distillation=learning)),
        )


def _reshaped(group: Group, space: SearchSpace, learning: Distillation) -> Iterator[Cell]:
    name, weights = group.name, space.weights

    def learned(**parts: Any) -> Candidate:
        return Candidate(replace(Weights(distillation=learning), **parts))

    if name in weights.pruning:
        for ratio in ways_to_prune(group, RATIOS, weights.multiple):
            cut = Pruning(((name, ratio),), multiple=weights.multiple)
            yield Cell("pruning", f"{name} {ratio:.0%}", learned(pruning=cut), name)
        for importance in IMPORTANCES[1:]:
            cut = Pruning(((name, RATIOS[-1]),), importance, multiple=weights.multiple)
            yield Cell("pruning", f"{name} {RATIOS[-1]:.0%} by {importance}", learned(pruning=cut), name)
        if learning.epochs > _STEPS:
            cut = Pruning(((name, RATIOS[-1]),), steps=_STEPS, multiple=weights.multiple)
            yield Cell("pruning", f"{name} {RATIOS[-1]:.0%} in {_STEPS} steps", learned(pruning=cut), name)
    if name in weights.low_rank:
        for share in RANKS:
            yield Cell("low rank", f"{name} {share:g}", learned(low_rank=LowRank(((name, share),))), name)
    for table in weights.tables:
        if table != name and table not in group.modules:
            continue
        for own in FULL_ROWS:
            yield Cell(
                "shared rows",
                f"{table}, own {own:g}",
                learned(quotient_remainder=(QuotientRemainder(table, own),)),
                name,
            )
        for t in TEMPERATURES_OF_DIMENSIONS:
            mixed = (MixedDimensions(table, t),)
            yield Cell("mixed dimensions", f"{table}, temperature {t:g}", learned(mixed_dimensions=mixed), name)


def _attention(space: SearchSpace, learning: Distillation) -> Iterator[Cell]:
    for name in ("window", "history"):
        offered: Choice = getattr(space.weights, name)
        for size in sorted(int(value) for value in offered.values if value)[:2]:
            attention = Attention(**{name: size})
            weights = Weights(attention=attention, distillation=learning)
            yield Cell("sparse attention", f"{name} {size}", Candidate(weights))


def _narrowed(group: Group, learning: Distillation) -> Iterator[Cell]:
    name = group.name
    if group.kind == "table":
        for of_table in TABLE_WIDTHS[1:]:
            narrow = Candidate(precision=Precision(((name, of_table),)))
            yield Cell("narrower tables", f"{name} {of_table}", narrow, name)
    if group.kind not in ("linear", "attention"):
        return
    for width in LINEAR_WIDTHS[1:]:
        if width != STATIC:
            yield Cell("narrower layers", f"{name} {width}", Candidate(precision=Precision(((name, width),))), name)
    for calibration in CALIBRATIONS:
        static = Precision(((name, STATIC),), calibration=calibration)
        yield Cell("narrower layers", f"{name} {STATIC} {calibration}", Candidate(precision=static), name)
    for epochs in (1, max(2, learning.epochs)):
        aware = Weights(distillation=replace(learning, epochs=epochs), quantization_aware=(name,))
        told = f"{name}, {epochs} {'pass' if epochs == 1 else 'passes'}"
        yield Cell("learning with rounding", told, Candidate(aware, Precision(((name, STATIC),))), name)


def _placed(prepared: Prepared, space: SearchSpace) -> Iterator[Cell]:
    """Yield the placements of the baseline's own weights.

    bf16 is compared with fp32 of ONNX Runtime, so its effect includes the change of engine.
    """
    offered = space.placement
    for place in offered.engine.values:
        for layout in offered.layout.values:
            placement = Placement(_seat(str(place), str(layout)))
            if placement != Placement():
                yield Cell("engine and threads", f"{place} {layout}", Candidate(placement=placement))
    if "bf16" in space.precision.compute:
        for layout in offered.layout.values[:2]:
            half = Precision(compute="bf16")
            placement = Placement(_seat(BF16_ENGINE, str(layout)))
            yield Cell("computing in bf16", f"{BF16_ENGINE} {layout}", Candidate(precision=half, placement=placement))
    for rows in offered.batch_rows.values[1:]:
        yield Cell("batching", f"{rows} rows", Candidate(placement=Placement(batching=Batching(int(rows)))))
    several = [layout for layout in offered.layout.values if parse_layout(str(layout))[0] > 1][:1]
    for layout in several:
        instance_group = _seat("onnxruntime", str(layout))
        for rows in offered.split_rows.values[1:]:
            yield Cell(
                "splitting",
                f"{layout}, {rows} rows",
                Candidate(placement=Placement(instance_group, split_rows=int(rows))),
            )
    for rows in offered.route_rows.values[1:]:
        if len(offered.engine.values) > 1:
            other = Route(int(rows), _seat(str(offered.engine.values[1]), "1xauto"))
            yield Cell(
                "routing",
                f"{other.instance_group.place} above {rows} rows",
                Candidate(placement=Placement(route=other)),
            )
    one = InstanceGroup(threads=1)
    yield Cell("inline answers", one.layout, Candidate(placement=Placement(one, inline=True)))
    yield Cell("pinned threads", one.layout, Candidate(placement=Placement(replace(one, pinned=True))))
    if prepared.user_once_refused is None:
        for threads in (None, 1):
            once = Placement(InstanceGroup(threads=threads), user_once=True)
            yield Cell("the user's side once", once.instance_group.layout, Candidate(placement=once))
    if True in offered.score_catalogue:
        for threads in (None, 1):
            whole = Placement(
                InstanceGroup(threads=threads), user_once=prepared.user_once_refused is None, score_catalogue=True
            )
            yield Cell("the whole catalogue scored", whole.instance_group.layout, Candidate(placement=whole))


def _seat(place: str, layout: str) -> InstanceGroup:
    return InstanceGroup(*parse_place(place), *parse_layout(layout))


def measured(cell: Cell, pairs: PairedComparison, length: Length, known: Path) -> Difference | str:
    """Return the measured difference of a cell, or a line that says why there is none.

    A difference that was measured by the same rules in this home is read from there, and a new one is kept. A cell that
    failed is tried again.
    """
    jobs = pairs.jobs
    rules = jobs.config.model_dump(mode="json", include={"traffic", "slo", "timing"})
    path = known / f"{digest(cell.candidate, jobs.prepared.holdout, rules, length, describe())[:20]}.json"
    if not path.is_file():
        recording = jobs.recording(f"alone-{cell.candidate.id}")
        try:
            side = (pairs.built(cell.candidate), cell.candidate)
        except (JobError, ValueError) as error:
            return str(error)
        try:
            found = pairs.difference(side, pairs.jobs.baseline, length, recording)
        except (JobError, ValueError) as error:
            return f"{closed_loop(pairs, side)}; not in an open loop: {error}"
        known.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_plain(found)))
    return from_plain(Difference, json.loads(path.read_text()))


def closed_loop(pairs: PairedComparison, side: Side) -> str:
    """Return the simulated ratios to the baseline, each as median, least and most.

    They are for placements that leave the load generator no core.
    """
    looks = []
    try:
        for _ in range(_LOOKS):
            with TemporaryDirectory() as folder:
                costs = CostModel(pairs.jobs, Path(folder, "curves.jsonl"))
                costs.measure_baseline(pairs)
                looks.append(costs.simulated(side[1], pairs))
    except ValueError as error:
        return f"not simulated: {error}"
    service, rate = (sorted(getattr(look, name) for look in looks) for name in ("service_p50_ratio", "capacity_ratio"))
    return (
        f"one by one {median(service):.3f} [{service[0]:.3f}, {service[-1]:.3f}] of the time, saturated "
        f"{median(rate):.2f}x [{rate[0]:.2f}, {rate[-1]:.2f}], "
        f"bytes {side[0].model_bytes / pairs.jobs.baseline[0].model_bytes:.3f}"
    )


def line(cell: Cell, found: Difference | str, focus: frozenset[str]) -> str:
    mark = "." if cell.group is not None and cell.group not in focus else " "
    head = f"{mark}{cell.technique:<23} {cell.setting:<44}"
    if isinstance(found, str):
        return f"{head} {found}"
    low, high = found.latency.p95_ratio_interval
    service, (fast, slow) = found.latency.service_p50_ratio, found.latency.service_p50_ratio_interval
    least, most = found.quality.loss_interval
    return (
        f"{head} {found.latency.p95_ratio:>6.3f} {f'[{low:.3f}, {high:.3f}]':<15} {service:>6.3f} "
        f"{f'[{fast:.3f}, {slow:.3f}]':<15} {found.throughput.ratio:>6.2f} {found.bytes_ratio:>7.3f} "
        f"{found.quality.loss:>+8.2%} [{least:+.2%}, {most:+.2%}]"
    )


def run(session: Session, builder: Worker, meter: Worker, console: Console, length: Length) -> Iterator[str]:
    config, home = session.config, session.home
    prepared = prepare(session, builder, console)
    jobs = jobs_of(config, home, prepared)
    groups = profiled(session.study, jobs, meter, console).groups
    focus = frozenset(group.name for group in groups if group.in_focus)
    space = space_for(config.space, prepared)
    pairs, known = PairedComparison(jobs, builder, meter, console), home.root / "alone" / config.name
    yield f"{config.name}: in focus (from {SHARE:.0%} of time or bytes): {', '.join(sorted(focus))}"
    yield (
        f" {'technique':<23} {'setting':<44} {'p95 ratio':<22} {'service p50 ratio':<22} {'rate x':>6} {'bytes x':>7} "
        f"{'loss':>8}"
    )
    for cell in cells(prepared, space):
        yield line(cell, measured(cell, pairs, length, known), focus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", required=True)
    parser.add_argument("--length", choices=get_args(Length), default="screen")
    options = parser.parse_args()
    home, console = Home.find(options.home), Console(quiet=False, as_json=False)
    session = open_session(load(options.study), home)
    name = session.config.name
    builder = Worker("builder", home.logs(name) / "builder-0.log")
    meter = Worker("meter", home.logs(name) / "meter.log")
    with locked(home, name):
        try:
            for told in run(session, builder, meter, console, options.length):
                print(told, flush=True)
        finally:
            builder.kill()
            meter.kill()


if __name__ == "__main__":
    main()

"""A trial with four techniques, and effects with given numbers: for tests of ablation, report and ledger."""

from __future__ import annotations

from typing import Any

from objectives.measurement.profile.roofline import Roofline
from objectives.records import Latency, Percentiles, Quality, SliceQuality, Throughput
from search.ablation.records import KINDS, Ablation, AblationSummary, Difference, Effect
from search.ablation.verdict import ablation_summary
from search.profile.study_profile import GroupShare, StudyProfile, UserOnce
from spaces.ablations import techniques
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

CHOSEN = Candidate(
    Weights(pruning=Pruning((("mlp", 0.5),)), distillation=Distillation(2.0, 0.5, 1)),
    Precision((("tables", "int8"),)),
    Placement(InstanceGroup(replicas=2, threads=1)),
)
PROFILE = StudyProfile(
    "s",
    200,
    1.0,
    None,
    tuple(
        GroupShare(name, kind, 1.0, time, 0, 0, 0, held, 0.5, None, True, "it takes time")
        for name, kind, time, held in (
            ("mlp", "linear", 0.7, 0.2),
            ("tables", "table", 0.03, 0.8),
            ("engine", "other", 0.27, 0.0),
        )
    ),
    (),
    (),
    0.05,
    Roofline(100.0, 50.0, None),
    UserOnce(None, None),
)


def difference(
    p95: tuple[float, float, float] = (1.0, 0.98, 1.02),
    service: tuple[float, float, float] = (1.0, 0.98, 1.02),
    throughput: tuple[float, float, float] = (1.0, 0.95, 1.05),
    loss: tuple[float, float, float] = (0.001, -0.001, 0.003),
    bytes_ratio: float = 1.0,
    slices: tuple[SliceQuality, ...] = (),
) -> Difference:
    """A difference with the ends of its interval."""
    one = Percentiles(1.0, 2.0, 3.0, 1.0)
    return Difference(
        Quality("auc", 0.8, 0.8, loss[0], loss[1:], 100, 10, slices=slices),
        Latency(one, one, 1.0, p95[0], p95[1:], None, service[0], service[1:], 100.0, 700, 30, 0.02),
        Throughput(100.0, 100.0, throughput[0], throughput[1:], 2.0, 200.0, 200.0, throughput[0], throughput[1:]),
        bytes_ratio,
    )


def ablation(trial: int = 1) -> Ablation:
    """Return an ablation whose effects differ in each technique.

    The last effect alone failed, and pruning costs the users with little history.
    """
    pays = (
        SliceQuality("users with little history", 50, 5, 0.7, 0.71, 0.012, (0.001, 0.023)),
        SliceQuality("rare items", 50, 5, reason="all of its labels are alike"),
    )
    given = [
        difference((0.5, 0.47, 0.54), (0.46, 0.44, 0.48), (2.0, 1.8, 2.2), (0.004, 0.001, 0.007), 0.5, pays),
        difference(loss=(-0.002, -0.004, -0.0005)),
        difference(bytes_ratio=0.3),
        difference((1.3, 1.2, 1.42), (1.1, 1.05, 1.15), (1.7, 1.6, 1.8), (0.0, 0.0, 0.0)),
    ]
    effects = []
    for kind in KINDS:
        for part, found in zip(techniques(CHOSEN), given, strict=True):
            other = part.without if kind == "without" else part.alone
            effects.append(Effect(part.name, part.group, kind, other, found))
    last = effects.pop()
    effects.append(Effect(last.technique, last.group, last.kind, last.other, reason="it broke"))
    return Ablation(trial, CHOSEN, "2 cores of a kind", tuple(effects))


def ablated(trial: int = 1) -> AblationSummary:
    return ablation_summary("s", ablation(trial), PROFILE)


def ablated_document(trial: int = 1) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(ablated(trial))
    return plain

"""Loss over several seeds: coverage of its interval, by simulation; and what is trained for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from objectives.records import Artifact, Quality, SliceQuality
from search.cli.console import Console
from search.workers.paired_comparison import SEEDS, PairedComparison, over_seeds, seeds_of
from spaces.ablations import techniques
from spaces.candidate import Candidate
from tests.ablation_tests.ablated import CHOSEN

QUIET = Console(quiet=True, as_json=True)


def quality(loss: float, half: float, part: float | None = None) -> Quality:
    told = SliceQuality("few", 10, 5, reason="one class") if part is None else SliceQuality(
        "few", 10, 5, 0.7, 0.8, part, (part - half, part + half)
    )  # fmt: skip
    return Quality("auc", 0.8 - loss, 0.8, loss, (loss - half, loss + half), 100, 10, slices=(told,))


@pytest.mark.parametrize("between", [0.0, 0.3, 1.0, 3.0])
def test_the_interval_holds_the_truth_whatever_the_seeds_add(between: float) -> None:
    """Errors of the rows have a deviation of 1 and are shared by all seeds; those of the seeds have this one."""
    random = np.random.default_rng(5)
    truth, held, single = 0.2, 0, 0
    for _ in range(4000):
        losses = truth + random.normal(0, 1) + random.normal(0, between, SEEDS)
        low, high = over_seeds([quality(float(loss), 1.96) for loss in losses]).loss_interval
        held += low <= truth <= high
        single += abs(losses[0] - truth) <= 1.96
    assert held / 4000 >= 0.94
    if between == 3.0:
        assert single / 4000 < 0.6, "one seed's interval knows nothing of the others"


def test_without_errors_of_the_rows_the_interval_is_students() -> None:
    losses = [0.010, 0.013, 0.011]
    expected = scipy.stats.t.interval(0.95, 2, loc=np.mean(losses), scale=scipy.stats.sem(losses))
    found = over_seeds([quality(loss, 0.0, 2 * loss) for loss in losses])
    assert found.loss_interval == pytest.approx(expected)
    assert (found.loss, found.value) == pytest.approx((np.mean(losses), 0.8 - np.mean(losses)))
    (part,) = found.slices
    assert part.loss == pytest.approx(2 * np.mean(losses))
    assert part.loss_interval == pytest.approx([2 * end for end in expected])


def test_seeds_that_agree_leave_the_interval_of_the_rows() -> None:
    found = over_seeds([quality(0.01, 0.002)] * SEEDS)
    assert found.loss_interval == pytest.approx((0.008, 0.012))
    assert found.slices[0].reason == "one class"
    assert over_seeds([quality(0.01, 0.002)]) == quality(0.01, 0.002)
    with pytest.raises(ValueError, match=r"3 seeds, .*2"):
        over_seeds([quality(0.01, 0.002)] * 2)


def test_both_sides_are_trained_from_each_seed_and_what_is_not_trained_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[tuple[str, str]] = []
    built: list[Candidate] = []

    def key(side: Any) -> str:
        return str(side[0].key)

    def evaluate(pairs: PairedComparison, ours: Any, part: str, level: float = 0.95, beside: Any = None) -> Quality:
        assert (part, level) == ("test", 0.95)
        judged.append((key(ours), key(beside)))
        return quality(0.001 * len(judged), 0.001)

    def build(pairs: PairedComparison, candidate: Candidate) -> Artifact:
        built.append(candidate)
        return artifact(candidate)

    def artifact(candidate: Candidate) -> Artifact:
        learning = candidate.weights.distillation
        name = "base" if learning is None else f"{learning.teacher_weight}-{learning.seed}"
        return Artifact(name, f"{name}/model.onnx", {}, 10, 0.0)

    monkeypatch.setattr(PairedComparison, "evaluate", evaluate)
    monkeypatch.setattr(PairedComparison, "built", build)
    pairs = PairedComparison(SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), QUIET)  # type: ignore[arg-type]
    without = next(part.without for part in techniques(CHOSEN) if part.name == "distillation")
    ours, labels = (artifact(CHOSEN), CHOSEN), (artifact(without), without)
    assert pairs.quality(ours, labels, "test").loss == pytest.approx(0.002)
    assert judged == [("0.5-0", "0.0-0"), ("0.5-1", "0.0-1"), ("0.5-2", "0.0-2")]
    judged.clear()
    baseline = (artifact(Candidate()), Candidate())
    pairs.quality(ours, baseline, "test")
    assert judged == [("0.5-0", "base"), ("0.5-1", "base"), ("0.5-2", "base")]
    judged.clear()
    built.clear()
    narrow = Candidate(CHOSEN.weights, placement=CHOSEN.placement)
    assert seeds_of(CHOSEN, narrow) == 1
    pairs.quality(ours, (artifact(narrow), narrow), "test")
    assert len(judged) == 1 and built == [], "the weights are the same, so no luck of a seed lies between the two"

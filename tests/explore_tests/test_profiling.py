"""A study's profile is measured once; the space is narrowed by it, and each group is told why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from objectives.jobs.requests import ProfileRequest, ProfileResponse, VisitRequest
from objectives.measurement.arrivals import Traffic
from objectives.measurement.profile.profile import NodeCost, Profile, summarize
from objectives.measurement.profile.roofline import Roofline
from objectives.records import Artifact, InputSpec, Prepared
from objectives.serving.pool.scheduler import group_of
from objectives.task import Task
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.errors import JobError
from search.explore.run import focused, profiled
from search.profile import floor
from search.profile.floor import AtLoad, Floor, measure_floor
from search.profile.study_profile import StudyProfile, read_profile
from search.profile.trial_profile import GroupTimes, TrialProfile, group_times, not_built
from search.profile.trial_tables import trial_headline, trial_tables
from search.report.report import write_profile
from search.study import Study
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Done
from spaces.candidate import Candidate
from spaces.domains import Choice, Float
from spaces.model_structure import Group, ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain, to_plain
from spaces.techniques.placement import InstanceGroup, Placement, PlacementSpace, Route
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import WeightsSpace
from tests.search_tests.measurements import in_memory

GROUPS = (
    Group("tables", "table", ("tables.user",), 1, (), "tied"),
    Group("cross", "linear", ("cross.0",), 1, (), "left whole"),
    Group("mlp", "linear", ("mlp.0",), 1, (), "left whole"),
)
OBJECTIVES = ["latency_p95", "throughput", "quality"]


def profile(mlp_ms: float = 8.0) -> Profile:
    """A profile with mlp at 8 of 10 ms and 85% of the bytes, cross at 3% and 2%, tables at 0.4% and 12%."""
    nodes = [
        NodeCost("rows", "Gather", "tables", 0.04, 0, 10_000),
        NodeCost("cross", "Gemm", "cross", 0.3, 10_000_000, 30_000),
        NodeCost("mlp", "FusedGemm", "mlp", mlp_ms, 600_000_000, 120_000),
        NodeCost("head", "Gemm", "other", 0.66, 1000, 1000),
    ]
    return summarize(nodes, GROUPS, {"tables": 120, "cross": 20, "mlp": 850, "other": 10}, 200, mlp_ms + 2, None)


def test_a_trial_s_groups_stand_beside_the_baseline_s() -> None:
    """The slowest of the trial's comes first; a group that one of both lacks takes no time in it."""
    smaller = summarize(
        [NodeCost("mlp", "FusedGemm", "mlp", 1.0, 1, 1), NodeCost("cross", "Gemm", "cross", 3.0, 1, 1)],
        [group for group in GROUPS if group.name != "tables"], {}, 200, 5.0, 1,
    )  # fmt: skip
    found = group_times(profile(), smaller, {"mlp": 0.25})
    assert [(group.name, group.baseline_ms, group.ms, group.perfect_ms) for group in found] == [
        ("cross", pytest.approx(0.3), pytest.approx(3.0), 0.0),
        ("mlp", pytest.approx(8.0), pytest.approx(1.0), 0.25),
        ("engine", pytest.approx(1.0), pytest.approx(1.0), 0.0),
        ("tables", pytest.approx(0.04), 0.0, 0.0),
        ("other", pytest.approx(0.66), 0.0, 0.0),
    ]
    assert sum(group.time_share for group in found) == pytest.approx(1)


def test_a_routed_trial_is_profiled_as_the_group_that_runs_the_request() -> None:
    placement = Placement(InstanceGroup(threads=1), route=Route(200, InstanceGroup("openvino", threads=2)))
    groups = [placement.instance_groups[group_of(placement, rows)] for rows in (200, 201)]
    assert [group.engine for group in groups] == ["onnxruntime", "openvino"]
    assert group_of(Placement(), 10**6) == 0


def test_the_headline_tells_what_is_known_of_a_trial() -> None:
    groups = (GroupTimes("mlp", "linear", 8.0, 0.3, 0.75, 0.05), GroupTimes("engine", "other", 0.0, 0.1, 0.25, 0.0))
    found = TrialProfile("s", 7, "openvino", 200, 1, 8.0, 0.4, 0.9, "http", groups, ())
    told = trial_headline(found)
    for part in ("Trial 7", "200 rows", "0.4 ms", "0.05 of", "75%", "mlp", "0.9 ms", "HTTP server", "runs in openvino"):
        assert part in told, (part, told)
    plain = trial_headline(replace(found, service_p50_ms=None, place="onnxruntime"))
    assert "benchmark" not in plain and "runs in" not in plain
    assert "computes nothing" not in told and len(trial_tables(found)) == 2


def test_the_floor_stands_beside_the_trial() -> None:
    one, two, three = (1.0, 1.2), (0.08, 0.12), (0.05, 0.07)
    trial, empty = (AtLoad(
        rate_rps=288.4, baseline_p95_ms=4.0, p50_ms=0.2, p95_ms=0.4, p50_ratio=0.2, p50_ratio_interval=one,
        p95_ratio=p95, p95_ratio_interval=interval, throughput_ratio=9.0, throughput_ratio_interval=one,
        capacity_ratio=11.0, capacity_ratio_interval=one,
    ) for p95, interval in ((0.1, two), (0.06, three)))  # fmt: skip
    groups = (GroupTimes("mlp", "linear", 8.0, 0.3, 0.75, 0.05),)
    found = TrialProfile("s", 7, "onnxruntime", 200, 1, 8.0, 0.4, 0.9, "pool", groups, (), Floor(trial, empty))
    told = trial_headline(found)
    for part in ("288 requests/s", "0.100 [0.080, 0.120]", "computes nothing", "0.060 [0.050, 0.070]"):
        assert part in told, (part, told)
    *_, table = trial_tables(found)
    rows = [[str(cell) for cell in column.cells] for column in table.columns]
    assert rows[0] == ["the trial", "an empty graph"]
    assert rows[4] == ["0.100 [0.080, 0.120]", "0.060 [0.050, 0.070]"] and rows[5][0] == "9.00 [1.00, 1.20]"
    assert from_plain(TrialProfile, to_plain(found)) == found


def test_the_floor_has_an_empty_graph_in_the_trials_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in each visit, in the same placement, and an earlier floor's recordings are gone."""
    item = helper.make_tensor_value_info("item", TensorProto.FLOAT, ["rows"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])
    made = helper.make_graph([helper.make_node("Exp", ["item"], ["scores"])], "g", [item], [scores])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    asked, placement = list[VisitRequest](), Placement(InstanceGroup(threads=1), inline=True)
    earlier = tmp_path / "mlruns" / "timings" / "ml-100k" / "floor-7" / "trial.npz"

    def call(meter: object, request: VisitRequest, *_: object) -> None:
        asked.append(request)
        if len(asked) == 2:
            raise JobError("enough")

    monkeypatch.setattr(floor, "call", call)
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    side = Artifact("m", "m.onnx", {}, 100, 0.0), Candidate(placement=placement)
    with pytest.raises(JobError, match="enough"):
        measure_floor(jobs(tmp_path), Any, side, 100.0, "floor-7", lambda line: None)  # type: ignore[arg-type]
    assert [request.number for request in asked] == [0, 1] and not earlier.exists()
    trial, empty = asked[0].candidates
    assert trial.model == str(tmp_path / "m.onnx") and trial.placement == empty.placement == placement
    assert asked[0].recordings[0] == str(earlier)
    session = onnxruntime.InferenceSession(empty.model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"item": np.ones(3, np.float32)})[0].tolist() == [0.0, 0.0, 0.0]


class Meter:
    """A meter that answers `profile` at once, with profiles, or with the words of an error."""

    def __init__(self, *answers: Profile | str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[ProfileRequest, float]] = []
        self.busy, self.progress = False, ["running it"]

    def start(self, request: ProfileRequest, limit_seconds: float) -> None:
        self.asked.append((request, limit_seconds))

    def poll(self) -> Done:
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            return Done(None, answer, 0.1)
        return Done(ProfileResponse(answer, Roofline(100.0, 50.0, None)), None, 0.1)


class Ears:
    """A record of the lines that a person was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def jobs(root: Path, *settings: str) -> MeterJobs:
    baseline = Artifact("base", "base/model.onnx", {"mlp": "fp32"}, 5000, 0.0)
    inputs = (InputSpec("item", "int64", (), 5),)
    prepared = Prepared(
        "k", "holdouts/h", ModelStructure(GROUPS), {}, inputs, baseline, "split", {}, 3, {}, {}, None, 0.9
    )
    task = Task(str(root), "dcn-v2", "ml-100k", "auc", 200, 0.6, 1000, 0)
    return MeterJobs(load("ml-100k", list(settings)), task, prepared, Traffic())


@pytest.fixture(autouse=True)
def _answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.workers.processes.wait", lambda workers, seconds: None)


@pytest.fixture
def study() -> Study:
    return Study("s", in_memory(), OBJECTIVES, Limits(0.01), 0)


def measured(study: Study, meter: Meter, root: Path, *settings: str) -> tuple[StudyProfile, Ears]:
    ears: Any = Ears()
    any_meter: Any = meter
    return profiled(study, jobs(root, *settings), any_meter, ears), ears


def in_focus(found: StudyProfile) -> dict[str, bool]:
    return {group.name: group.in_focus for group in found.groups}


def test_the_baseline_is_profiled_by_the_meter(study: Study, tmp_path: Path) -> None:
    meter = Meter(profile())
    found, ears = measured(study, meter, tmp_path, "workers.job_seconds=33")
    (request, limit) = meter.asked[0]
    assert limit == 33
    assert request.model == f"{tmp_path}/base/model.onnx"
    assert request.holdout == "holdouts/h"
    assert [group.name for group in request.groups] == ["tables", "cross", "mlp"]
    assert found.study == "ml-100k" and found.rows == 200
    shares = {group.name: group.time_share for group in found.groups}
    assert shares == pytest.approx({"tables": 0.004, "cross": 0.03, "mlp": 0.8, "other": 0.066, "engine": 0.1})
    assert sum(shares.values()) == pytest.approx(1)
    assert len(ears.lines) == 2 and ears.lines[-1] == "running it"


def test_it_is_measured_once_and_stays_the_same(study: Study, tmp_path: Path) -> None:
    """Another timing would change the space under the trials that are there."""
    first, _ = measured(study, Meter(profile()), tmp_path)
    later = Meter(profile(mlp_ms=0.001))
    again, ears = measured(study, later, tmp_path)
    reopened, _ = measured(Study("s", study._storage, OBJECTIVES, Limits(0.01), 0), later, tmp_path)
    assert first == again == reopened == read_profile(study.facts)
    assert later.asked == [] and ears.lines == []
    study.restart()
    assert measured(study, later, tmp_path)[0] == first, "forgetting the trials keeps it"


def test_a_profile_that_failed_is_an_error_and_not_kept(study: Study, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="ProfileError: node"):
        measured(study, Meter("ProfileError: node"), tmp_path)
    assert "profile" not in study.facts
    assert measured(study, Meter(profile()), tmp_path)[0].rows == 200


@pytest.mark.parametrize(
    ("share", "inside"),
    [(0.05, {"tables", "mlp"}), (0.02, {"tables", "cross", "mlp"}), (0.2, {"mlp"}), (0.9, set[str]())],
)
def test_the_studys_own_share_decides_what_is_in_focus(
    share: float, inside: set[str], study: Study, tmp_path: Path
) -> None:
    found, _ = measured(study, Meter(profile()), tmp_path, f"space.focus={share}")
    assert {name for name, held in in_focus(found).items() if held} == inside
    assert found.share == share


def test_a_focus_of_none_keeps_every_group(study: Study, tmp_path: Path) -> None:
    found, _ = measured(study, Meter(profile(mlp_ms=80.0)), tmp_path, "space.focus=0")
    assert in_focus(found) == {"tables": True, "cross": True, "mlp": True, "other": False, "engine": False}
    assert found.share == 0


def space() -> SearchSpace:
    learning = {"temperature": Float(1.0, 8.0), "teacher_weight": Float(0.0, 1.0), "feature_weight": Choice((0.0,))}
    pruning = {"mlp": Float(0.25, 0.75), "cross": Float(0.25, 0.5)}
    widths = {
        "tables": Choice(("fp32", "int8")),
        "cross": Choice(("fp32", "int8-dynamic")),
        "mlp": Choice(("fp32", "int8-dynamic")),
    }
    return SearchSpace(
        WeightsSpace({"width": Choice((8, 16))}, pruning, learning, epochs=3),
        PrecisionSpace(widths),
        PlacementSpace(Choice(("onnxruntime",)), Choice(("1xauto", "2x1"))),
    )


def test_the_space_is_narrowed_and_each_group_is_told_with_its_shares(study: Study, tmp_path: Path) -> None:
    document, _ = measured(study, Meter(profile()), tmp_path)
    ears: Any = Ears()
    found = focused(space(), document, ModelStructure(GROUPS), ears)
    assert set(found.weights.pruning) == {"mlp"}
    widths = {group: domain.values for group, domain in found.precision.widths.items()}
    assert widths == {"tables": ("fp32", "int8"), "cross": ("fp32",), "mlp": ("fp32", "int8-dynamic")}
    assert (found.weights.architecture, found.placement) == (space().weights.architecture, space().placement)
    numbers = [re.findall(r"tables|cross|mlp|user|[\d.]+%|\d+ rows", line) for line in ears.lines]
    assert numbers == [
        ["tables", "0.4%", "12.0%"],
        ["cross", "3.0%", "2.0%", "5%"],
        ["mlp", "80.0%", "85.0%"],
        ["user", "90%", "200 rows"],
    ], "what is no layer group is not told"


@pytest.mark.parametrize(("tables_ms", "inside"), [(0.04, False), (4.0, True)])
def test_a_table_by_itself_is_searched_when_its_group_is(
    study: Study, tmp_path: Path, tables_ms: float, inside: bool
) -> None:
    nodes = [NodeCost("rows", "Gather", "tables", tables_ms, 0, 10), NodeCost("mlp", "Gemm", "mlp", 8.0, 10, 10)]
    seen = summarize(nodes, GROUPS, {"tables": 10, "cross": 0, "mlp": 990, "other": 0}, 200, 8 + tables_ms, None)
    document, _ = measured(study, Meter(seen), tmp_path)
    tables = {"tables.user": Choice(("fp32", "int8")), "mlp": Choice(("fp32", "int8-dynamic"))}
    whole = replace(space(), precision=PrecisionSpace(tables))
    found = focused(whole, document, ModelStructure(GROUPS), Ears())  # type: ignore[arg-type]
    assert found.precision.widths["tables.user"].values == (("fp32", "int8") if inside else ("fp32",))


def test_the_profile_is_written_as_json_and_as_a_page(study: Study, tmp_path: Path) -> None:
    document, _ = measured(study, Meter(profile()), tmp_path)
    folder = tmp_path / "reports" / "ml-100k"
    page, data = folder / "profile.html", folder / "profile.json"
    write_profile(document, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["profile.html", "profile.json"]
    assert json.loads(data.read_text()) == to_plain(document)
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "ml-100k" in text
    assert all(group.reason in text for group in document.groups if group.name in ("tables", "mlp"))
    write_profile(replace(document, study="other"), folder)
    assert json.loads(data.read_text())["study"] == "other" and "ml-100k" not in page.read_text()


def test_an_error_names_a_few_of_the_built_trials() -> None:
    assert not_built(7, [3, 0]) == "--trial: must be a trial whose model was built (0, 3), but got 7"
    assert "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more)" in not_built(99, range(12))
    assert "(none here)" in not_built(1, [])

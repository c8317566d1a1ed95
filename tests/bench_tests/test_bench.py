"""Benchmarks of a stand-in pool.

Covers the requests drawn from the specs, the plan's refusals, which percentiles are reported, and a page that stands
alone.
"""

from __future__ import annotations

import gc
import html
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from objectives.measurement import load_target
from objectives.measurement.arrivals import Traffic
from objectives.measurement.statistics import fewest_samples
from objectives.measurement.timeline import Played
from objectives.recommenders.requests import lognormal_rows
from objectives.records import InputSpec
from objectives.serving.bundle import Bundle
from search.bench import bench as bench_module
from search.bench.bench import BenchResult, Plan, _count, _schedule, bench
from search.bench.requests import draw_requests, parse_rows
from search.bench.summary import Percentile, beside_poisson, percentiles
from search.cli.console import Console
from search.cli.parser import run_command
from search.config.sections import RowsConfig
from search.errors import ConfigError
from search.report.bench import bench_figure, doubts, headline
from search.report.report import write_bench
from spaces.candidate import Candidate
from spaces.serialization import from_plain, to_plain
from tests.serve_tests.bundles import write_toy

SPECS = (
    InputSpec("user", "int64", (), 40, "user"),
    InputSpec("item", "int32", (), 7),
    InputSpec("history", "int64", (5,), 30, "user"),
    InputSpec("price", "float32", (), None),
)


class DeclinedError(RuntimeError):
    refused = True


class PendingResult:
    def __init__(self, declined: bool) -> None:
        self.finished_ns, self._declined = time.perf_counter_ns(), declined

    def result(self) -> None:
        if self._declined:
            raise DeclinedError


class StandIn:
    """A bundle and its pool, which answers at once and refuses one in so many."""

    name, inputs, candidate = "shop", SPECS, Candidate()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.decline: int | None = None
        self.sizes: list[int] = []
        self.row_quantiles: list[int] = []
        (folder / "measurement.json").write_text("{}")

    def open(self) -> StandIn:
        return self

    def __enter__(self) -> StandIn:
        assert not gc.isenabled()
        assert sys.getswitchinterval() < 1e-4
        return self

    def __exit__(self, *rest: object) -> None:
        pass

    def submit(self, request: Mapping[str, Any]) -> PendingResult:
        self.sizes.append(len(request["item"]))
        return PendingResult(self.decline is not None and len(self.sizes) % self.decline == 0)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr("objectives.measurement.throughput._CAPACITY_SECONDS", 0.005)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # the heap of a test process is large
    return StandIn(tmp_path)


def run(stand_in: StandIn, plan: Plan, out: Path) -> BenchResult:
    return bench(cast(Bundle, stand_in), plan, out, Console(quiet=True, as_json=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=100), st.integers(0, 9))
def test_requests_have_the_sizes_asked_codes_that_exist_and_one_user_each(sizes: list[int], seed: int) -> None:
    requests = draw_requests(SPECS, np.array(sizes), seed)
    assert [len(r["item"]) for r in requests] == sizes
    for request in requests:
        for spec in SPECS:
            values = request[spec.name]
            assert values.shape[1:] == spec.shape
            assert values.dtype == spec.dtype
            assert values.flags.c_contiguous
            if spec.vocabulary is not None:
                assert values.min() >= 0
                assert values.max() < spec.vocabulary
            if spec.side == "user":
                assert (values == values[0]).all()
    again = draw_requests(SPECS, np.array(sizes), seed)
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(requests, again, strict=True) for k in a)


def test_rows_are_fixed_or_log_normal() -> None:
    fixed, spread = parse_rows("17"), parse_rows("200,0.6,1000")
    assert set(lognormal_rows(fixed.median, fixed.sigma, fixed.max, 100, 0)) == {17}
    drawn = lognormal_rows(spread.median, spread.sigma, spread.max, 20_000, 0)
    assert np.median(drawn) == pytest.approx(200, rel=0.03)
    assert np.std(np.log(drawn[drawn < 1000])) == pytest.approx(0.6, rel=0.05)
    assert drawn.max() == 1000


@pytest.mark.parametrize("text", ["", "none", "0", "-3", "200,0.6", "200,0.6,100", "200,-1,1000", "1.5"])
def test_rows_that_are_neither_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rows: must be"):
        parse_rows(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "tides"}, "--pattern: .*closed, poisson"),
        ({"seconds": 0.0}, "--seconds: .*0"),
        ({"load": float("nan")}, "--load: .*nan"),
        ({"rate_rps": -5.0}, "--rate: .*-5"),
        ({"pattern": "replay"}, "--log: goes with"),
        ({"log": Path("log.csv")}, "--log: goes with"),
        ({"pattern": "closed", "rate_rps": 10.0}, "--rate: .*closed"),
        ({"rate_rps": 1e308}, "--seconds: must be at most 1e-301 at 1e\\+308 requests/s"),
        ({"rate_rps": 1e4, "seconds": 1e9}, "--seconds: must be at most 1e\\+03 at 1e\\+04 requests/s"),
    ],
)
def test_a_plan_says_which_option_is_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Plan(**options)


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_page_that_could_not_be_written_is_told_before_the_run(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / inside
    assert run_command(["bench", str(write_toy(tmp_path / "bundle")), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert told.err == f"leanrec: --out: must be a folder that can be written, but got {out}\n" and told.out == ""


def test_a_log_that_is_not_there_is_the_options_fault(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--log: "):
        run(stand_in, Plan("replay", log=tmp_path / "none.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_schedule_is_long_enough_for_a_p99_or_ends() -> None:
    assert _count(1000, 20) == 20_000
    assert fewest_samples(99) <= _count(30, 20) < fewest_samples(99) + 20
    assert _count(5, 20) == 300, "three times as long as asked, then it ends"


@pytest.mark.parametrize("pattern", ["poisson", "deterministic", "bursts", "diurnal"])
def test_every_schedule_has_the_rate_asked(pattern: Any) -> None:
    gaps = _schedule(Traffic(pattern), 250.0, 500, seed=1)
    assert gaps.sum() / 1e9 == pytest.approx(2.0, rel=1e-5)
    assert gaps.min() >= 1


def test_a_percentile_of_too_few_or_of_refused_requests_is_never_told() -> None:
    few = percentiles(np.arange(float(fewest_samples(95) - 1)))
    assert few["p50"] is not None
    assert (few["p95"], few["p99"]) == (None, None)
    latency = np.concatenate([np.ones(980), np.full(20, np.inf)])
    told = percentiles(latency)
    assert told["p95"] == Percentile(1.0, (1.0, 1.0))
    assert told["p99"] is None
    edge = percentiles(np.concatenate([np.ones(955), np.full(45, np.inf)]))
    assert edge["p95"] == Percentile(1.0, (1.0, None)), "the interval's end is refused, not the p95"


def played(latency_ms: Any, offered_share: float = 1.0, lag_ms: float = 0.0) -> Played:
    latency = np.asarray(latency_ms, dtype=np.float64)
    at = np.arange(1, len(latency) + 1) / 100
    clock = np.array([0.0, float(at[-1])])
    return Played(at, latency, np.full(len(latency), lag_ms), offered_share, clock, clock)


def test_four_times_poissons_latency_is_a_ratio_of_four() -> None:
    poisson = np.random.default_rng(0).exponential(size=2000)
    found = beside_poisson(played(4 * poisson), played(poisson), seed=0)
    assert (found.p95_ratio, found.p99_ratio) == (pytest.approx(4), pytest.approx(4))
    assert found.p95_ratio_interval == pytest.approx((4, 4))
    assert found.p99_ratio_interval == pytest.approx((4, 4))


def test_a_ratio_of_what_was_refused_is_none() -> None:
    some = np.where(np.arange(2000) % 10 == 0, np.inf, 1.0)
    found = beside_poisson(played(some), played(some), seed=0)
    assert (found.p95_ratio, found.p95_ratio_interval) == (None, None)


@pytest.mark.parametrize(("late", "said"), [({"offered_share": 0.5}, "98%"), ({"lag_ms": 0.5}, "lag")])
def test_a_generator_behind_its_schedule_makes_the_run_invalid(
    late: Mapping[str, float], said: str, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "play", lambda *given: played(np.ones(1000), **late))
    found = run(stand_in, Plan(rate_rps=3000, seconds=0.2), tmp_path)
    assert not found.valid and said in (found.reason or "")


def test_a_pattern_is_played_beside_poisson_and_written(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_target, "_PRIMED_SECONDS", 0.0)
    plan = Plan("bursts", rate_rps=3000, seconds=0.2, rows=RowsConfig(median=8, sigma=0.3, max=20), seed=3)
    found = run(stand_in, plan, tmp_path / "out")
    document = to_plain(found)
    assert gc.isenabled()
    assert sys.getswitchinterval() > 1e-4
    assert document["requests"] == _count(3000, 0.2)
    assert document["rate_rps"] == 3000
    assert document["load"] == pytest.approx(3000 / document["capacity_rps"])
    assert document["poisson"]["latency_ms"]["p99"]["value"] > 0
    assert document["poisson"]["p99_ratio_interval"] is not None
    # Turn by turn both play the same requests, after one that primes; the last of all are the plays'.
    turns = np.array(stand_in.sizes[-2 * (document["requests"] + 5) :]).reshape(5, 2, -1)[:, :, 1:]
    assert np.array_equal(turns[:, 0], turns[:, 1])
    assert turns.max() <= 20
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    page = (tmp_path / "out" / "bench.html").read_text()
    assert f"<h1>{headline(found)}</h1>" in html.unescape(page)


def test_poisson_and_the_closed_loop_stand_alone(stand_in: StandIn, tmp_path: Path) -> None:
    rows = RowsConfig(median=4, sigma=0, max=4)
    for plan in (Plan(rate_rps=3000, seconds=0.2, rows=rows), Plan("closed", seconds=0.2, rows=rows)):
        found = run(stand_in, plan, tmp_path / plan.pattern)
        document = to_plain(found)
        assert document["poisson"] is None
        assert document["latency_ms"]["p50"]["value"] >= 0
        assert "Poisson's" not in headline(found)
    assert set(stand_in.sizes) == {4}
    assert (document["rate_rps"], document["load"]) == (None, None)
    assert document["queue"]["max"] == 1


def test_a_log_gives_arrivals_and_sizes(stand_in: StandIn, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    lines = [f"{i * 0.01 + (i % 7) * 0.001},{3 + i % 2}" for i in range(50)]
    log.write_text("\n".join(["timestamp,rows", *lines]) + "\n")
    document = to_plain(run(stand_in, Plan("replay", rate_rps=3000, seconds=0.2, log=log), tmp_path / "out"))
    assert set(stand_in.sizes) == {3, 4}
    assert document["log"] == str(log)
    assert document["poisson"] is not None


def test_refused_requests_are_counted_and_said(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.decline = 5
    found = run(stand_in, Plan(rate_rps=3000, seconds=0.2), tmp_path / "out")
    document = to_plain(found)
    assert document["refused"] == document["requests"] // 5
    assert document["served_rps"] < document["offered_rps"]
    assert (document["latency_ms"]["p95"], document["latency_ms"]["p99"]) == (None, None)
    assert "20% of the requests" in headline(found)
    assert any(re.match("p95 .*refused", line) for line in doubts(found))


def test_the_rows_of_the_studys_requests_are_the_default(stand_in: StandIn, tmp_path: Path) -> None:
    """The settings of a study tell nothing of the requests of a user's own model."""
    stand_in.row_quantiles = [3, 3, 7, 11]
    rows = {"traffic": {"rows": {"median": 200, "sigma": 0.6, "max": 1000}}}
    (tmp_path / "measurement.json").write_text(json.dumps(rows))
    run(stand_in, Plan("closed", seconds=0.05), tmp_path / "out")
    assert set(stand_in.sizes) == {3, 7}, "the largest of all is one of many"
    assert np.mean(np.array(stand_in.sizes) == 3) == pytest.approx(2 / 3, abs=0.1)


def made_up() -> BenchResult:
    """A result with numbers that are easy to follow."""
    bins = [[float(i) for i in range(5)], [100.0] * 4, [100.0, 90.0, 110.0, 100.0], [0, 0, 3, 0]]
    told = {"value": 12.3, "interval": [11.0, None]}
    names = ("edges_s", "offered_rps", "served_rps", "refused")
    plain = {
        "bundle": "b", "name": "<i>shop</i>", "machine": "m", "pattern": "bursts", "log": None, "seed": 0,
        "rows": {"median": 200.0, "max": 1000}, "capacity_rps": 166.0, "rate_rps": 100.0, "load": 0.6,
        "valid": False, "reason": "A run's p95 lag is too long.", "disturbed": False, "cpu_share": 1.0, "seconds": 4.0,
        "requests": 400, "refused": 3, "offered_rps": 100.0, "served_rps": 99.0,
        "latency_ms": {"p50": told, "p95": told, "p99": None}, "lag_p95_ms": 0.1, "offered_share": 1.0,
        "queue": {"mean": 1.0, "max": 4}, "cpu_cores": 0.5,
        "poisson": {
            "latency_ms": {"p50": told, "p95": told, "p99": None}, "p95_ratio": 4.0, "p95_ratio_interval": [3.1, 5.2],
            "p99_ratio": None, "p99_ratio_interval": None,
        },
        "timeline": dict(zip(names, bins, strict=True)) | {
            "p50_ms": [1.0, 2.0, None, 1.0], "p95_ms": [2.0, 90.0, None, None], "queue_end": [0, 1, 0, 0],
            "queue_mean": [0.5, 1.0, 2.0, 0.1], "queue_max": [1, 2, 4, 1], "cpu_cores": [0.1, 0.5, 1.0, 0.2],
        },
    }  # fmt: skip
    return from_plain(BenchResult, plain)


def test_the_sentence_says_the_ratio_with_its_interval() -> None:
    said = headline(made_up())
    assert re.search(r"60% .*p95 is 12\.3 ms.* 4x \[3\.1, 5\.2\] of Poisson's.* 0\.75% of the requests", said)
    invalid, few = doubts(made_up())
    assert invalid.startswith("Not valid") and re.match("p99 .*662 requests.* 400", few)


def test_the_figure_has_four_panels_over_one_axis_and_plotly_takes_it() -> None:
    described = bench_figure(made_up())
    figure = go.Figure(described)
    assert {trace.yaxis for trace in figure.data} == {"y", "y2", "y3", "y4"}
    assert {trace.xaxis for trace in figure.data} == {"x"}
    units = {described["layout"][f"yaxis{n}"]["title"]["text"] for n in ("", "2", "3", "4")}
    assert units == {"requests/s", "ms", "requests", "cores busy"}
    by_name = {trace.name: trace for trace in figure.data}
    # Each bin is drawn from its start to its end; where nothing can be told there is no line.
    assert by_name["p95"].x[2:4] == (1.0, 2.0)
    assert by_name["p95"].y == (2.0, 2.0, 90.0, 90.0, None, None, None, None)
    assert by_name["refused"].y[4:6] == (3.0, 3.0)
    assert described["layout"]["yaxis3"]["type"] == "log", "1 to 90 ms on one axis"


def test_the_page_needs_no_network_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    write_bench(made_up(), tmp_path)
    text = (tmp_path / "bench.html").read_text().replace(get_plotlyjs(), "/* plotly */")
    assert "<i>shop" not in text
    assert "&lt;i&gt;shop" in text
    assert "http" not in text
    assert "Not valid." in text
    assert text.count("<script") == text.count("</script>") == 4

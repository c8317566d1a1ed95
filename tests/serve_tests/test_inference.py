"""Inference without HTTP: bags, the user's single row, an inline replica, swaps, and limits."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from objectives.serving.bundle_files import BundleError
from objectives.serving.http.inference import Inference, ModelFailedError, OverloadedError
from objectives.serving.http.json_data import RequestError
from objectives.serving.http.limits import Limits
from objectives.serving.http.model import Model
from objectives.serving.http.model_slot import ModelSlot
from objectives.serving.pool import PendingResult, Pool, RefusedError
from objectives.serving.pool.admission import Refusal
from objectives.serving.ranker import Ranker
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement
from tests.serve_tests import oracle
from tests.serve_tests.bundles import (
    EXAMPLE_ROWS,
    ITEMS,
    draw_request,
    end_waiting,
    waiting,
    write_bag,
    write_distance,
    write_toy,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bag") / "bundle")


@pytest.fixture(scope="module")
def distance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranker]:
    with Ranker(write_distance(tmp_path_factory.mktemp("distance") / "bundle")) as ranker:
        yield ranker


@contextmanager
def opened(folder: Path, **limits: Any) -> Iterator[Inference]:
    model = Model.open(folder)
    try:
        yield Inference("toy", ModelSlot(model), Limits(**limits))
    finally:
        model.close()


async def ask(inference: Inference, request: dict[str, np.ndarray]) -> np.ndarray:
    encoded = await inference.answer(json.dumps(oracle.json_request(request)).encode(), None, None)
    return oracle.read_scores(encoded.body, None)[1]


@pytest.mark.parametrize("unseen", [None, 4])
@pytest.mark.parametrize("strange", [-1, 30, 2**40])
def test_unseen_ids_are_treated_alike_by_pool_library_and_server(
    unseen: int | None, strange: int, tmp_path: Path
) -> None:
    bundle = write_distance(tmp_path / "bundle", unseen)
    request = {"user": np.array([7]), "item": np.array([5, strange])}
    rows = {"user": np.array([7, 7]), "item": request["item"]}
    with opened(bundle) as inference, Ranker(bundle) as ranker, read_bundle(bundle).open() as pool:
        ways: list[Callable[[], np.ndarray]] = [
            lambda: asyncio.run(ask(inference, request)),
            lambda: ranker.score({"user": [7], "item": [5, strange]}),
            lambda: pool.submit(rows).result(timeout=20),
        ]
        for way in ways:
            if unseen is None:
                with pytest.raises(ValueError, match=f"^input item: must hold ids from 0 to 29, .*but got {strange}$"):
                    way()
            else:
                assert way().tolist() == [-2, -3], "as the item 4"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"user": [7]}, "no item"),
        ({"user": [7], "item": [1], "more": [1]}, "unknown more"),
        ({"user": [7], "item": [1.5]}, "input item: must have the datatype INT64"),
        ({"user": [7], "item": ["a"]}, "input item: must hold numbers"),
        ({"user": [7], "item": [[1], [2, 3]]}, "input item: must be an array"),
        ({"user": [7], "item": np.array([], np.int64)}, "the 1 rows"),
        ({"user": 7, "item": [1]}, "input user: shape"),
    ],
)
def test_the_library_refuses_what_does_not_fit(request_: dict[str, Any], words: str, distance: Ranker) -> None:
    with pytest.raises(RequestError, match=words):
        distance.rank(request_)


def test_the_best_candidate_is_ranked_first_and_equal_ones_keep_their_order(distance: Ranker) -> None:
    order, scores = distance.rank({"user": [7], "item": [9, 7, 5, 0, 8]})
    assert scores.tolist() == [-2, 0, -2, -7, -1] and order.tolist() == [1, 4, 0, 2, 3]


def test_the_users_row_may_be_given_once(toy: Path) -> None:
    request = draw_request(6)
    with opened(toy) as inference:
        whole = asyncio.run(ask(inference, request))
        once = asyncio.run(ask(inference, request | {"user": request["user"][:1]}))
        assert whole.tobytes() == once.tobytes()
        with pytest.raises(RequestError, match="single one"):
            asyncio.run(ask(inference, request | {"user": request["user"][:2]}))
        with pytest.raises(RequestError, match=r"item.* 6 rows"):
            asyncio.run(ask(inference, request | {"item": request["item"][:1]}))


def test_repeating_the_users_row_takes_no_more_memory_than_a_body(toy: Path) -> None:
    request = draw_request(100)
    with opened(toy, body_bytes=2000) as inference, pytest.raises(RequestError, match="2000 bytes"):
        asyncio.run(ask(inference, request | {"user": request["user"][:1]}))


def test_other_datatypes_are_taken_where_they_hold_the_same_values(toy: Path) -> None:
    request = draw_request(6)
    other = {"user": np.int32, "item": np.uint8, "price": np.float64, "fresh": np.bool_}
    with opened(toy) as inference:
        found = asyncio.run(ask(inference, {name: request[name].astype(dtype) for name, dtype in other.items()}))
        assert found.tobytes() == asyncio.run(ask(inference, request)).tobytes()


def test_bags_are_taken_flat_or_padded(bag: Path) -> None:
    flat = {"genres": np.array([3, 4, 5, 9]), "bounds": np.array([0, 3, 3])}
    mask = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    padded = {"genres": np.array([[3, 4, 5], [0, 0, 0], [9, 1, 1]]), "bounds": mask}
    with opened(bag) as inference:
        for request in (flat, padded):
            assert asyncio.run(ask(inference, request)).tolist() == [12.0, 0.0, 9.0]


@pytest.mark.parametrize(
    ("genres", "bounds", "words"),
    [
        ([1, 2], [1, 2], "bounds"),
        ([1, 2], [0, 3], "bounds"),
        ([1, 2], [0, 2, 1], "bounds"),
        ([1, 2], [0, -(2**62)], "bounds"),
        ([1, ITEMS], [0, 1], f"ids .*{ITEMS}"),
        ([[1, 2]], [0], "genres.*shape"),
        ([[1, 2]], [[True]], "genres.*mask"),
        ([[1, 2]], [True], "bounds.*shape"),
        ([1] * 200, [0] * 100, "longest"),
    ],
)
def test_bags_that_do_not_fit_are_refused(genres: list, bounds: list, words: str, bag: Path) -> None:
    with opened(bag, body_bytes=100_000) as inference, pytest.raises(RequestError, match=words):
        asyncio.run(ask(inference, {"genres": np.array(genres), "bounds": np.array(bounds)}))


@pytest.mark.parametrize("rows", [4, 60])
def test_an_inline_replica_runs_short_requests_on_the_event_loop(rows: int, tmp_path: Path) -> None:
    """Six requests that come together, on a replica that may run up to 50 rows there."""
    folder = write_toy(tmp_path / "bundle", Placement(inline=True))
    ran: list[bool] = []

    async def main(inference: Inference) -> list[np.ndarray]:
        pool = inference.slot.model.pool
        submit = pool.submit

        def noted(request: Any, here: bool, waited_ns: int) -> Any:
            pending = submit(request, here, waited_ns)
            ran.append(here and pending.done())
            return pending

        pool.submit = noted  # type: ignore[method-assign]
        return await asyncio.gather(*(ask(inference, draw_request(rows, seed)) for seed in range(6)))

    with opened(folder) as inference:
        assert inference.slot.model.rows_on_loop > 0, "it was timed"
        inference.slot.model.rows_on_loop = 50
        found = asyncio.run(main(inference))
    assert ran == [rows <= 50] * 6
    with read_bundle(folder).open() as pool:
        for seed, scores in enumerate(found):
            assert scores.tobytes() == pool.submit(draw_request(rows, seed)).result(5).tobytes()


@pytest.mark.parametrize(("refused", "some"), [(1, True), (1000, False)])
def test_a_deadline_that_refuses_a_timed_run_leaves_the_others(
    refused: int, some: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_toy(tmp_path / "bundle", Placement(inline=True))
    submit, calls = Pool.submit, 0

    def refusing(pool: Pool, *arguments: Any) -> PendingResult:
        nonlocal calls
        calls += 1
        if calls > refused:
            return submit(pool, *arguments)
        pending = PendingResult()
        pending.fail(RefusedError(Refusal.DEADLINE, "its turn came late."))
        return pending

    monkeypatch.setattr(Pool, "submit", refusing)
    with opened(folder) as inference:
        assert calls == 20 and (inference.slot.model.rows_on_loop > 0) is some


def test_replicas_with_threads_of_their_own_leave_the_event_loop_free(toy: Path) -> None:
    with opened(toy) as inference:
        assert inference.slot.model.rows_on_loop == 0


def test_a_request_is_answered_by_the_model_that_it_came_to(tmp_path: Path) -> None:
    old = Model.open(write_toy(tmp_path / "old", waiting(30)))
    new = Model.open(write_toy(tmp_path / "new", seed=1))
    request = draw_request(5)
    before = old.pool.submit(request)
    end_waiting(old.pool, 5)
    expected = [before.result(5).tobytes(), new.pool.submit(request).result(5).tobytes()]

    async def main() -> list[bytes]:
        inference = Inference("toy", ModelSlot(old), Limits())
        first = asyncio.create_task(ask(inference, request))
        while not old.pool.waiting:
            await asyncio.sleep(0.001)
        swap = asyncio.create_task(inference.swap(new))
        await asyncio.sleep(0)
        second = await ask(inference, request)
        assert not first.done() and not swap.done()
        end_waiting(old.pool, 5)
        await swap
        with pytest.raises(RuntimeError, match="closed"):
            old.pool.submit(request)
        assert inference.lateness.counts(time.perf_counter_ns()) == (1, 0), "the answer of the old one does not count"
        return [(await first).tobytes(), second.tobytes()]

    assert asyncio.run(main()) == expected
    new.close()


def test_more_requests_than_the_limit_are_refused(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "bundle", waiting(0.05))

    async def main(inference: Inference) -> list[object]:
        return await asyncio.gather(*(ask(inference, draw_request(2)) for _ in range(5)), return_exceptions=True)

    with opened(folder, in_flight=3) as inference:
        found = asyncio.run(main(inference))
        assert [isinstance(each, OverloadedError) for each in found] == [False] * 3 + [True] * 2
        assert inference.in_flight == 0 and inference.answered == 3
        assert inference.lateness.counts(time.perf_counter_ns()) == (5, 2)
        assert asyncio.run(ask(inference, draw_request(2))).shape == (2,)


def test_answers_are_counted_beside_the_slo_and_recorded_after_the_response(toy: Path) -> None:
    def recorded(inference: Inference) -> tuple[Any, Any]:
        stats: Any = inference.statistics()["inference_stats"]
        registry = inference.metrics.registry
        return stats["success"]["count"], registry.get_sample_value("leanrec_request_seconds_count")

    async def main(inference: Inference) -> None:
        for number, slo_ms in enumerate((np.inf, 0.0, np.inf)):
            inference.lateness.slo_ms = slo_ms
            await ask(inference, draw_request(2))
            assert (inference.lateness.counts(0)[0], inference.answered) == (number + 1, number + 1)
            assert recorded(inference) == (number, number)
            await asyncio.sleep(0)
            assert recorded(inference) == (number + 1, number + 1)

    with opened(toy) as inference:
        asyncio.run(main(inference))
        assert inference.lateness.counts(0)[1] == 1


def test_batches_are_counted_by_their_requests(tmp_path: Path) -> None:
    """The batch is full with the second of two requests; the third fills one by itself."""
    folder = write_toy(tmp_path / "bundle", waiting(30))

    async def main(inference: Inference) -> None:
        await asyncio.gather(*(ask(inference, draw_request(EXAMPLE_ROWS // 2, seed)) for seed in range(2)))
        await ask(inference, draw_request(EXAMPLE_ROWS))
        await asyncio.sleep(0)

    with opened(folder) as inference:
        asyncio.run(main(inference))
        read = inference.metrics.registry.get_sample_value
        assert (read("leanrec_batch_requests_count"), read("leanrec_batch_requests_sum")) == (3, 2 + 2 + 1)
        assert read("leanrec_batch_requests_bucket", {"le": "1.0"}) == 1


DEADLINE = Admission(deadline_ms=5000)


@pytest.mark.parametrize(
    "placement",
    [
        Placement(),
        Placement(admission=DEADLINE),
        Placement(inline=True, admission=DEADLINE),
        Placement(InstanceGroup(replicas=2), split_rows=2, admission=DEADLINE),
        Placement(batching=Batching(100, 100), admission=DEADLINE),
    ],
    ids=["plain", "deadline", "inline", "split", "batching"],
)
def test_a_replaced_model_is_freed_without_garbage_collection(placement: Placement, tmp_path: Path) -> None:
    """The server leaves what it has loaded out of garbage collections."""

    async def main() -> list[weakref.ref[Any]]:
        inference = Inference("toy", ModelSlot(Model.open(write_toy(tmp_path / "old", placement))), Limits())
        await ask(inference, draw_request(2))
        model = inference.slot.model
        kept = [weakref.ref(model), weakref.ref(model.pool), weakref.ref(model.bundle)]
        del model
        await inference.swap(Model.open(write_toy(tmp_path / "new", seed=1)))
        inference.slot.model.close()
        return kept

    gc.disable()
    try:
        assert [kept() for kept in asyncio.run(main())] == [None, None, None]
    finally:
        gc.enable()


def test_a_request_that_hangs_holds_no_further_swap(tmp_path: Path) -> None:
    async def main() -> None:
        hanging = Model.open(write_toy(tmp_path / "old", waiting(30)))
        new, newer = (Model.open(write_toy(tmp_path / name, seed=seed)) for seed, name in ((1, "new"), (2, "newer")))
        inference = Inference("toy", ModelSlot(hanging), Limits(drain_seconds=1))
        asked = asyncio.create_task(ask(inference, draw_request(2)))
        while not hanging.pool.waiting:
            await asyncio.sleep(0.001)
        said = await inference.swap(new)
        assert said is not None and "1 of its requests are not answered yet" in said and not asked.done()
        assert await inference.swap(newer) is None
        end_waiting(hanging.pool, 2)
        assert (await asked).shape == (2,), "it is answered all the same"
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="closed"):
            hanging.pool.submit(draw_request(2))
        inference.slot.model.close()

    asyncio.run(main())


def test_a_request_that_hangs_is_late_before_it_ends(tmp_path: Path) -> None:
    async def main(inference: Inference) -> None:
        inference.lateness.slo_ms = 20.0
        hanging = asyncio.create_task(ask(inference, draw_request(2)))
        while not inference.slot.model.pool.waiting:
            await asyncio.sleep(0.001)
        assert inference.lateness.counts(0) == (0, 0), "at a time when nothing had begun"
        while inference.lateness.counts(time.perf_counter_ns()) != (1, 1):
            await asyncio.sleep(0.001)
        assert not hanging.done()
        end_waiting(inference.slot.model.pool, 2)
        await hanging
        assert inference.lateness.counts(time.perf_counter_ns()) == (1, 1), "once"

    with opened(write_toy(tmp_path / "bundle", waiting(30))) as inference:
        asyncio.run(main(inference))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_the_models_fault(wrong: float, toy: Path) -> None:
    with opened(toy) as inference:

        def submit(request: Any, rows: int, waited_ns: int) -> PendingResult:
            pending = PendingResult()
            pending.set_result(np.array([1, wrong], np.float32))
            return pending

        inference.slot.model.submit = submit  # type: ignore[method-assign]
        with pytest.raises(ModelFailedError, match="NaN"):
            asyncio.run(ask(inference, draw_request(2)))


def test_a_tampered_bundle_is_refused_before_an_engine_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_toy(tmp_path / "bundle")
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        Model.open(folder)


def test_limits_are_above_0() -> None:
    with pytest.raises(ValueError, match=r"rows.*0"):
        Limits(rows=0)


def test_the_queue_is_what_admission_counts(tmp_path: Path) -> None:
    """An idle replica, which waits for its batch to fill, has taken the first request already."""
    with Model.open(write_toy(tmp_path / "bundle", waiting(30))).pool as pool:
        results = [pool.submit(draw_request(2)) for _ in range(3)]
        assert pool.queued == 2 and pool.waiting == 3
        end_waiting(pool, 3 * 2)
        assert [result.result(5).shape for result in results] == [(2,)] * 3
        assert pool.queued == pool.waiting == 0

"""A recommender that ranks by a history: its training data, held-out rows and requests, event by event."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from objectives.ranking_metrics import gains, ranks
from objectives.recommenders.datasets.sources import read_log
from objectives.recommenders.families import sequential
from objectives.recommenders.families.sequential import SequentialRecommender, open_sequential
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.training import Trained, train_to_optimum
from objectives.task import Task
from objectives.training_rows import Inputs, Labels
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

TABLE = Table("tables.item", 0, ("history", "item"))

SYNTHETIC = {"rows": 2600, "users": 140, "items": 60, "fields": 2, "order": 0.8}
SIZES = {"embedding_dim": 8, "blocks": 1, "feed_forward": 8, "length": 6}
ITEMS = 59  # of those that come five times and more


def _task(home: Path, **given: Any) -> Task:
    plain = Task(str(home), "sasrec", "synthetic", "ndcg@10", 20, 0.5, 40, 3, synthetic=SYNTHETIC, sizes=SIZES)
    return replace(plain, **given)


def _open(task: Task) -> SequentialRecommender:
    return open_sequential(task, lambda line: None)


@pytest.fixture(scope="module", autouse=True)
def _two_epochs() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "train_to_optimum", partial(train_to_optimum, most_epochs=2))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def opened(home: Path) -> SequentialRecommender:
    return _open(_task(home))


@pytest.fixture(scope="module")
def events(opened: SequentialRecommender) -> list[list[int]]:
    """Codes of each user's items, in order."""
    codes, offsets = opened.sequences.codes.tolist(), opened.sequences.offsets.tolist()
    return [codes[a:b] for a, b in itertools.pairwise(offsets)]


def _padded(events: list[int], length: int) -> list[int]:
    return [0] * (length - len(events[-length:])) + events[-length:]


def test_it_is_a_recommender(opened: SequentialRecommender) -> None:
    recommender: Recommender = opened
    assert recommender.once == frozenset({"history"})
    assert recommender.method == "positions" and recommender.history() == 6
    assert not recommender.model.training and recommender.train_rows() is recommender.train_rows()
    history, item = recommender.inputs
    assert (history.name, history.dtype, history.shape, history.vocabulary, history.side) == (
        "history", "int64", (6,), ITEMS + 1, "user",
    )  # fmt: skip
    assert (item.name, item.dtype, item.shape, item.vocabulary, item.side) == ("item", "int64", (), ITEMS + 1, "item")


def test_a_pass_shows_each_user_once_and_what_came_next(opened: SequentialRecommender, events: list[list[int]]) -> None:
    batches = list(opened.train_rows().batches(torch.Generator().manual_seed(1)))
    assert [len(inputs["history"]) for inputs, _ in batches] == [28] * 5
    assert opened.train_rows().batches_per_epoch == 5
    shown = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
    for inputs, labels in batches:
        assert inputs["candidates"].shape == (len(labels), 6, 1) and inputs["shared"].shape == (len(labels), 63)
        pairs = zip(inputs["history"].tolist(), inputs["candidates"][..., 0].tolist(), strict=True)
        shown.update((tuple(history), tuple(target)) for history, target in pairs)
    wanted = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
    for user in events:
        train = user[:-2]
        wanted[tuple(_padded(train[:-1], 6)), tuple(_padded(train[1:], 6))] += 1
    assert shown == wanted


def test_negatives_are_drawn_anew_among_what_was_not_taken(
    opened: SequentialRecommender, events: list[list[int]]
) -> None:
    taken = {tuple(_padded(user[:-3], 6)): set(user[:-2]) for user in events}
    generator = torch.Generator().manual_seed(1)
    epochs = [list(opened.train_rows().batches(generator)) for _ in range(2)]
    again = next(opened.train_rows().batches(torch.Generator().manual_seed(1)))[0]["shared"]
    assert torch.equal(again, epochs[0][0][0]["shared"]) and not torch.equal(again, epochs[1][0][0]["shared"])
    for inputs, _ in (batch for of_pass in epochs for batch in of_pass):
        for history, others in zip(inputs["history"].tolist(), inputs["shared"], strict=True):
            drawn = set(others.flatten().tolist())
            assert not drawn & taken[tuple(history)] and min(drawn) >= 1 and max(drawn) <= ITEMS


def test_the_loss_is_that_of_the_positions_that_have_a_target(opened: SequentialRecommender) -> None:
    inputs, labels = next(opened.train_rows().batches(torch.Generator().manual_seed(1)))
    outputs = opened.outputs(opened.model, inputs)
    logits = opened.model.positions(**inputs)
    real = inputs["candidates"][..., 0] != 0
    assert torch.equal(outputs, logits[real])
    first, others = logits[real][:, 0], logits[real][:, 1:]
    expected = F.binary_cross_entropy_with_logits(first, torch.ones_like(first))
    expected = expected + F.binary_cross_entropy_with_logits(others, torch.zeros_like(others))
    assert opened.loss(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_counts_are_those_of_train(opened: SequentialRecommender, events: list[list[int]]) -> None:
    counted = Counter(code for user in events for code in user[:-2])
    assert opened.counts(opened.model, [TABLE])["tables.item"].tolist() == [counted[code] for code in range(ITEMS + 1)]


def test_rows_of_serving_share_histories(opened: SequentialRecommender, events: list[list[int]]) -> None:
    rows = opened.serving_rows(100)
    assert {name: tuple(values.shape) for name, values in rows.items()} == {"history": (100, 6), "item": (100,)}
    known = {tuple(_padded(user[:-3], 6)) for user in events}
    for start in range(0, 100, 32):
        (history,) = {tuple(row) for row in rows["history"][start : start + 32].tolist()}
        assert history in known
    assert int(rows["item"].min()) >= 1 and int(rows["item"].max()) <= ITEMS
    assert len(set(rows["item"][:32].tolist())) > 10
    assert all(torch.equal(values, rows[name]) for name, values in opened.serving_rows(100).items())


@pytest.mark.parametrize(("part", "behind"), [("validation", 2), ("test", 1)])
def test_what_a_user_had_taken_and_what_came_next(
    opened: SequentialRecommender, events: list[list[int]], part: Any, behind: int
) -> None:
    held = opened.held_out(part)
    assert held.seen is not None and held.items is not None
    assert held.groups.tolist() == list(range(140)) and held.items.tolist() == list(range(1, ITEMS + 1))
    assert held.labels.tolist() == [user[-behind] for user in events]
    assert held.inputs[0]["history"].tolist() == [_padded(user[:-behind], 6) for user in events]
    assert [sorted(set(row) - {0}) for row in held.seen.tolist()] == [sorted(set(user[:-behind])) for user in events]


def test_slices_are_of_users_and_of_what_came_next(opened: SequentialRecommender, events: list[list[int]]) -> None:
    slices = opened.held_out("test").slices
    sizes = sorted(len(user) for user in events)
    few = sizes[34]  # of 140, the last of the first quarter
    assert slices["users with little history"].tolist() == [len(user) <= few for user in events]
    counts = Counter(code for user in events for code in user[:-2])
    rare, together = set[int](), 0
    for code in range(ITEMS, 0, -1):
        together += counts[code]
        if together <= 0.2 * sum(counts.values()):
            rare.add(code)
    assert slices["rare items"].tolist() == [user[-1] in rare for user in events]


@pytest.mark.parametrize(("columns", "taken"), [({}, {1}), ({"positive_from": 1.0}, {0, 1})])
def test_what_was_only_shown_is_no_event(tmp_path: Path, columns: dict[str, float], taken: set[int]) -> None:
    """Clicks count where the label is 1, ratings in every row."""
    random, users, rows = np.random.default_rng(0), 40, 20
    log = pl.DataFrame(
        {
            "who": np.repeat(np.arange(users), rows),
            "what": random.integers(0, 30, users * rows),
            "clicked": random.integers(0, 2, users * rows),
            "at": np.tile(np.arange(rows), users),
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    schema = {"label": "clicked", "timestamp": "at", "user": "who", "item": "what", **columns}
    task = _task(tmp_path, source=f"table:{tmp_path / 'log.parquet'}", columns=schema, synthetic=None)
    sequences = _open(task).sequences
    kept = log.filter(pl.col("clicked").is_in(list(taken))).sort("who", "at", maintain_order=True)
    often = kept.filter(pl.len().over("who") >= 5)
    assert sequences.ids[sequences.codes - 1].tolist() == often["what"].to_list()
    assert np.diff(sequences.offsets).tolist() == often.group_by("who", maintain_order=True).len()["len"].to_list()


@pytest.mark.parametrize("bound", ["MOST_SCORES", "MOST_USERS", "_MOST_SEEN"])
def test_of_many_users_some_are_judged(bound: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = _open(_task(home))
    whole, longest = _whole(opened), int(np.diff(opened.sequences.offsets).max())
    of_a_user = {"MOST_SCORES": ITEMS, "MOST_USERS": 1, "_MOST_SEEN": longest}
    monkeypatch.setattr(sequential, bound, 30 * of_a_user[bound])
    monkeypatch.setattr(sequential, "FEWEST_USERS", 20)
    held = opened.held_out("test")
    assert len(held.groups) == 30 and np.all(np.diff(held.groups) > 0)
    assert np.array_equal(held.labels, whole.labels[held.groups])
    assert np.array_equal(held.inputs[0]["history"], whole.inputs[0]["history"][held.groups])
    assert all(np.array_equal(mask, whole.slices[name][held.groups]) for name, mask in held.slices.items())
    assert held.seen is not None and whole.seen is not None
    for row, user in enumerate(held.groups.tolist()):
        assert set(held.seen[row].tolist()) | {0} == set(whole.seen[user].tolist()) | {0}
    assert opened.facts().rows == {"train": opened.facts().rows["train"], "validation": 30, "test": 30}
    other = replace(opened, task=replace(opened.task, seed=4)).held_out("test")
    assert not np.array_equal(other.groups, held.groups)


def _whole(opened: SequentialRecommender) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "MOST_SCORES", 10_000 * ITEMS)
        return opened.held_out("test")


def test_what_is_told_is_the_meters_own_metric(opened: SequentialRecommender, events: list[list[int]]) -> None:
    facts, held = opened.facts(), opened.held_out("test")
    assert held.seen is not None

    def score(user: int) -> NDArray[np.float32]:
        history = torch.from_numpy(held.inputs[0]["history"][[user]])
        with torch.inference_mode():
            scores: NDArray[np.float32] = opened.model(history=history, item=torch.arange(1, ITEMS + 1)).numpy()
        return scores

    counts = np.array([opened.counts(opened.model, [TABLE])["tables.item"][1:].tolist()] * 140, dtype=np.float64)
    by: dict[str, Callable[[int], Any]] = {"baseline": score, "popularity": lambda user: counts[user]}
    for name, scores in by.items():
        value = gains("ndcg@10", ranks(scores, held.labels, held.seen)).mean()
        assert facts.references[name] == pytest.approx(value, abs=1e-9)
    assert facts.references["logistic_regression"] is None and facts.reference_metric == "ndcg@10"
    train = sum(len(user) - 2 for user in events)
    assert facts.rows == {"train": train, "validation": 140, "test": 140} and facts.users == 140


def test_requests_are_one_history_and_many_items(opened: SequentialRecommender, events: list[list[int]]) -> None:
    histories = {tuple(_padded(user[:-1], 6)): set(user[:-1]) for user in events}
    requests = list(opened.requests(5))
    assert len(requests) == 1000
    for request in requests:
        assert request["history"].shape == (1, 6) and 1 <= len(request["item"]) <= 40
        assert not set(request["item"].tolist()) & histories[tuple(request["history"][0].tolist())]


def test_a_sibling_reads_the_same_requests(opened: SequentialRecommender) -> None:
    sizes = {"embedding_dim": 4, "blocks": 2, "heads": 2, "feed_forward": 16}
    sibling = opened.build(Architecture(tuple(sizes.items())))
    request = {name: torch.from_numpy(values) for name, values in next(iter(opened.requests(0))).items()}
    with torch.inference_mode():
        assert sibling.eval()(**request).shape == request["item"].shape
    assert set(opened.student()) == set(opened.sizes()) == set(sizes)
    own = opened.build(Architecture(tuple(opened.sizes().items())))
    assert {n: t.shape for n, t in own.state_dict().items()} == {
        n: t.shape for n, t in opened.model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("users", "passes"), [(140, 20), (640, 20), (641, 17), (128 * 30, 4), (128 * 99, 2), (128 * 100, 1), (10**6, 1)]
)
def test_an_epoch_has_batches_enough_to_learn_from(
    users: int, passes: int, opened: SequentialRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred batches, but no more than twenty passes."""
    epochs: list[list[int]] = []
    asked: list[int] = []

    def drawn(
        sequences: Any, length: int, negatives: int, generator: torch.Generator
    ) -> Iterable[tuple[Inputs, Labels]]:
        asked.append(negatives)
        return iter([({}, torch.zeros(1))])

    def train(
        model: Any,
        loss: Any,
        optimizer: Any,
        batches: Callable[[], Iterable[tuple[Inputs, Labels]]],
        validate: Any,
        passes: int,
        **_: Any,
    ) -> Any:
        epochs.append([len(labels) for _ in range(passes) for _, labels in batches()])
        return Trained(0, (0.5,), 0.0)

    monkeypatch.setattr(sequential, "_lessons", drawn)
    monkeypatch.setattr(sequential, "train_to_optimum", train)
    held = sequential._held_out(opened.sequences, "validation", 6, 5, 0)
    monkeypatch.setattr(sequential, "_held_out", lambda *_: held)
    monkeypatch.setattr(type(opened.sequences), "users", users)
    sequential._train(opened.model, opened.sequences, 6, 0, lambda line: None)
    assert epochs == [[1] * passes]
    assert asked == [1] * passes, "against one negative, as in the paper"


def test_a_baseline_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _open(_task(tmp_path))
    monkeypatch.setattr(sequential, "_train", None)
    again = _open(_task(tmp_path, rows_median=30, metric="hr@5"))
    assert again.key == first.key
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"sizes": {**SIZES, "length": 5}}, {"synthetic": {**SYNTHETIC, "items": 50}}]
)
def test_another_model_or_other_data_have_another_key(
    change: dict[str, Any], opened: SequentialRecommender, tmp_path: Path
) -> None:
    assert _open(_task(tmp_path, **change)).key != opened.key


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sizes": {"heads": 3}}, r"heads=3"),
        ({"sizes": {"mlp": "64"}}, r"^sizes\.mlp: .*embedding_dim, blocks, heads, feed_forward, length$"),
        ({"synthetic": {**SYNTHETIC, "rows": 140}}, r"5 events"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        _open(_task(tmp_path, **change))
    assert len(str(caught.value).splitlines()) == 1


def test_a_log_without_items_has_no_sequences(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("at,clicked,who\n" + "\n".join(f"{n},{n % 2},{n % 3}" for n in range(60)) + "\n")
    columns = {"label": "clicked", "timestamp": "at", "user": "who"}
    task = _task(tmp_path, source=f"table:{file}", columns=columns)
    assert read_log(task).item is None
    with pytest.raises(ValueError, match="items"):
        _open(task)

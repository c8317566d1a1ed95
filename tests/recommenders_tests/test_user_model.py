"""A user's own recommender: its factory's duties, and what is read from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.errors import SettingError
from objectives.output_kind import OutputKind
from objectives.recommenders.scoring import main_scores
from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.factory import FactoryError, batches_of, given_by, load_factory
from objectives.recommenders.user_model.load import open_user_model
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.recommenders.user_model.user_requests import Sent
from objectives.task import Task
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

USERS, ITEMS = 30, 50


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 4), nn.Embedding(ITEMS, 4)
        self.tower = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        """Score a history of any length."""
        u = self.user(user) + self.item(history).mean(1)
        return self.tower(torch.cat([u, self.item(item)], 1)).squeeze(1)


class Mine:
    """A factory with histories of 3 in train, of 2 to 4 in validation and requests."""

    name, metric = "mine", "auc"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.rows: dict[str, tuple[int, ...]] = {"train": (40, 40, 1), "validation": (30, 25), "test": (20, 20, 20)}
        self.model: nn.Module = Net()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        for number, rows in enumerate(self.rows[split]):
            random = np.random.default_rng([number, rows, len(split)])
            user, item = random.integers(USERS, size=rows), random.integers(ITEMS, size=rows)
            history = random.integers(ITEMS, size=(rows, 3 if split == "train" else 2 + number % 2))
            inputs = {
                "user": torch.from_numpy(user),
                "item": torch.from_numpy(item),
                "history": torch.from_numpy(history),
            }
            yield inputs, torch.from_numpy((random.random(rows) < 0.5).astype(np.float32)), user

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(seed)
        for _ in range(60):
            rows, length = int(random.integers(2, 9)), int(random.integers(2, 5))
            yield {
                "user": np.repeat(random.integers(USERS), rows),
                "item": random.integers(ITEMS, size=rows),
                "history": np.repeat(random.integers(ITEMS, size=(1, length)), rows, axis=0),
            }


def opened(given: Any, monkeypatch: pytest.MonkeyPatch, metric: str = "") -> UserRecommender:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    return open_user_model(Task("home", "mine:factory", "", metric, 200, 0.6, 1000, 0), lambda line: None)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> UserRecommender:
    return opened(Mine(), monkeypatch)


def test_inputs_are_told_by_what_requests_give(mine: UserRecommender) -> None:
    found = {spec.name: (spec.dtype, spec.shape, spec.side) for spec in mine.inputs}
    assert found == {
        "user": ("int64", (), "user"),
        "item": ("int64", (), "item"),
        "history": ("int64", (None,), "user"),
    }
    assert (
        mine.once == frozenset()
        and mine.output_kinds == (OutputKind("logits"),)
        and (mine.metric, mine.custom_metric) == ("auc", False)
    )
    assert mine.hidden is None and not mine.built and mine.student() == mine.sizes() == {}


def sides(found: UserRecommender) -> dict[str, tuple[str, bool]]:
    return {spec.name: (spec.side, spec.inferred) for spec in found.inputs}


def test_the_users_inputs_are_inferred_or_declared(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides(mine) == {"user": ("user", True), "item": ("item", True), "history": ("user", True)}
    for declared in (["history"], ("history", "user"), set[str]()):
        given = Mine()
        given.user_inputs = declared  # type: ignore[attr-defined]
        found = opened(given, monkeypatch)
        assert sides(found) == {n: ("user" if n in declared else "item", False) for n in ("user", "item", "history")}
        assert (found.key == mine.key) == (len(declared) == 2), "what is exported hangs on it"
        assert found.held_out("test").slices.keys() == mine.held_out("test").slices.keys()


def test_what_is_declared_of_few_requests_is_taken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than 20 requests declare nothing."""
    given = Mine()
    few = list(Mine().requests(0))[:5]
    monkeypatch.setattr(given, "requests", lambda seed: few)
    assert sides(opened(given, monkeypatch))["user"] == ("item", True)
    given.user_inputs = ["user"]  # type: ignore[attr-defined]
    assert sides(opened(given, monkeypatch))["user"] == ("user", False)


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        (["usr"], "mine: user_inputs .*user, item, history, .*'usr'"),
        (["user", "item"], "mine: user_inputs .*'item'"),
        ("user", "mine:factory: user_inputs .*str"),
        ([1], "mine:factory: user_inputs .*list"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Mine()
    given.user_inputs = declared  # type: ignore[attr-defined]
    with pytest.raises(FactoryError, match=line):
        opened(given, monkeypatch)


def test_what_is_judged_is_what_the_batches_yield(mine: UserRecommender) -> None:
    """Blocks have one length of history, with labels and groups in the same order."""
    held = mine.held_out("test")
    assert [block["history"].shape for block in held.inputs] == [(40, 2), (20, 3)]
    yielded = list(Mine().batches("test"))
    order = [0, 2, 1]
    assert np.array_equal(
        np.concatenate([b["item"] for b in held.inputs]), np.concatenate([yielded[i][0]["item"] for i in order])
    )
    assert np.array_equal(held.labels, np.concatenate([yielded[i][1] for i in order]))
    users = np.concatenate([yielded[i][2] for i in order])
    assert all(len(np.unique(users[held.groups == group])) == 1 for group in np.unique(held.groups))
    with torch.inference_mode():
        scores = [mine.model(**{n: torch.from_numpy(v) for n, v in block.items()}) for block in held.inputs]
    auc = roc_auc_score(held.labels, torch.cat(scores).numpy())
    assert mine.facts().references == {"baseline": pytest.approx(auc)}
    assert mine.facts().rows == {"train": 81, "validation": 55, "test": 60}


def test_a_factory_may_fill_the_same_arrays_again(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows and requests are those of a factory that makes new arrays for each batch and each request."""

    class Reusing(Mine):
        def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
            buffers: dict[Any, Any] = {}
            for inputs, labels, groups in super().batches(split):
                kept = {name: filled(buffers, name, values.numpy()) for name, values in inputs.items()}
                yield kept, filled(buffers, "labels", labels.numpy()), filled(buffers, "groups", groups)

        def requests(self, seed: int) -> Iterator[dict[str, Any]]:
            buffers: dict[Any, Any] = {}
            for number, request in enumerate(super().requests(seed)):
                reused = {name: filled(buffers, name, values) for name, values in request.items()}
                yield {n: torch.from_numpy(v) for n, v in reused.items()} if number % 2 else reused

    def filled(buffers: dict[Any, Any], name: str, values: Any) -> Any:
        buffer = buffers.setdefault((name, values.shape), np.empty_like(values))
        buffer[:] = values
        return buffer

    found = opened(Reusing(), monkeypatch)
    assert found.key == mine.key, "of all rows and requests"


def test_users_and_items_that_train_has_little_of_are_slices(mine: UserRecommender) -> None:
    held = mine.held_out("validation")
    train = list(Mine().batches("train"))
    counts = np.bincount(np.concatenate([groups for _, _, groups in train]), minlength=USERS)
    users = np.concatenate([block["user"] for block in held.inputs])
    few = np.quantile(counts[counts > 0], 0.25)
    assert np.array_equal(held.slices["users with little history"], counts[users] <= few)
    assert held.slices["rare items"].any() and not held.slices["rare items"].all()


def test_slices_of_ones_own_follow_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Mine()
    given.slices = lambda split: {"even": np.arange(sum(given.rows[split])) % 2 == 0}  # type: ignore[attr-defined]
    held = opened(given, monkeypatch).held_out("test")
    assert list(held.slices) == ["even"]
    assert held.slices["even"].tolist() == [i % 2 == 0 for i in [*range(20), *range(40, 60), *range(20, 40)]]


def test_a_pass_has_each_train_row_once_in_batches_of_one_size(mine: UserRecommender) -> None:
    first = list(mine.train_rows().batches(torch.Generator()))
    assert [len(labels) for _, labels in first] == [81] and mine.train_rows().batches_per_epoch == 1
    yielded = [torch.cat([inputs["user"] for inputs, *_ in batches]) for batches in (first, Mine().batches("train"))]
    assert not torch.equal(*yielded) and torch.equal(*(users.sort().values for users in yielded))


def test_rows_of_serving_have_one_length(mine: UserRecommender) -> None:
    rows = mine.serving_rows(100)
    assert {len(values) for values in rows.values()} == {100} and rows["history"].shape[1] in (2, 3, 4)


def test_rows_of_serving_are_of_many_users() -> None:
    """Where the user is given once a request, all rows of a run have to be of one user."""
    items = np.arange(20.0, dtype=np.float32)
    several = tuple({"user": np.full(20, float(user), np.float32), "item": items} for user in range(50))
    found = Sent(several, frozenset(), frozenset({"user"}))
    for count in (7, 40):
        assert len(np.unique(found.rows(count)["user"])) == count == len(found.rows(count)["item"])
    assert len(found.rows(3000)["user"]) == 3000, "rows come again where there are fewer"
    alone = tuple({"user": np.full(1, float(user), np.float32), "item": items} for user in range(50))
    assert set(Sent(alone, frozenset({"user"}), frozenset()).rows(20)["user"].tolist()) == {0.0}


def test_counts_are_of_every_input_that_a_table_looks_up(mine: UserRecommender) -> None:
    (counts,) = mine.counts(mine.model, [Table("item", ITEMS, ("history", "item"))]).values()
    assert counts.sum() == 81 * 4
    train = list(Mine().batches("train"))
    assert counts[7] == sum(int((b["item"] == 7).sum() + (b["history"] == 7).sum()) for b, _, _ in train)


def test_the_key_follows_weights_and_data(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(Mine(), monkeypatch).key == mine.key
    trained = Mine()
    with torch.no_grad():
        trained.model.user.weight[3, 1] += 1  # type: ignore[union-attr, index, operator]
    assert opened(trained, monkeypatch).key != mine.key
    other = Mine()
    other.rows = {**other.rows, "test": (20, 20)}
    assert opened(other, monkeypatch).key != mine.key


class Louder(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_the_key_follows_requests_and_the_code_of_every_layer(
    mine: UserRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key does not follow the slices, on which no weight depends."""
    fewer, sliced, other = Mine(), Mine(), Mine()
    asked = Mine().requests
    fewer.requests = lambda seed: list(asked(seed))[:-1]  # type: ignore[method-assign, assignment, return-value]
    sliced.slices = lambda split: {"all": np.ones(sum(sliced.rows[split]), dtype=bool)}  # type: ignore[attr-defined]

    assert isinstance(other.model, Net)
    other.model.tower = Louder(*other.model.tower)
    keys = {opened(given, monkeypatch).key for given in (fewer, other)}
    assert len(keys) == 2 and mine.key not in keys
    assert opened(sliced, monkeypatch).key == mine.key


def test_the_key_follows_the_code_of_a_metric_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses by two metrics may not stand on one front. A built-in one is told by its name, and costs no training."""

    def precise(scores: Any, labels: Any, groups: Any) -> float:
        return float(((scores > 0) == labels).mean())

    def lenient(scores: Any, labels: Any, groups: Any) -> float:
        return float(((scores > -1) == labels).mean())

    keys = [opened(_broken(metric=metric), monkeypatch).key for metric in ("auc", "gauc", precise, lenient)]
    assert keys[0] == keys[1] and len(set(keys)) == 3


class Tuned(nn.Module):
    """A layer whose setting, helper and attribute are no weights."""

    def __init__(self, power: int, shift: Any = None) -> None:
        super().__init__()
        self.power, self.shift = power, shift

    def forward(self, x: Tensor) -> Tensor:
        return raised(x, self.power) if self.shift is None else self.shift(x)


FACTOR = 2.0


def one_more(x: Tensor) -> Tensor:
    return x + 1


def two_more(x: Tensor) -> Tensor:
    return x + 2


def raised(x: Tensor, power: int) -> Tensor:
    return FACTOR * x**power


def test_the_key_follows_all_that_determines_the_scores(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one state dict and equal class names have other keys by settings, functions, constants and the loss."""

    class Weighted(Mine):
        """What the loss reads of the result counts, and nothing else."""

        size = 3

        def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return self.alpha * super().loss(outputs, labels)  # type: ignore[attr-defined, no-any-return]

    def key(layer: nn.Module | None = None, **attributes: Any) -> str:
        given = Weighted() if "alpha" in attributes else Mine()
        assert isinstance(given.model, Net)
        if layer is not None:
            given.model.tower = nn.Sequential(*given.model.tower, layer)
        for name, value in attributes.items():
            setattr(given, name, value)
        return opened(given, monkeypatch).key

    def weighted(factor: float) -> Any:
        return lambda outputs, labels: factor * outputs.square().mean()

    keys = [
        key(), key(Tuned(1)), key(Tuned(2)), key(Tuned(1, one_more)), key(Tuned(1, two_more)),
        key(nn.ReLU()), key(nn.Tanh()), key(nn.LeakyReLU(0.1)), key(nn.LeakyReLU(0.2)), key(alpha=0.5), key(alpha=0.7),
        key(loss=weighted(1.0)), key(loss=weighted(2.0)), key(hidden="tower"),
        key(loss=lambda outputs, labels: outputs.mean() + 1), key(loss=lambda outputs, labels: outputs.mean() + 2),
        key(loss=functools.partial(nn.functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor(2.0))),
        key(loss=functools.partial(nn.functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0))),
    ]  # fmt: skip
    assert key(alpha=0.5, size=7) == keys[9]
    assert len(set(keys)) == len(keys) and keys[0] == mine.key == key() and keys[1] == key(Tuned(1))
    monkeypatch.setattr("tests.recommenders_tests.test_user_model.FACTOR", 3.0)
    assert key(Tuned(1)) != keys[1] and key(nn.ReLU()) == keys[5], "a constant of a helper's module"


class Settings:
    """A user's own record of settings, which cannot be called."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Scaled(nn.Module):
    """A layer that reads settings, a tensor and a buffer, none of which is in its state dict."""

    def __init__(self, scale: float = 1.0, prior: float = 0.0, kept: float = 0.0) -> None:
        super().__init__()
        self.settings, self.prior = Settings(scale), torch.full((1 << 17,), prior)
        self.register_buffer("kept", torch.full((1 << 17,), kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.settings.scale * x + self.prior[0]


def doubled(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def halved(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return 0.5 * output


def test_the_key_follows_what_is_in_no_state_dict(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in a record, large tensors, forward hooks, and which parameters are frozen or tied."""

    def key(change: Callable[[Net], object] = lambda net: None) -> str:
        given = Mine()
        assert isinstance(given.model, Net)
        change(given.model)
        return opened(given, monkeypatch).key

    def with_layer(**of: float) -> Callable[[Net], object]:
        return lambda net: net.tower.append(Scaled(**of))

    def tied(net: Net) -> None:
        net.second = nn.Embedding(ITEMS, 4)
        net.second.weight = net.item.weight

    def copied(net: Net) -> None:
        net.second = nn.Embedding.from_pretrained(net.item.weight.detach().clone(), freeze=False)

    keys = [
        key(), key(lambda net: net.item.weight.requires_grad_(False)), key(lambda net: net.user.requires_grad_(False)),
        key(tied), key(copied), key(with_layer()), key(with_layer(scale=2.0)), key(with_layer(prior=0.1)),
        key(with_layer(kept=0.1)),
        key(lambda net: net.register_forward_hook(doubled)), key(lambda net: net.register_forward_hook(halved)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys) and keys[0] == mine.key
    assert key(with_layer(scale=2.0)) == keys[6] and key(tied) == keys[3], "the same for an equal model"


def test_groups_may_be_a_column(mine: UserRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    def columns(split: str) -> Iterator[Any]:
        return ((inputs, labels, groups.reshape(-1, 1)) for inputs, labels, groups in Mine().batches(split))

    assert opened(_broken(batches=columns), monkeypatch).key == mine.key


@pytest.mark.parametrize("of", [tuple, list])
def test_labels_of_several_tasks_may_be_numpy(of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(split: str) -> Iterator[Any]:
        for inputs, labels, groups in Mine().batches(split):
            yield inputs, of((labels.numpy(), 1 - labels.numpy())), groups

    def loss(outputs: Tensor, labels: Any) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels[0])

    found = opened(_broken(batches=batches, loss=loss), monkeypatch)
    _, labels = next(found.train_rows().batches(torch.Generator()))
    assert type(labels) is of and torch.equal(labels[0], 1 - labels[1])


class Lossy:
    """A loss whose source is that of its class."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)


@pytest.mark.parametrize(
    "make",
    [
        Lossy,
        lambda: functools.partial(nn.functional.binary_cross_entropy_with_logits, pos_weight=torch.tensor(2.0)),
        nn.BCEWithLogitsLoss,
    ],
)
def test_the_key_hangs_on_no_objects_address(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [opened(_broken(loss=make()), monkeypatch) for _ in range(3)]
    assert len({found.key for found in kept}) == 1


class Asked(nn.Module):
    """The user's taste is given once a request."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, 4)

    def forward(self, taste: Tensor, item: Tensor) -> Tensor:
        return (self.items(item) * taste).sum(1)


class Once(Mine):
    """Clicks that follow the user's taste, batches of several users."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Asked()

    def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        random = np.random.default_rng(len(split))
        tastes = random.normal(size=(USERS, 4)).astype(np.float32)
        user, item = np.arange(200) % USERS, random.integers(ITEMS, size=200)
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(tastes[user]), torch.from_numpy(item))
        inputs = {"taste": torch.from_numpy(tastes[user]), "item": torch.from_numpy(item)}
        yield inputs, (logits > 0).float(), user

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for rows in range(2, 30):
            yield {"taste": np.ones((1, 4), dtype=np.float32), "item": np.arange(rows)}


def test_what_is_given_once_is_that_of_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the model's own scores, so that they rank perfectly when each row is scored with its own user."""
    found = opened(Once(), monkeypatch)
    assert found.once == {"taste"}
    assert found.facts().references == {"baseline": 1.0}
    held = found.held_out("validation")
    scores = main_scores(found, found.model, held.inputs)
    assert np.array_equal(scores > 0, held.labels == 1)


def test_requests_have_the_rows_of_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.savez(tmp_path / "trace.npz", rows=np.array([3, 40, 1]))
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: Once())
    task = Task("home", "mine:factory", "", "", 200, 0.6, 20, 0, rows_trace=str(tmp_path / "trace.npz"))
    sent = list(open_user_model(task, lambda line: None).requests(0))
    assert [len(request["item"]) for request in sent[:4]] == [3, 20, 1, 3] and len(sent) == 1000
    assert sent[1]["item"].tolist() == [*range(3)] * 6 + [0, 1], "its own rows, round and round"
    assert {len(request["taste"]) for request in sent} == {1}


def test_the_loss_is_told_by_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: Mine())
    task = Task("home", "mine:factory", "", "", 200, 0.6, 1000, 0, slice_by=("user",))
    held = open_user_model(task, lambda line: None).held_out("test")
    users = np.concatenate([block["user"] for block in held.inputs])
    told = {name: mask for name, mask in held.slices.items() if name.startswith("user ")}
    assert len(told) == 5
    for name, mask in told.items():
        assert np.array_equal(mask, users == int(name.removeprefix("user ")))
    with pytest.raises(SettingError, match=r"slice_by: .*user, item, .*history"):
        open_user_model(replace(task, slice_by=("history",)), lambda line: None).held_out("test")


def test_a_metric_of_ones_own_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Mine()
    given.metric = lambda scores, labels, groups: float(np.mean(scores[labels == 1]))  # type: ignore[assignment]
    found = opened(given, monkeypatch)
    assert found.custom_metric and found.metric == "<lambda>"
    assert found.evaluate_custom_metric(np.array([1.0, 2.0]), np.array([0, 1]), np.array([0, 0])) == 2
    assert not opened(given, monkeypatch, "gauc").custom_metric, "the study names another"


class Both(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(8)
        self.like = nn.Linear(1, 1)

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> dict[str, Tensor]:
        logit = self.net(user, item, history)
        return {"like": self.like(logit.unsqueeze(1)), "click": torch.sigmoid(logit)}


class Named(Net):
    """One output, by name."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return {"score": super().forward(*inputs, **named)}


class Other(Net):
    """A sibling whose tower is one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(8, 1)  # type: ignore[assignment]


@pytest.mark.parametrize("model", [Net, Named])
@pytest.mark.parametrize("packed", [lambda y, w: (y, w), lambda y, w: torch.stack([y, w], 1)])
def test_of_one_output_the_first_labels_are_its_own(model: Any, packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of one output may be followed by others, where a loss takes weights beside them."""
    given = Mine()
    given.model = model()
    plain = given.batches
    given.batches = lambda split: (  # type: ignore[method-assign]
        (inputs, packed(labels, labels + 0.5), groups) for inputs, labels, groups in plain(split)
    )
    given.loss = lambda outputs, labels: sum(p.square().sum() for p in given.model.parameters())  # type: ignore
    held = opened(given, monkeypatch).held_out("validation")
    assert set(np.unique(held.labels)) == {0, 1} and held.others == {}


def _both() -> Mine:
    given = Mine()
    given.model, given.output = Both(), "click"  # type: ignore[attr-defined]
    plain = given.batches
    given.batches = lambda split: (  # type: ignore[method-assign]
        (inputs, {"click": labels, "like": 1 - labels}, groups) for inputs, labels, groups in plain(split)
    )
    given.loss = lambda outputs, labels: nn.functional.binary_cross_entropy(outputs["click"], labels["click"])  # type: ignore[method-assign]
    return given


def test_of_several_outputs_one_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(_both(), monkeypatch)
    outputs = found.outputs(found.model, found.serving_rows(5))
    scores = found.scores(outputs)
    assert torch.equal(scores[:, 0], outputs["click"]) and torch.equal(scores[:, 1], outputs["like"][:, 0])
    held = found.held_out("test")
    assert np.array_equal(held.others["like"], 1 - held.labels) and list(held.others) == ["like"]
    assert [kind.scale for kind in found.output_kinds] == ["probabilities", "logits"]


def test_siblings_are_the_factorys(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Mine()
    given.build, given.shapes = lambda shape: Net(**shape), {"width": [4, 8]}  # type: ignore[attr-defined]
    found = opened(given, monkeypatch)
    assert found.built and found.student() == {"width": (4, 8)}
    sibling = found.build(Architecture((("width", 4),)))
    assert sibling.tower[0].out_features == 4  # type: ignore[index, union-attr]


# --- one line for whatever is wrong ---


def _broken(**changes: Any) -> Any:
    given = Mine()
    for name, value in changes.items():
        setattr(given, name, value)
    return given


def _batches(inputs: Any = None, labels: Any = None, groups: Any = None) -> Any:
    def batches(split: str) -> Iterator[Any]:
        for good, truth, owners in Mine().batches(split):
            yield (
                good if inputs is None else inputs(good),
                truth if labels is None else labels,
                owners if groups is None else groups,
            )

    return batches


WRONG: list[tuple[Any, str]] = [
    (_broken(model=3), "mine:factory: model .*int"),
    (_broken(name=""), "mine:factory: name .*str"),
    (_broken(loss=None), "mine:factory: loss "),
    (_broken(build=4), "mine:factory: build .*int"),
    (_broken(metric="ndcg@10"), "mine: metric .*'ndcg@10'"),
    (_broken(batches=lambda split: []), r"mine: batches\('train'\) .*none"),
    (_broken(batches=lambda split: [({}, 1)]), r"mine: batches\('train'\) .*2 parts"),
    (
        _broken(batches=_batches(lambda inputs: {"user": inputs["user"]})),
        r"mine: batches\('train'\): inputs .*history, item",
    ),
    (
        _broken(batches=_batches(lambda inputs: {**inputs, "age": inputs["user"]})),
        r"mine: batches\('train'\): inputs .*age",
    ),
    (_broken(batches=_batches(labels=torch.zeros(3))), r"mine: batches\('train'\): labels .*40 rows .*3"),
    (_broken(batches=_batches(groups=[1, 2])), r"mine: batches\('train'\): groups .*40 rows .*2"),
    (_broken(batches=_batches(groups=np.zeros((40, 2)))), r"mine: batches\('train'\): groups .*\(40,\), .*\(40, 2\)"),
    (
        _broken(batches=_batches(lambda inputs: {**inputs, "user": inputs["user"] + 100})),
        "mine: .*train .*IndexError: ",
    ),
    (_broken(requests=lambda seed: []), r"mine: requests\(0\) .*none"),
    (
        _broken(requests=lambda seed: [{"user": np.zeros(3), "item": np.zeros(2)}]),
        r"mine: requests\(0\): inputs .*\{'user': 3, 'item': 2\}",
    ),
    (
        _broken(batches=_batches(lambda inputs: {**inputs, "history": inputs["history"].ravel()})),
        r"mine: batches\('train'\): inputs .*bags.*'history': 120",
    ),
    (_broken(loss=lambda outputs, labels: outputs - labels), r"mine: loss .*\(40,\)"),
    (_broken(model=Both()), r"mine: output .*\['like', 'click'\], .*None"),
    (
        _broken(model=Both(), output="click", batches=_batches(labels=torch.zeros(40, 2)), rows={"train": (40,)}),
        r"mine: labels .*'click', .*\[0, 1\]",
    ),
    (
        _broken(model=Named(), batches=_batches(labels={"click": torch.zeros(40)}), rows={"train": (40,)}),
        r"mine: labels .*'score', .*\['click'\]",
    ),
    (_broken(batches=_batches(labels={"click": torch.zeros(40)})), r"mine: labels .*one output, .*\['click'\]"),
    (
        _broken(batches=_batches(lambda inputs: {**inputs, "item": inputs["item"].int()})),
        "mine: batches and requests .*batches item int32; requests item int64",
    ),
    (
        _broken(batches=_batches(lambda inputs: {**inputs, "item": ["a"] * 40})),
        r"mine: batches\('train'\): input item .*ValueError: ",
    ),
    (_broken(hidden="towr"), "mine: hidden .*'towr'"),
    (
        _broken(build=lambda shape: 1 / 0, shapes={"width": [4]}),
        r"mine: build\(\{'width': 4\}\) .*ZeroDivisionError: .*\(<lambda>, line",
    ),
    (_broken(build=lambda shape: Both(), shapes={"width": [4]}), "mine: the model .*dict"),
    (
        _broken(build=lambda shape: Net(), shapes={"width": {"low": 4, "high": 8}}),
        r"mine: shapes .*'width', .*\{'low': 4, 'high': 8\}",
    ),
    (
        _broken(build=lambda shape: Other(), shapes={"width": [4]}, hidden="tower.0"),
        "mine: build .*'tower.0'",
    ),
]


@pytest.mark.parametrize(("given", "line"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_in_one_line(given: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FactoryError, match=f"^{line}") as caught:
        opened(given, monkeypatch)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("slices", "line"),
    [
        (lambda split: 1 / 0, r"mine: slices\('validation'\) .*ZeroDivisionError"),
        (lambda split: [True], r"mine: slices\('validation'\) .*list"),
        (
            lambda split: {"few": np.ones(3, dtype=bool)},
            r"mine: slices\('validation'\) .*55 rows.*'few' .*bool .*\(3,\)",
        ),
    ],
)
def test_slices_that_are_wrong_are_named_in_one_line(slices: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FactoryError, match=line):
        opened(_broken(slices=slices), monkeypatch).held_out("validation")


def test_an_optimizer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(_broken(optimizer=lambda parameters: 1 / 0), monkeypatch)
    with pytest.raises(FactoryError, match=r"mine: optimizer\(parameters\) failed: ZeroDivisionError"):
        found.optimizer(found.model)


def test_a_model_from_elsewhere_comes_to_the_cpu_in_full_precision() -> None:
    """The model may have been built on a GPU, in halves."""

    class Elsewhere(Net):
        asked = ""

        def to(self, device: str) -> Elsewhere:  # type: ignore[override]
            self.asked = device
            return super().to(device)

    given = _broken(model=Elsewhere().half().train())
    model = given_by(lambda: given, "mine:factory").model
    assert model.asked == "cpu" and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_factory_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    (tmp_path / "found_shop.py").write_text("def factory():\n    return 1 / 0\n\ndef other():\n    pass\n")
    (tmp_path / "broken_shop.py").write_text("import no_such_thing\n")
    factory = load_factory("found_shop:factory", tmp_path)
    with pytest.raises(
        FactoryError,
        match=r"ZeroDivisionError: .*\(factory, line 2 of found_shop\.py\)",
    ):
        given_by(factory, "found_shop:factory")
    for spec, line in (
        ("found_shop:nothing", "found_shop .*'nothing', .*factory, other"),
        ("no_shop:factory", f"'no_shop' .*{tmp_path}"),
        ("broken_shop:factory", "broken_shop .*ModuleNotFoundError: .*'no_such_thing'"),
        ("found_shop", "package.module:factory, .*'found_shop'"),
    ):
        with pytest.raises(FactoryError, match=line) as caught:
            load_factory(spec, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_batch_that_fails_is_named_with_its_line() -> None:
    given = SimpleNamespace(name="mine", model=Net(), batches=lambda split: iter([1 / 0]))
    with pytest.raises(FactoryError, match=r"batches\('test'\) failed: ZeroDivisionError"):
        list(batches_of(given, "test"))  # type: ignore[arg-type]

"""Sequential recommender: ranks the items of a catalogue by a user's history with SASRec, on sequences of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from objectives.arrays import Arrays
from objectives.errors import SettingError
from objectives.held_out_rows import HELD_PARTS, HeldOut, HeldPart
from objectives.output_kind import OutputKind
from objectives.ranking_metrics import gains, ranks
from objectives.recommenders.datasets.sequences import Codes, Negatives, Sequences, draw_requests, sequences_of
from objectives.recommenders.datasets.sources import all_taken, read_log
from objectives.recommenders.families import sasrec
from objectives.recommenders.families.sizes import resized, told
from objectives.recommenders.protocol import Facts, Method
from objectives.recommenders.references import ItemTable
from objectives.recommenders.requests import request_rows
from objectives.recommenders.slices import sequence_slices
from objectives.recommenders.training import (
    BuiltIn,
    Labelled,
    Progress,
    Trained,
    open_baseline,
    student_batch,
    train_to_optimum,
)
from objectives.records import InputSpec
from objectives.task import Task
from objectives.tensor_layout import Layout
from objectives.training_rows import Block, Inputs, Labels, TrainingRows
from spaces.domains import Scalar
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

# Version of training and its data, raised when either changes, so that older baselines in the cache are not used.
STAGE = 3
BATCH = 128  # users; section 4.3 of the paper, like the learning rate; the authors' code has the second beta
STUDENT_BATCH = (32, BATCH)  # least and most users, for models that are trained from the baseline
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.98)
# One negative for each position as in the paper. A student and its teacher compare longer lists, whose loss is the same
# mean; the positions of a history share their negatives, so that each history takes one product with them in the place
# of a lookup for each position.
NEGATIVES, LISTED = 1, 63
# Limits of the evaluation: each evaluated user is a separate request for all items, so the users are limited by the
# total number of scores, which took the published model 100 s on two cores, but not below a minimum. They are drawn
# uniformly. On a synthetic log, 10,000 users resolved a loss of NDCG of 1.4%, 100,000 one of 0.5%, so more are not
# needed for a short catalogue either. Seen items are held as a table, (users, longest), with at most 1.6 GB.
MOST_SCORES, MOST_USERS, FEWEST_USERS = 2_000_000_000, 100_000, 2000
_MOST_SEEN = 200_000_000
_EARLY_STOPPING_USERS = 4000
# Users that are ranked at a time: memory holds this many times the items.
_RANKED_TOGETHER = 128
# Epoch of the baseline's training, between two validations: this many batches, or at most as many passes over train as
# in the authors' main.py. A few batches without improvement are no evidence of convergence.
_EPOCH_BATCHES, _EPOCH_PASSES = 100, 20
_SHARED_HISTORY = 32  # serving rows that share a history


@dataclass(frozen=True, eq=False)
class SequentialRecommender(BuiltIn[sasrec.SASRec]):
    """Recommender that ranks by a history. It needs no labels: candidate 0 came next."""

    sequences: Sequences
    once: ClassVar[frozenset[str]] = frozenset(("history",))
    hidden: ClassVar[str] = "norm"
    method: ClassVar[Method] = "positions"
    output_kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind("lists"),)
    references: ClassVar[tuple[str, ...]] = ("popularity",)

    @cached_property
    def _sizes(self) -> sasrec.Sizes:
        return resized(sasrec.BASELINE, self.task.sizes)

    @property
    def encoding(self) -> str:
        return self.sequences.encoding

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        codes = self.sequences.items + 1
        return (
            InputSpec("history", "int64", (self._sizes.length,), codes, "user", unseen=0),
            InputSpec("item", "int64", (), codes, "item", unseen=0),
        )

    def outputs(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return sasrec.outputs(model, inputs)  # type: ignore[arg-type]  # siblings of the model

    def loss(self, outputs: object, labels: Labels) -> Tensor:
        assert isinstance(outputs, Tensor)
        return sasrec.loss(outputs)

    def train_rows(self) -> TrainingRows:
        """Users by their histories; the candidates of each are drawn anew."""
        return self._train_rows

    @cached_property
    def _train_rows(self) -> TrainingRows:
        history, target = self.sequences.training(self._sizes.length)
        negatives = Negatives(self.sequences)

        def draw(users: Tensor, generator: torch.Generator) -> Inputs:
            random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            asking = users.numpy()
            following, others = target[asking][:, :, None], negatives.draw(asking, (LISTED,), random)
            return {"candidates": torch.from_numpy(following), "shared": torch.from_numpy(others)}

        block = Block({"history": torch.from_numpy(history)}, torch.zeros(self.sequences.users))
        batch_size = self.task.batch_size or student_batch(block.rows, *STUDENT_BATCH)
        return TrainingRows((block,), batch_size, draw, self.task.most_batches)

    def teacher_outputs(self, inputs: Inputs) -> Tensor:
        """Compute the state of each position of the histories, (users, length, d)."""
        return self.model.position_states(inputs["history"])

    def teacher_scores(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        candidates = inputs["candidates"]
        return sasrec.of_targets(self.model.scored(outputs, candidates, inputs["shared"]), candidates)

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        """Return some histories, with several items each."""
        random = np.random.default_rng(self.task.seed)
        history, _ = self.sequences.training(self._sizes.length)
        users = random.integers(self.sequences.users, size=-(-count // _SHARED_HISTORY))
        return {
            "history": torch.from_numpy(np.repeat(history[users], _SHARED_HISTORY, axis=0)[:count]),
            "item": torch.from_numpy(random.integers(1, self.sequences.items + 1, size=count)),
        }

    def counts(self, model: nn.Module, tables: Sequence[Table]) -> Mapping[str, Tensor]:
        """Return the lookups of the catalogue's tables: the train events of each item."""
        counts = torch.from_numpy(self.sequences.item_counts())
        return {table.name: counts for table in tables if "item" in table.inputs}

    def held_out(self, part: HeldPart) -> HeldOut:
        longest = int(np.diff(self.sequences.offsets).max())
        most = max(FEWEST_USERS, min(MOST_USERS, MOST_SCORES // self.sequences.items, _MOST_SEEN // longest))
        return _held_out(self.sequences, part, self._sizes.length, most, self.task.seed)

    def requests(self, seed: int) -> Iterator[Arrays]:
        return iter(draw_requests(self.sequences, request_rows(self.task, seed), self._sizes.length, seed))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _optimizer(model)

    def build(self, architecture: Architecture) -> nn.Module:
        return sasrec.SASRec(self.sequences.items, resized(self._sizes, architecture.as_dict()))

    def layout(self, architecture: Architecture | None) -> Layout:
        given = {} if architecture is None else architecture.as_dict()
        return sasrec.layout(self.sequences.items, resized(self._sizes, given))

    def reference(self, name: str) -> nn.Module:
        return ItemTable(self.sequences.item_counts()).eval()

    def student(self) -> Mapping[str, tuple[Scalar, ...]]:
        return sasrec.student(self._sizes)

    def sizes(self) -> Mapping[str, Scalar]:
        return told(self._sizes, sasrec.STUDENT)

    def history(self) -> int:
        return self._sizes.length

    def facts(self) -> Facts:
        sequences, test = self.sequences, self.held_out("test")
        counts = sequences.item_counts()[1:].astype(np.float64)
        events = len(sequences.codes) - 2 * sequences.users
        held = dict.fromkeys(HELD_PARTS, len(test.labels))
        return Facts(
            split="The last event of each user is for test, the one before it for validation, the rest for train.",
            rows={"train": events} | held,
            users=sequences.users,
            training=self.baseline.training,
            reference_metric="ndcg@10",
            references={
                "baseline": _ndcg(_all_scores(self.model, test), test),
                "popularity": _ndcg(repeat(counts), test),
                "logistic_regression": None,
            },
        )


def open_sequential(task: Task, progress: Progress) -> SequentialRecommender:
    """Read the data and load the baseline from the cache, else train it; in a dry run, leave it untrained.

    Raises:
        SettingError: slice_by names a column.
        ValueError: the source or a size is unknown, or the files are invalid.
    """
    if task.slice_by:
        raise SettingError(f"quality.slice_by: must be [] for sasrec, but got {', '.join(task.slice_by)}")
    progress(f"data: reading {task.source}")
    sequences = sequences_of(read_log(task), implicit=all_taken(task))
    progress(f"data: {len(sequences.codes):,} events of {sequences.users:,} users on {sequences.items:,} items")
    sizes = resized(sasrec.BASELINE, task.sizes)
    baseline = open_baseline(
        task,
        sequences.key(),
        [sizes, BATCH, LEARNING_RATE, BETAS, NEGATIVES, STAGE],
        lambda: sasrec.SASRec(sequences.items, sizes),
        lambda fresh: _train(fresh, sequences, sizes.length, task.seed, progress),
    )
    return SequentialRecommender(task, baseline, sequences)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)


def _train(fresh: sasrec.SASRec, sequences: Sequences, length: int, seed: int, progress: Progress) -> Trained:
    generator = torch.Generator().manual_seed(seed)
    held = _held_out(sequences, "validation", length, _EARLY_STOPPING_USERS, seed)
    passes = min(_EPOCH_PASSES, -(-_EPOCH_BATCHES // -(-sequences.users // BATCH)))  # over train in one epoch
    return train_to_optimum(
        fresh,
        lambda model, inputs, _: sasrec.loss(sasrec.outputs(model, inputs)),  # type: ignore[arg-type]
        _optimizer(fresh),
        lambda: _lessons(sequences, length, NEGATIVES, generator),
        lambda model: _ndcg(_all_scores(model, held), held),  # type: ignore[arg-type]
        passes,
        progress=progress,
    )


def _lessons(sequences: Sequences, length: int, negatives: int, generator: torch.Generator) -> Iterator[Labelled]:
    """Iterate over batches of users, with negatives drawn anew; candidate 0 is the next item, 0 at padding."""
    history, target = sequences.training(length)
    drawing = Negatives(sequences)
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    for batch in torch.split(torch.randperm(sequences.users, generator=generator), BATCH):
        users = batch.numpy()
        candidates = _candidates(target, drawing, users, negatives, random)
        yield {"history": torch.from_numpy(history[users]), "candidates": candidates}, torch.zeros(len(users))


def _candidates(target: Codes, drawing: Negatives, users: Codes, negatives: int, random: np.random.Generator) -> Tensor:
    """Return the next item at each position, then negatives, (users, length, 1 + negatives)."""
    others = drawing.draw(users, (target.shape[1], negatives), random)
    return torch.from_numpy(np.concatenate([target[users][:, :, None], others], axis=2))


def _held_out(sequences: Sequences, part: HeldPart, length: int, most: int, seed: int) -> HeldOut:
    """Return the next items of all users, or of `most` that are drawn."""
    users = np.arange(sequences.users)
    if len(users) > most:
        users = np.sort(np.random.default_rng([seed, 5]).choice(users, size=most, replace=False))
    history, target = (values[users] for values in sequences.histories(part, length))
    return HeldOut(
        inputs=({"history": history},),
        labels=target,
        groups=users,
        slices=sequence_slices(sequences, users, target),
        seen=sequences.seen_before(part, users),
        items=np.arange(1, sequences.items + 1),
    )


def _all_scores(model: sasrec.SASRec, held: HeldOut) -> Iterator[NDArray[np.float64]]:
    """Iterate over the scores of all items, (items,), for the history of each user."""
    model.eval()
    histories = torch.from_numpy(held.inputs[0]["history"].astype(np.int64, copy=False))
    for history in torch.split(histories, _RANKED_TOGETHER):
        with torch.inference_mode():
            scores = model.states(history) @ model.tables["item"].get_parameter("weight")[1:].T
        yield from scores.double().numpy()


def _ndcg(scores: Iterator[NDArray[np.float64]], held: HeldOut) -> float:
    """Return the mean NDCG@10 of the next item among those not yet taken, by the scores of all, (items,), by user."""
    assert held.seen is not None
    targets = held.labels.astype(np.int64, copy=False)
    return float(gains("ndcg@10", ranks(lambda _: next(scores), targets, held.seen)).mean())

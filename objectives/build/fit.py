"""Fit: train the weights of a candidate, starting from the baseline's. A builder's stage, which takes minutes."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from objectives.build import elastic
from objectives.build.model_structure import groups_of_student, of_baseline, of_student
from objectives.build.teacher_outputs import kept_scores
from objectives.compression.distillation import Training, distil
from objectives.compression.elastic.network import ElasticNetwork
from objectives.compression.importance import Evidence
from objectives.compression.pipeline import Means, epochs_of, reshape
from objectives.compression.training_data import TrainingData
from objectives.errors import located
from objectives.int8_weights import Int8WeightBits
from objectives.jobs.protocol import Progress
from objectives.model_copy import copy_model
from objectives.output_kind import soft_loss_of
from objectives.recommenders.families.transfer import start_from
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.user_model.optimizer import keeps_state
from spaces.model_structure import ModelStructure
from spaces.serialization import from_plain, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.weights import Weights

_MODEL, _MADE_OF, _RANGES = "model.pt", "anatomy.json", "ranges.json"
TRAINING = "training.pt"
# Number of batches for the importance of units.
_EVIDENCE = 8
# Each cycle of a training has another order of batches, and other drawn negatives, than the one before.
_BETWEEN_CYCLES = 1_000_003
# So has each training of one fit: the last one, that of rounding, and those between the steps of a pruning.
_BETWEEN_TRAININGS = 7_919
_LAST, _ROUNDING, _BETWEEN_STEPS = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model in its final shape, with its structure.

    ranges: activation ranges learned by quantization-aware layers, by module
    batch_seconds: mean seconds of a batch of training, which are not saved
    training: of weights whose training was stopped, how it goes on; None where there is no more
    """

    model: nn.Module
    structure: ModelStructure
    ranges: dict[str, tuple[float, float]]
    batch_seconds: float = 0.0
    training: Training | None = None

    def save(self, folder: Path) -> None:
        torch.save(self.model, folder / _MODEL)
        if self.training is not None:
            torch.save(self.training, folder / TRAINING)
        (folder / _MADE_OF).write_text(json.dumps(to_plain(self.structure)))
        (folder / _RANGES).write_text(json.dumps(self.ranges))

    @staticmethod
    def load(folder: Path) -> Fitted:
        # The cache is written by this program only; a pruned model has no class that could be rebuilt from sizes alone.
        model: nn.Module = torch.load(folder / _MODEL, weights_only=False)
        structure = from_plain(ModelStructure, json.loads((folder / _MADE_OF).read_text()))
        ranges = {name: (low, high) for name, (low, high) in json.loads((folder / _RANGES).read_text()).items()}
        return Fitted(model, structure, ranges)

    @staticmethod
    def load_begun(folder: Path) -> Fitted | None:
        """Load weights whose training goes on; None where they are not there, or how it goes on."""
        try:
            training = torch.load(folder / TRAINING, weights_only=False)
        except FileNotFoundError:
            return None
        return replace(Fitted.load(folder), training=training)


@dataclass(eq=False)
class _Learner:
    """Parts of one fit's training; `seconds` are the mean ones of a batch, for each epoch."""

    recommender: Recommender
    data: TrainingData
    given: Distillation
    seed: int
    progress: Progress
    begun: Training | None
    seconds: list[float] = field(default_factory=list)

    def __call__(self, model: nn.Module, times: int, training: int = _LAST) -> Training | None:
        """Train a model in place for so many epochs, and return how it goes on where it is stopped before.

        Args:
            training: number of the training, which its order of batches depends on

        Raises:
            ValueError: the model's forward or loss fails.
        """
        if times == 0:
            return None
        learning, start = replace(self.given, epochs=times), time.monotonic()
        optimizer = self.recommender.optimizer(model)
        seed = self.seed + _BETWEEN_TRAININGS * training
        how = optimizer, learning, seed, self.recommender.model, self.progress
        try:
            trained = distil(model, self.data, *how, begun=self.begun)
        except Exception as error:  # anything that the user's forward or loss may raise in training
            raise ValueError(f"The model must learn from a batch, but got {located(error)}") from error
        done = len(trained.losses) - (0 if self.begun is None else len(self.begun.losses))
        self.seconds.extend([(time.monotonic() - start) / (done * self.data.rows.batches_per_epoch)] * done)
        return trained if learning.stopped_after and keeps_state(optimizer) else None


def fit(
    recommender: Recommender,
    weights: Weights,
    seed: int,
    progress: Progress,
    cache: Path | None = None,
    weight_bits: Int8WeightBits = 8,
    network: ElasticNetwork | None = None,
    previous: Fitted | None = None,
    begun: Fitted | None = None,
) -> Fitted:
    """Reshape the model, or slice it out of an elastic network, then distil it from the baseline for a cycle.

    The order is that of `objectives.compression.pipeline`.

    Args:
        cache: folder where the baseline's outputs on train are kept between fits; None evaluates the baseline batch by
            batch
        weight_bits: bits of the weights in int8 products, for quantization-aware training
        network: the trained elastic network, where the weights are a slice of one
        previous: the weights that the last of several cycles starts from
        begun: the same weights after the first part of their training, which goes on from there

    Raises:
        ValueError: a stage cannot be done on this model, or would change nothing; the model's forward or loss fails in
        training.
    """
    given = weights.distillation
    assert given is not None and given.trained
    seed += given.seed + _BETWEEN_CYCLES * (given.cycles - 1)
    torch.manual_seed(seed)
    (plain, rounding), training_data = epochs_of(weights), _training_data(recommender, given, cache)
    learn = _Learner(recommender, training_data, given, seed, progress, None if begun is None else begun.training)
    if (found := begun or previous) is not None:
        model, structure = found.model, found.structure
    elif network is not None:
        model, structure = elastic.sliced(recommender, network, weights, seed)
    else:
        evidence, number = partial(_evidence, recommender, seed), itertools.count(_BETWEEN_STEPS)
        model, structure = _reshaped(recommender, weights, evidence, lambda pruned: learn(pruned, 1, next(number)))
    training = learn(model, plain)
    if not weights.quantization_aware:
        return Fitted(model, structure, {}, fmean(learn.seconds or [0.0]), training)
    from objectives.compression.qat import train_aware  # loads torchao, which takes seconds

    modules = [name for group in weights.quantization_aware for name in structure.group(group).modules]
    example = next(training_data.rows.epoch(torch.Generator().manual_seed(seed))).inputs
    wanted = recommender.hidden if given.feature_weight > 0 else None
    train = partial(learn, times=rounding, training=_ROUNDING)
    aware, ranges = train_aware(model, modules, train, example, recommender.method, wanted, weight_bits)
    return Fitted(aware, structure, ranges, fmean(learn.seconds or [0.0]))


def fit_elastic(
    recommender: Recommender, weights: Weights, seed: int, progress: Progress, cache: Path | None = None
) -> ElasticNetwork:
    """Train the elastic network that the weights are a slice of; arguments and errors are those of `fit`."""
    given = weights.distillation
    assert given is not None
    seed += given.seed
    data, evidence = _training_data(recommender, given, cache), _evidence(recommender, seed)
    return elastic.train(recommender, weights, seed, data, evidence, progress)


def untrained(recommender: Recommender, weights: Weights, seed: int) -> Fitted:
    """Reshape the model as `fit` does, and train nothing: what it costs to run does not depend on trained weights.

    Raises:
        ValueError: a technique cannot be applied to this model, or would change nothing.
    """
    torch.manual_seed(seed)
    model, structure = _reshaped(recommender, weights, trained=False)
    return Fitted(model.eval(), structure, {})


def _reshaped(
    recommender: Recommender,
    weights: Weights,
    evidence: Callable[[], Evidence] | None = None,
    between: Callable[[nn.Module], object] | None = None,
    trained: bool = True,
) -> tuple[nn.Module, ModelStructure]:
    start, made_of = _start(recommender, weights, trained)
    counts = recommender.counts(start, made_of.tables) if weights.table_forms else {}
    return reshape(start, made_of, weights.techniques, Means(counts, evidence, between))


def _start(recommender: Recommender, weights: Weights, trained: bool) -> tuple[nn.Module, ModelStructure]:
    """Return the model that fitting starts from, and its structure.

    The structure of students that are not trained is traced once for all students of a program.

    Raises:
        ValueError: a student equals the baseline.
    """
    if weights.architecture is None:
        return copy_model(recommender.model), of_baseline(recommender).structure
    student = _student(recommender, weights.architecture)
    if not trained:
        return student, groups_of_student(recommender, student, weights.architecture)
    return student, of_student(recommender, student, weights.architecture).structure


def _student(recommender: Recommender, architecture: Architecture) -> nn.Module:
    """Return a student before its training; ValueError where it equals the baseline."""
    student = recommender.build(architecture)
    start_from(student, recommender.model)
    if _alike(student, recommender):
        sizes = ", ".join(f"{name} {value}" for name, value in architecture.sizes)
        raise ValueError(f"A student has other sizes than the baseline's, but got {sizes}.")
    return student


def _alike(student: nn.Module, recommender: Recommender) -> bool:
    """Return True if both score alike: equal tensors may be used differently, as by another number of heads."""
    models = (student, recommender.model)
    ours, theirs = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in models)
    if ours != theirs:
        return False
    inputs, _ = next(recommender.train_rows().batches(torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        return torch.equal(*(recommender.scores(recommender.outputs(model.eval(), inputs)) for model in models))


def _training_data(recommender: Recommender, distillation: Distillation, cache: Path | None) -> TrainingData:
    # Where the teacher runs anyway, for its features, its outputs are not cached.
    asked = distillation.teacher_weight > 0 and distillation.feature_weight == 0
    known = kept_scores(recommender, cache) if asked and cache is not None else None
    rows, soft = recommender.train_rows(), partial(soft_loss_of, recommender.output_kinds)
    return TrainingData(
        rows, recommender.loss, soft, recommender.outputs, recommender.hidden, recommender.scores, known
    )


def _evidence(recommender: Recommender, seed: int) -> Evidence:
    drawn = islice(recommender.train_rows().batches(torch.Generator().manual_seed(seed)), _EVIDENCE)
    return Evidence(tuple(drawn), recommender.outputs, recommender.loss)

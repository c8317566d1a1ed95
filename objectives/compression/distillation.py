"""Distillation: a smaller model is trained on the labels and on the baseline's softened outputs and hidden features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives.compression.training_data import TrainingData
from objectives.training_rows import NumberedBatch
from spaces.techniques.distillation import Distillation

_WARM_UP = 0.1
# One cycle allows a higher peak than a constant rate does (Smith and Topin 2018).
_PEAK = 3.0


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the share of the teacher's variance that the student misses.

    It is the squared distance over the teacher's variance, each summed over the features (Romero et al. 2015, eq. 3, in
    these units). In units of each feature's own deviation, a unit of a ReLU that is hardly ever above zero would
    outweigh all others.

    Args:
        student, teacher: (rows, features), the student's already projected to the teacher's size

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"Features are compared row by row, but got {tuple(student.shape)}, {tuple(teacher.shape)}.")
    distance = (student - teacher).square().mean(dim=0).sum()
    variance = teacher.var(dim=0, correction=0).sum()
    return torch.where(variance > 0, distance / torch.where(variance > 0, variance, 1.0), 0.0)


@contextlib.contextmanager
def hidden_outputs(model: nn.Module, name: str) -> Iterator[Callable[[], Tensor]]:
    """Record a submodule's outputs: within the context, the yielded function returns the latest as (rows, features).

    Raises:
        ValueError: the model has no such submodule, or it has given no tensor of two axes or more.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"Features come from a submodule of the model, but got {name!r}: {error}.") from error
    seen: list[object] = []

    def latest() -> Tensor:
        output = seen[-1] if seen else None
        if not isinstance(output, Tensor) or output.ndim < 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"{name!r} must give features of (..., width) in each pass, but got {shape}.")
        return output.flatten(0, -2)

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        seen[:] = [output]

    with module.register_forward_hook(keep):
        yield latest


@dataclass(frozen=True, eq=False)
class Training:
    """A training between two epochs, from which it goes on as if it had not been stopped.

    losses: mean loss of each epoch that is done
    optimizer, schedule: their state dictionaries
    batches, dropout: states of the generators
    """

    losses: tuple[float, ...]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    batches: Tensor
    dropout: Tensor

    def restore(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
    ) -> None:
        """Restore the states, that of the global generator too."""
        optimizer.load_state_dict(dict(self.optimizer))
        schedule.load_state_dict(dict(self.schedule))
        generator.set_state(self.batches)
        torch.set_rng_state(self.dropout)


def distil(
    student: nn.Module,
    training_data: TrainingData,
    optimizer: torch.optim.Optimizer,
    distillation: Distillation,
    seed: int,
    teacher: nn.Module | None = None,
    progress: Callable[[str], None] = lambda line: None,
    begun: Training | None = None,
) -> Training:
    """Train the student in place over one cycle of the learning rate, or over the part of it until it is stopped.

    The loss is (1 - a) loss(z, y) + a soft(z, z_teacher, T) + f feature_loss(P h, h_teacher), where P is learned
    together with the student and discarded. The teacher is run only where its scores or features are needed and not
    known.

    Args:
        optimizer: over the student's parameters; P is added to it as a separate group
        seed: for the order of batches and for dropout; the global generator is left as it was
        begun: an earlier part of the same training, which the student has had

    Returns:
        The training as it stands at its end.

    Raises:
        ValueError: a teacher, or the name of its hidden module, is needed and missing.
    """
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        torch.manual_seed(seed)
        features: Callable[[], Tensor] | None = None
        steps = training_data.rows.batches_per_epoch
        if distillation.feature_weight > 0:
            first = next(training_data.rows.epoch(torch.Generator().manual_seed(seed)))
            features, projection = stack.enter_context(_features(student, teacher, training_data, first))
            optimizer.add_param_group({"params": list(projection.parameters())})
        schedule = one_cycle(optimizer, distillation.epochs * steps)
        generator = torch.Generator().manual_seed(seed)
        losses: list[float] = []
        if begun is not None:
            losses.extend(begun.losses)
            begun.restore(optimizer, schedule, generator)
        student.train()
        for number in range(len(losses) + 1, (distillation.stopped_after or distillation.epochs) + 1):
            total = torch.zeros(())
            for batch in training_data.rows.epoch(generator):
                loss = training_loss(student, batch, training_data, distillation, teacher, features)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.detach()
            losses.append(float(total) / steps)
            progress(f"distilling: epoch {number} of {distillation.epochs}, loss {losses[-1]:.4f}")
        states = generator.get_state(), torch.get_rng_state()
        # The last forward's outputs that a layer keeps cannot be copied while they have a gradient.
        _teach(student, batch, training_data)
    student.eval()
    return Training(tuple(losses), optimizer.state_dict(), schedule.state_dict(), *states)


def training_loss(
    student: nn.Module,
    batch: NumberedBatch,
    training_data: TrainingData,
    distillation: Distillation,
    teacher: nn.Module | None,
    features: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Return the loss of a batch, a scalar: of the labels and, as far as they count, the teacher's scores and features.

    Raises:
        ValueError: a teacher is needed and missing.
    """
    outputs, weight = training_data.outputs(student, batch.inputs), distillation.teacher_weight
    known: Tensor | None = None
    if features is not None or (weight > 0 and training_data.teacher_scores is None):
        known = training_data.scores(_teach(teacher, batch, training_data))
    elif weight > 0 and training_data.teacher_scores is not None:
        known = training_data.teacher_scores(batch)
    # Before the loss, which may change the outputs in place.
    scores = training_data.scores(outputs) if weight > 0 else None
    loss = training_data.loss(outputs, batch.labels)
    if scores is not None:
        assert known is not None
        loss = (1 - weight) * loss + weight * training_data.soft(scores, known, distillation.temperature)
    return loss if features is None else loss + distillation.feature_weight * features()


def _teach(teacher: nn.Module | None, batch: NumberedBatch, training_data: TrainingData) -> object:
    if teacher is None:
        raise ValueError("Outputs or features that are learned need a teacher, or its logits, but got neither.")
    with torch.no_grad():
        return training_data.outputs(teacher.eval(), batch.inputs)


@contextlib.contextmanager
def _features(
    student: nn.Module, teacher: nn.Module | None, training_data: TrainingData, first: NumberedBatch
) -> Iterator[tuple[Callable[[], Tensor], nn.Linear]]:
    """Yield the features' loss of both models' latest outputs, and its projection, initialised to the identity."""
    if teacher is None or training_data.hidden is None:
        raise ValueError(f"Features are those of a teacher's hidden module, but got {teacher}, {training_data.hidden}.")
    with (
        hidden_outputs(student, training_data.hidden) as of_student,
        hidden_outputs(teacher, training_data.hidden) as of_teacher,
    ):
        for model in (student, teacher):
            _teach(model, first, training_data)
        projection = nn.Linear(of_student().shape[1], of_teacher().shape[1])
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
        yield lambda: feature_loss(projection(of_student()), of_teacher()), projection


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a schedule of so many steps with one cycle of the learning rate (Smith and Topin 2018)."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [_PEAK * group["lr"] for group in optimizer.param_groups],
        total_steps=steps + 1,  # the final rate of zero comes after the last step
        pct_start=_WARM_UP if steps * _WARM_UP > 1 else 0.0,  # torch divides by zero where it would be one step
        cycle_momentum=False,
    )

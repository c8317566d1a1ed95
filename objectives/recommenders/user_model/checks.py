"""Mistakes in a user's model or loss that raise no error: each becomes one line, which `leanrec validate` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.model_copy import learning_copy
from objectives.recommenders.user_model.padded_forward import padded_forward
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.training_rows import Inputs, Labels, over_labels

_TOLERANCE = 1e-4
# Rows of a batch that are looked at, and in how many parts.
_ROWS, _PARTS = 64, 8


def model_warnings(recommender: UserRecommender, seed: int) -> tuple[str, ...]:
    """Return probable mistakes in the loss, shown by one batch of train, and in the tables, and slow forms of bags."""
    model = learning_copy(recommender.model).eval()
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = next(recommender.train_rows().batches(generator))
    lines = (
        _not_a_mean(recommender, model, inputs, labels, generator),
        _takes_logits(recommender, model, inputs, labels),
        _reads_own_weights(recommender, model, inputs, labels),
        *_unmarked_padding(model),
        _packed_bags(model),
        _shapes_without_build(recommender),
    )
    return tuple(line for line in lines if line is not None)


def _shapes_without_build(recommender: UserRecommender) -> str | None:
    if recommender.built or not getattr(recommender.given, "shapes", None):
        return None
    return "shapes is not used without build(shape): students are narrower copies of the model"


def _not_a_mean(
    recommender: UserRecommender, model: nn.Module, inputs: Inputs, labels: Labels, generator: torch.Generator
) -> str | None:
    """Compare the loss of some rows with those of equal parts of them, drawn at random."""

    def of(rows: Tensor) -> float:
        picked = {name: values[rows] for name, values in inputs.items()}
        with torch.no_grad():
            outputs = recommender.outputs(model, picked)
            return float(recommender.loss(outputs, over_labels(lambda part: part[rows], labels)))

    count = min(_ROWS, len(next(iter(inputs.values())))) // _PARTS * _PARTS
    if count <= _PARTS:
        return None
    whole = of(torch.arange(count))
    if whole != of(torch.arange(count)):  # a loss that draws something itself tells nothing
        return None
    total = sum(map(of, torch.randperm(count, generator=generator).chunk(_PARTS)))
    if math.isclose(whole, total / _PARTS, rel_tol=_TOLERANCE):
        return None
    if math.isclose(whole, total, rel_tol=_TOLERANCE):
        return "loss adds up over the rows of a batch, but should be their mean: the learning rate depends on it"
    return (
        "loss of a batch is not the mean over its rows: rows are shuffled for training, so lists or pairs of "
        "neighbouring rows do not stay together, and outputs (rows, 1) must not be broadcast against labels (rows,)"
    )


def _takes_logits(recommender: UserRecommender, model: nn.Module, inputs: Inputs, labels: Labels) -> str | None:
    """Compare the loss with that of logits, where the model gives probabilities."""
    if [kind.scale for kind in recommender.output_kinds] != ["probabilities"] or not isinstance(labels, Tensor):
        return None
    with torch.no_grad():
        outputs = recommender.outputs(model, inputs)
        # Before the loss, which may change the outputs in place.
        scores = recommender.scores(outputs).reshape(-1)
        loss = recommender.loss(outputs, labels)
    if labels.numel() != len(scores):
        return None
    of_logits = F.binary_cross_entropy_with_logits(scores, labels.reshape(-1).to(scores.dtype))
    if not math.isclose(float(loss), float(of_logits), rel_tol=_TOLERANCE):
        return None
    return (
        "loss takes the outputs for logits, but they lie between 0 and 1, as probabilities do: use "
        "binary_cross_entropy, or let the model return logits"
    )


def _reads_own_weights(recommender: UserRecommender, model: nn.Module, inputs: Inputs, labels: Labels) -> str | None:
    """Look for gradients of the baseline's weights in the loss of a copy."""
    own = [parameter for parameter in recommender.model.parameters() if parameter.requires_grad]
    loss = recommender.loss(recommender.outputs(model, inputs), labels)
    if not own or all(found is None for found in torch.autograd.grad(loss, own, allow_unused=True)):
        return None
    return (
        "loss reads the weights of the factory's model, but a copy or a sibling is what is trained: regularisation "
        "belongs in the optimizer (weight_decay)"
    )


def _unmarked_padding(model: nn.Module) -> Iterator[str]:
    """Find tables in which one row alone is zero, and free to change in training."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is None:
            zero = (~module.weight.detach().any(dim=1)).nonzero().flatten().tolist()
            if len(zero) == 1:
                yield (
                    f"row {zero[0]} of {name} is zero, but the table has no padding_idx, so that training changes the "
                    f"row: set padding_idx={zero[0]} where it is padding"
                )


def _packed_bags(model: nn.Module) -> str | None:
    """Report bags that are not read by `F.embedding_bag` as the inputs give them."""
    forward = padded_forward(model)
    if forward is None or forward.masked:
        return None
    return (
        f"{', '.join(name for one in forward.bags for name in one.names)} are not given to embedding_bag as they are, "
        "or with ids changed one by one: the exported graph computes flat ids and offsets itself, which takes longer"
    )

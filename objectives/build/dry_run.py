"""Facts of a baseline that only a dry run looks for: mistakes that raise no error, and forms that are not available."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from objectives.compression.distillation import hidden_outputs
from objectives.compression.graph_passes.split_embeddings import split_embeddings
from objectives.errors import one_line
from objectives.held_out_rows import HeldOut, HeldPart
from objectives.onnx_graph import load_graph
from objectives.recommenders.protocol import Facts, Recommender
from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.factory import FactoryError
from objectives.recommenders.user_model.recommender import UserRecommender
from spaces.serialization import Json, to_plain


def dry_facts(recommender: Recommender, seed: int, held: Mapping[HeldPart, HeldOut]) -> Json:
    """Return the number of rows that are scored in each part and of batches in a whole epoch of train, and what is
    probably not meant in a user's model or loss.

    Raises:
        FactoryError: the outputs of the hidden module are no features.
    """
    _check_hidden(recommender, seed)
    rows: dict[str, int] = {p: len(of.labels) * (1 if of.items is None else len(of.items)) for p, of in held.items()}
    warnings = model_warnings(recommender, seed) if isinstance(recommender, UserRecommender) else ()
    batches = replace(recommender.train_rows(), most_batches=None).batches_per_epoch
    return {**to_plain(Facts("", rows, 0, {}, "", {})), "warnings": warnings, "batches_per_epoch": batches}


def split_refused(model: Path) -> str | None:
    """Return the reason why the graph cannot be split behind its tables, None where it can."""
    try:
        split_embeddings(load_graph(model))
    except Exception as error:  # any failure excludes this form only
        return one_line(error)
    return None


def _check_hidden(recommender: Recommender, seed: int) -> None:
    if recommender.hidden is None:
        return
    inputs, _ = next(iter(recommender.train_rows().batches(torch.Generator().manual_seed(seed))))
    try:
        with torch.no_grad(), hidden_outputs(recommender.model, recommender.hidden) as latest:
            recommender.outputs(recommender.model.eval(), inputs)
            latest()
    except ValueError as error:
        raise FactoryError(f"hidden: {error}") from error

"""The builder's jobs by their arguments, with the threads that torch has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from objectives.build.stages import prepare as prepare_stage
from objectives.build.stages import weights as weights_stage
from objectives.build.stages.graphs import export_graph
from objectives.build.stages.opened import open_once
from objectives.jobs.protocol import Progress
from objectives.jobs.requests import FitRequest, FitResponse, PrepareRequest
from objectives.records import Artifact, Prepared
from objectives.task import Task
from spaces.techniques.placement import EmbeddingDevice, Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights


@dataclass(frozen=True)
class Form:
    """Form of the graph that a placement needs.

    user_once: the user's side is computed once a request
    split_embeddings: the graph is split into an embedding stage and a dense stage for two engines
    score_catalogue: a whole table is multiplied, and the products are looked up
    """

    user_once: bool = False
    split_embeddings: bool = False
    score_catalogue: bool = False

    @classmethod
    def of(cls, placement: Placement) -> Form:
        return cls(placement.user_once, placement.embedding_device is not None, placement.score_catalogue)


def prepare(task: Task, progress: Progress) -> Prepared:
    return prepare_stage.prepare(PrepareRequest(task, torch.get_num_threads()), progress)


def fit(task: Task, weights: Weights, progress: Progress) -> FitResponse:
    return weights_stage.fit(FitRequest(task, weights, torch.get_num_threads()), progress)


def export(task: Task, weights: Weights, precision: Precision, form: Form, progress: Progress) -> tuple[Artifact, bool]:
    """Return the artifact in any form, and True if the cache had it."""
    lookup = EmbeddingDevice("onnxruntime") if form.split_embeddings else None
    placement = Placement(embedding_device=lookup, user_once=form.user_once, score_catalogue=form.score_catalogue)
    found = export_graph(task, open_once(task, progress), weights, precision, placement)
    return found.artifact, found.reused

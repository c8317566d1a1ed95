"""Result of a dry run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from objectives.records import InputSpec, Tried
from spaces.model_structure import ModelStructure

MODEL = "model.onnx"


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    left_alone: modules with parameters that are in no group, each with the reason
    tried: each technique on each part of the model, with the reason where it cannot be applied
    forms: forms of the whole graph by name, each with the reason why it is not available, None where it is
    folder: folder of the exported baseline and the requests
    parts: names of the slices and of the other outputs whose loss is reported in addition to that of all rows
    parity: largest difference of the exported baseline's scores, in standard deviations of the model's scores
    seconds: by stage; `step` is one batch of fine-tuning
    batches: batches per epoch of train
    held_rows: rows that are scored to evaluate a candidate on validation
    inputs: inputs of the model
    warnings: what is probably not meant in a user's model or loss
    """

    structure: ModelStructure
    left_alone: Mapping[str, str]
    tried: tuple[Tried, ...]
    forms: Mapping[str, str | None]
    folder: str
    parts: tuple[str, ...]
    parity: float
    model_bytes: int
    seconds: Mapping[str, float]
    batches: int
    held_rows: int
    inputs: tuple[InputSpec, ...] = ()
    warnings: tuple[str, ...] = ()

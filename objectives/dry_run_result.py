"""What came of a rehearsal. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from objectives.records import InputSpec
from objectives.technique_results import Tried
from spaces.model_structure import ModelStructure

MODEL = "model.onnx"


@dataclass(frozen=True)
class DryRun:
    """What came of it.

    left_alone: modules with parameters that are in no group, each with the reason
    forms: of the whole graph, why each cannot be had, None where it can
    folder: where the exported baseline and the requests lie
    parts: names of the slices and of the other outputs whose loss is told beside that of all rows
    parity: of the exported baseline, in standard deviations of the model's scores
    seconds: by stage; `step` is one batch of fine-tuning
    batches: in a pass over train
    held_rows: rows that are scored to evaluate a candidate on validation
    inputs: those of the model
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

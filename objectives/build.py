"""Fit and export: how a choice becomes a model file. Run as a builder process: `python -m objectives.build`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.compression.cut import cut_at_tables
from objectives.compression.distillation import distil, predict
from objectives.compression.export import ONCE_LIMIT, Rows, check_parity, largest_difference, to_onnx
from objectives.compression.graph import multiply_adds
from objectives.compression.precision import quantise, read_widths
from objectives.compression.pruning import prune
from objectives.compression.user_once import UserOnceError, compute_once
from objectives.jobs import serve
from objectives.recommenders.builtin import DCNV2Recommender, open_builtin
from objectives.recommenders.protocol import Batch, Part
from objectives.recommenders.references import logistic_regression_scores, popularity_scores
from objectives.record import Artifact, InputSpec, Prepared
from objectives.serving.staged import DENSE, TABLES
from objectives.store import make_once
from objectives.task import Task
from spaces.candidate import Weights
from spaces.canonical import digest, from_plain, to_plain
from spaces.precision import Precision

Progress = Callable[[str], None]
# Raised when a stage changes what it makes, so that nothing older is found in the cache.
FIT_STAGE = 1
EXPORT_STAGE = 2
CALIBRATION_ROWS = 2048
MODEL = "model.onnx"


@dataclass(frozen=True)
class Form:
    """What a placement asks of the graph: the user's side once a request; its two halves for two engines."""

    user_once: bool = False
    cut: bool = False


def prepare(task: Task, progress: Progress) -> Prepared:
    """Train the baseline, export it, and write the held-out rows and the requests as plain arrays."""
    recommender = _open(task, progress)
    holdout = task.cache / "holdouts" / digest(recommender.key, task.key())[:20]

    def write(into: Path) -> None:
        progress("baseline: judging it beside popularity and logistic regression")
        for part in ("validation", "test"):
            inputs, labels, groups = _rows(recommender, part)
            arrays: dict[str, Any] = {f"input.{name}": values.numpy() for name, values in inputs.items()}
            np.savez(into / f"{part}.npz", labels=labels.numpy(), groups=groups.numpy(), **arrays)
        requests = list(recommender.requests(task.seed))
        offsets = np.cumsum([0, *(len(next(iter(r.values()))) for r in requests)])
        joined: dict[str, Any] = {f"input.{name}": np.concatenate([r[name] for r in requests]) for name in requests[0]}
        np.savez(into / "requests.npz", offsets=offsets, **joined)
        (into / "references.json").write_text(json.dumps(_references(recommender)))

    make_once(holdout, write)
    progress("baseline: exporting it")
    artifact, _ = _export(task, recommender, Weights(), Precision(), Form())
    refused, share = _user_once(recommender, Path(task.home) / artifact.path)
    dataset = recommender.dataset
    return Prepared(
        key=recommender.key,
        holdout=str(holdout),
        anatomy=recommender.anatomy(),
        student=recommender.student(),
        inputs=tuple(
            InputSpec(f.name, "int64", (), f.vocabulary, "item" if f.side == "item" else "user") for f in dataset.fields
        ),
        baseline=artifact,
        split=dataset.split.reason,
        rows={p: len(getattr(dataset.split, p)) for p in ("train", "validation", "test")},
        users=len(np.unique(dataset.group)),
        training=recommender.training,
        references=json.loads((holdout / "references.json").read_text()),
        user_once_refused=refused,
        user_once_share=share,
    )


def fit(task: Task, weights: Weights, progress: Progress) -> bool:
    """Shape or prune, then distil; True when the cache had it. The baseline's own weights need no fitting."""
    if weights.distillation is None:
        return True
    recommender = _open(task, progress)
    return make_once(_weights_folder(task, recommender, weights), lambda into: _fit(recommender, task, weights, into))


def export(task: Task, weights: Weights, precision: Precision, form: Form, progress: Progress) -> tuple[Artifact, bool]:
    """One ONNX graph in the asked widths and form, checked against the model; and whether the cache had it."""
    return _export(task, _open(task, progress), weights, precision, form)


def _fit(recommender: DCNV2Recommender, task: Task, weights: Weights, into: Path) -> None:
    assert weights.distillation is not None
    torch.manual_seed(task.seed)
    inputs, labels, _ = _rows(recommender, "train")
    if weights.architecture is not None:
        student = recommender.build(weights.architecture)
    else:
        assert weights.pruning is not None
        example = {name: values[:2] for name, values in inputs.items()}
        student = prune(recommender.model, weights.pruning, recommender.anatomy(), example)
    teacher = _teacher_scores(task)
    optimizer = recommender.optimizer(student)
    distil(student, teacher, inputs, labels, recommender.loss, optimizer, weights.distillation, task.seed)
    torch.save(student, into / "model.pt")


def _export(
    task: Task, recommender: DCNV2Recommender, weights: Weights, precision: Precision, form: Form
) -> tuple[Artifact, bool]:
    stored = Precision(precision.widths)  # what an engine computes in changes no file
    key = digest(_weights_key(recommender, weights), stored, form, EXPORT_STAGE, onnx.__version__, torch.__version__)
    folder = task.cache / "artifacts" / key[:20]
    anatomy = recommender.anatomy()

    def write(into: Path) -> None:
        rows = {name: values[:CALIBRATION_ROWS] for name, values in _rows(recommender, "train")[0].items()}
        if form == Form() and all(width == "fp32" for _, width in stored.widths):
            model = _model(task, recommender, weights)
            graph = to_onnx(model, rows)
            parity = check_parity(model, graph, rows)
        else:
            plain, _ = _export(task, recommender, weights, Precision(), Form())
            arrays = {name: values.numpy() for name, values in rows.items()}
            graph, parity = _narrowed(onnx.load(str(Path(task.home) / plain.path)), stored, form, recommender, arrays)
        onnx.save(graph, str(into / MODEL))
        size = (into / MODEL).stat().st_size
        if form.cut:
            size = _write_cut(graph, into)
        facts = {"widths": read_widths(graph, anatomy), "parity": parity, "model_bytes": size}
        (into / "facts.json").write_text(json.dumps(facts))

    reused = make_once(folder, write)
    facts = json.loads((folder / "facts.json").read_text())
    path = str((folder / MODEL).relative_to(task.home))
    return Artifact(key[:20], path, facts["widths"], facts["model_bytes"], facts["parity"]), reused


def _narrowed(
    source: onnx.ModelProto, stored: Precision, form: Form, recommender: DCNV2Recommender, rows: Rows
) -> tuple[onnx.ModelProto, float]:
    """The graph in its form and widths, and the largest difference of its scores from the source's.

    Raises:
        ParityError: computing the user's side once changed the scores.
    """
    graph = source
    if form.user_once:
        graph = compute_once(source, _user_inputs(recommender))
        largest_difference(graph, source, rows, ONCE_LIMIT)
    if any(width != "fp32" for _, width in stored.widths):
        graph = quantise(graph, stored, recommender.anatomy(), rows)
    return graph, largest_difference(graph, source, rows)


def _write_cut(graph: onnx.ModelProto, into: Path) -> int:
    """The two halves of a graph beside it; their bytes in all."""
    for part, name in zip(cut_at_tables(graph), (TABLES, DENSE), strict=True):
        onnx.save(part, str(into / name))
    return sum((into / name).stat().st_size for name in (TABLES, DENSE))


def _user_inputs(recommender: DCNV2Recommender) -> frozenset[str]:
    return frozenset(field.name for field in recommender.dataset.fields if field.side != "item")


def _user_once(recommender: DCNV2Recommender, model: Path) -> tuple[str | None, float | None]:
    """Why the user's side cannot be computed once a request, or the share of multiply-adds that is left then."""
    graph, rows = onnx.load(str(model)), recommender.task.rows_median
    try:
        once = compute_once(graph, _user_inputs(recommender))
    except UserOnceError as error:
        return str(error), None
    return None, multiply_adds(once, rows) / multiply_adds(graph, rows)


def _model(task: Task, recommender: DCNV2Recommender, weights: Weights) -> nn.Module:
    if weights.distillation is None:
        return recommender.model
    # Our own cache, written by `_fit`: a pruned model has no class that could be rebuilt from sizes alone.
    path = _weights_folder(task, recommender, weights) / "model.pt"
    model: nn.Module = torch.load(path, weights_only=False)
    return model


def _weights_key(recommender: DCNV2Recommender, weights: Weights) -> str:
    return digest(recommender.key, weights, FIT_STAGE)[:20]


def _weights_folder(task: Task, recommender: DCNV2Recommender, weights: Weights) -> Path:
    return task.cache / "weights" / _weights_key(recommender, weights)


def _rows(recommender: DCNV2Recommender, part: Part) -> Batch:
    inputs, labels, groups = zip(*recommender.batches(part), strict=True)
    joined = {name: torch.cat([batch[name] for batch in inputs]) for name in inputs[0]}
    return joined, torch.cat(labels), torch.cat(groups)


def _references(recommender: DCNV2Recommender) -> dict[str, float]:
    inputs, labels, _ = _rows(recommender, "test")
    dataset = recommender.dataset
    scores = {
        "baseline": predict(recommender.model, inputs).numpy(),
        "popularity": popularity_scores(dataset, "test"),
        "logistic_regression": logistic_regression_scores(dataset, "test", recommender.task.seed),
    }
    aucs = {name: float(roc_auc_score(labels.numpy(), values)) for name, values in scores.items()}
    return aucs | ({} if dataset.bayes_auc is None else {"bayes_optimal": dataset.bayes_auc})


# One builder serves one study, so one recommender and one set of teacher scores stay in memory.
_opened: dict[str, DCNV2Recommender] = {}


def _open(task: Task, progress: Progress) -> DCNV2Recommender:
    key = digest(task)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_builtin(task, progress)
    return _opened[key]


@lru_cache(maxsize=1)
def _teacher_of(key: str) -> Tensor:
    recommender = _opened[key]
    return predict(recommender.model, _rows(recommender, "train")[0])


def _teacher_scores(task: Task) -> Tensor:
    return _teacher_of(digest(task))


def _main() -> None:
    def prepare_job(progress: Progress, task: Any, threads: int) -> Any:
        torch.set_num_threads(threads)
        return to_plain(prepare(from_plain(Task, task), progress))

    def fit_job(progress: Progress, task: Any, weights: Any, threads: int) -> Any:
        torch.set_num_threads(threads)
        return {"reused": fit(from_plain(Task, task), from_plain(Weights, weights), progress)}

    def export_job(
        progress: Progress, task: Any, weights: Any, precision: Any, threads: int, user_once: bool, cut: bool
    ) -> Any:
        torch.set_num_threads(threads)
        artifact, reused = export(
            from_plain(Task, task),
            from_plain(Weights, weights),
            from_plain(Precision, precision),
            Form(user_once, cut),
            progress,
        )
        return {"artifact": to_plain(artifact), "reused": reused}

    serve({"prepare": prepare_job, "fit": fit_job, "export": export_job})


if __name__ == "__main__":
    _main()

"""The builder process: trains, exports and dry-runs models. Run as `python -m objectives.build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from objectives.build.custom_metric import evaluate_custom_metric
from objectives.build.dry_run import dry_run
from objectives.build.stages import Form, Progress, export, fit, open_once, prepare, signature_of
from objectives.jobs import serve
from objectives.recommenders.load import open_recommender
from objectives.task import Task
from spaces.serialization import from_plain, to_plain
from spaces.techniques.quantization import Precision
from spaces.weights import Weights


def _main() -> None:
    def prepare_job(progress: Progress, task: Any, threads: int) -> Any:
        torch.set_num_threads(threads)
        return to_plain(prepare(from_plain(Task, task), progress))

    def dry_run_job(progress: Progress, task: Any, threads: int) -> Any:
        torch.set_num_threads(threads)
        of = from_plain(Task, task)
        recommender = open_recommender(of, progress, train=False)
        folder = of.cache / "rehearsals" / recommender.key
        return to_plain(dry_run(recommender, signature_of(recommender), folder, of.seed, progress, of.int8_weight_bits))

    def fit_job(progress: Progress, task: Any, weights: Any, threads: int) -> Any:
        torch.set_num_threads(threads)
        return {"reused": fit(from_plain(Task, task), from_plain(Weights, weights), progress)}

    def export_job(
        progress: Progress,
        task: Any,
        weights: Any,
        precision: Any,
        threads: int,
        user_once: bool,
        split_embeddings: bool,
    ) -> Any:
        torch.set_num_threads(threads)
        artifact, reused = export(
            from_plain(Task, task),
            from_plain(Weights, weights),
            from_plain(Precision, precision),
            Form(user_once, split_embeddings),
            progress,
        )
        return {"artifact": to_plain(artifact), "reused": reused}

    def custom_metric_job(progress: Progress, task: Any, threads: int, holdout: str, **options: Any) -> Any:
        torch.set_num_threads(threads)
        recommender = open_once(from_plain(Task, task), progress)
        return {"quality": to_plain(evaluate_custom_metric(recommender, Path(holdout), **options))}

    serve(
        {
            "dry_run": dry_run_job,
            "prepare": prepare_job,
            "fit": fit_job,
            "export": export_job,
            "custom_metric": custom_metric_job,
        }
    )


if __name__ == "__main__":
    _main()

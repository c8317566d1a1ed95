"""The data of a study as MLflow shows it in the column of data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import Schema, TensorSpec

from objectives.records import Prepared

# As many as a column of MLflow has room for.
_DIGEST_DIGITS = 12
_CONTEXT = "mlflow.data.context"


def data_set(settings: Mapping[str, object], prepared: Prepared) -> DatasetInput:
    """Return the data set of a study's settings: its source, the split's rows, and the model's inputs as its schema.

    Its digest is that of model, data and requests together.
    """
    recommender, data = str(settings["recommender"]), settings.get("data")
    source = str(data["source"]) if isinstance(data, Mapping) else recommender
    specs = [
        TensorSpec(np.dtype(spec.dtype), (-1, *(-1 if size is None else size for size in spec.shape)), spec.name)
        for spec in prepared.inputs
    ]
    return DatasetInput(
        Dataset(
            name=source,
            digest=prepared.key[:_DIGEST_DIGITS],
            source_type="leanrec",
            source=json.dumps({"source": source, "recommender": recommender, "split": prepared.split}),
            schema=json.dumps(
                {"mlflow_tensorspec": {"features": json.loads(Schema(specs).to_json()), "targets": None}}
            ),
            profile=json.dumps(
                {**{f"{part}_rows": rows for part, rows in prepared.rows.items()}, "users": prepared.users}
            ),
        ),
        tags=[InputTag(_CONTEXT, "search")],
    )

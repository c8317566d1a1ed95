"""A small shop whose factory loads the checkpoint that it is told of; copied to a folder of its own.

As a script it writes a checkpoint: `python shop.py FILE KIND SEED`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

USERS, ITEMS, ROWS = 200, 300, 12_000
HERE = Path(__file__).parent


class Ranker(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 16), nn.Embedding(ITEMS, 16)
        self.tower = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.score = nn.Linear(width, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        pair = torch.cat([self.user(user) * self.item(item), self.item(item)], dim=1)
        return self.score(self.tower(pair)).squeeze(1)


class Shop:
    name, metric, loss = "shop", "auc", nn.BCEWithLogitsLoss()

    def __init__(self) -> None:
        self.data = clicks()
        self.model = Ranker()
        file = os.environ.get("LEANREC_CHECKPOINT", str(HERE / "first.pt"))
        self.model.load_state_dict(torch.load(file, weights_only=True))

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        user, item, clicked = self.data[split]
        for start in range(0, len(user), 512):
            rows = slice(start, start + 512)
            yield {"user": user[rows], "item": item[rows]}, clicked[rows], user[rows]

    def requests(self, seed: int) -> Iterator[dict[str, np.ndarray]]:
        random = np.random.default_rng(seed)
        for _ in range(100):
            rows = int(random.integers(20, 60))
            user, item = np.full(rows, random.integers(USERS)), random.integers(ITEMS, size=rows)
            yield {"user": user, "item": item}


def factory() -> Shop:
    return Shop()


def clicks() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    random = np.random.default_rng(0)
    user, item = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
    taste = 1.5 * (random.normal(size=(USERS, 2))[user] * random.normal(size=(ITEMS, 2))[item]).sum(1)
    liked = taste + 1.5 * random.normal(size=ITEMS)[item]
    clicked = (random.random(ROWS) < 1 / (1 + np.exp(-liked))).astype(np.float32)
    ends = {"train": (0, 8000), "validation": (8000, 10_000), "test": (10_000, ROWS)}
    columns = [torch.from_numpy(values) for values in (user, item, clicked)]
    return {split: tuple(values[a:b] for values in columns) for split, (a, b) in ends.items()}  # type: ignore[misc]


def trained(seed: int) -> Ranker:
    """Retrain the model from another seed."""
    torch.manual_seed(seed)
    model = Ranker()
    user, item, clicked = clicks()["train"]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(3):
        for pick in torch.randperm(len(user)).split(256):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(user[pick], item[pick]), clicked[pick]).backward()
            optimizer.step()
    return model


def write(file: Path, kind: str, seed: int) -> None:
    """Write a checkpoint: retrained, shuffled, nan, shapes, truncated."""
    model = Ranker(width=32) if kind == "shapes" else trained(seed)
    with torch.no_grad():
        for values in model.parameters():
            if kind == "shuffled":
                values.copy_(values.flatten()[torch.randperm(values.numel())].reshape(values.shape))
            if kind == "nan":
                values.view(-1)[0] = torch.nan
    partial = file.with_name(f"{file.name}.tmp")
    torch.save(model.state_dict(), partial)
    if kind == "truncated":
        partial.write_bytes(partial.read_bytes()[:-1000])
    partial.replace(file)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

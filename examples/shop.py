"""A trained model of one's own, as a factory gives it to leanrec. Run from this folder: `leanrec run shop.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

USERS, ITEMS, SHOPS, ROWS = 300, 500, 40, 20_000


class Ranker(nn.Module):
    """Embeddings, a gate, a tower: nothing that leanrec has seen before."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.user, self.item, self.shop = nn.Embedding(USERS, 16), nn.Embedding(ITEMS, 16), nn.Embedding(SHOPS, 16)
        self.gate = nn.Linear(49, 49)
        self.tower = nn.Sequential(nn.Linear(49, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.score = nn.Linear(width, 1)

    def forward(self, user: Tensor, item: Tensor, shop: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.user(user), self.item(item), self.shop(shop), price.unsqueeze(1)], dim=1)
        return self.score(self.tower(x * torch.sigmoid(self.gate(x)))).squeeze(1)


class Shop:
    name, metric = "shop", "auc"

    def __init__(self, seed: int = 0) -> None:
        self.data = clicks()
        self.model = checkpoint(self.data["train"], f"seed-{seed}", seed)
        self.shapes = {"width": [16, 32, 64, 128, 256]}

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        inputs, labels = self.data[split]
        for start in range(0, len(labels), 256):
            rows = slice(start, start + 256)
            yield {name: values[rows] for name, values in inputs.items()}, labels[rows], inputs["user"][rows]

    def requests(self, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """One user and some hundred items, as production sends them."""
        random = np.random.default_rng(seed)
        inputs, _ = self.data["test"]
        for _ in range(300):
            rows = random.integers(len(inputs["user"]), size=int(random.lognormal(5.3, 0.5)))
            request = {name: values[rows].numpy() for name, values in inputs.items()}
            yield request | {"user": np.repeat(request["user"][:1], len(rows))}

    def build(self, shape: dict[str, int]) -> nn.Module:
        """A smaller sibling: without this the width of the tower would not be searched."""
        return Ranker(**shape)


def clicks() -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Draw clicks; yours come from your own log."""
    random = np.random.default_rng(0)
    user, item = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
    shop, price = item % SHOPS, random.lognormal(0, 1, ITEMS)[item]
    taste = (random.normal(size=(USERS, 4))[user] * random.normal(size=(ITEMS, 4))[item]).sum(1)
    clicked = random.random(ROWS) < 1 / (1 + np.exp(-taste - random.normal(size=SHOPS)[shop] + 0.3 * price))
    inputs = {"user": user, "item": item, "shop": shop, "price": price.astype(np.float32)}
    ends = {"train": (0, 16_000), "validation": (16_000, 18_000), "test": (18_000, ROWS)}
    return {
        split: (
            {name: torch.from_numpy(values[a:b]) for name, values in inputs.items()},
            torch.from_numpy(clicked[a:b].astype(np.float32)),
        )
        for split, (a, b) in ends.items()
    }


def checkpoint(rows: tuple[dict[str, Tensor], Tensor], name: str, seed: int) -> Ranker:
    """Load a checkpoint; yours is there already, and this one is trained here in seconds, once."""
    model, path = Ranker(), Path(__file__).with_name(f"shop-{name}.pt")
    if not path.exists():
        torch.save(trained(rows, seed).state_dict(), path)
    model.load_state_dict(torch.load(path))
    return model


def trained(rows: tuple[dict[str, Tensor], Tensor], seed: int) -> Ranker:
    torch.manual_seed(seed)
    model, (inputs, labels) = Ranker(), rows
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-5)
    for _ in range(4):
        for pick in torch.randperm(len(labels)).split(512):
            optimizer.zero_grad()
            scores = model(**{name: values[pick] for name, values in inputs.items()})
            nn.functional.binary_cross_entropy_with_logits(scores, labels[pick]).backward()
            optimizer.step()
    return model


def factory() -> Shop:
    return Shop()

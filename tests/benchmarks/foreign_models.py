"""Recommenders whose classes come from other packages, as factories: trained on clicks drawn here.

torch-rechub's DIN, DeepCTR-Torch's AutoInt, rtdl's FT-Transformer, an encoder of Hugging Face's transformers over a
history, RecBole's recurrent GRU4Rec, and FuxiCTR's FinalMLP. Each adapter says in a few lines how named tensors reach
the package's model, as a user's would. No package on PyPI has MaskNet, so it is written here after its paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

USERS, ITEMS, KINDS, LENGTH, ROWS = 400, 800, 30, 20, 36_000
# As many held-out rows as a loss of 1% takes to be seen.
_ENDS = {"train": (0, 18_000), "validation": (18_000, 27_000), "test": (27_000, ROWS)}


def clicks() -> dict[str, np.ndarray[Any, Any]]:
    """Draw users with tastes and items of kinds; a history holds what a user likes, codes from 1, 0 as padding."""
    random = np.random.default_rng(0)
    taste, look = random.normal(size=(USERS, 6)), random.normal(size=(ITEMS, 6))
    kind = random.integers(KINDS, size=ITEMS)
    liked = np.argsort(-(taste @ look.T) + random.gumbel(size=(USERS, ITEMS)), axis=1)[:, :LENGTH] + 1
    liked[:, : LENGTH // 4] *= random.random((USERS, 1)) < 0.5
    user, item = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
    logit = 0.8 * (taste[user] * look[item]).sum(1) + random.normal(size=KINDS)[kind[item]]
    price = random.lognormal(size=ITEMS).astype(np.float32)[item]
    clicked = (random.random(ROWS) < 1 / (1 + np.exp(-logit + 0.2 * price))).astype(np.float32)
    return {
        "user": user,
        "item": item + 1,
        "kind": kind[item],
        "price": price,
        "history": liked[user],
        "clicked": clicked,
    }


class Shop:
    """One model on those clicks; `takes` are the columns that its forward reads."""

    metric = "auc"

    def __init__(self, name: str, model: nn.Module, takes: tuple[str, ...], probabilities: bool, epochs: int) -> None:
        self.name, self.takes, self.probabilities = name, takes, probabilities
        self.columns = {n: torch.from_numpy(values) for n, values in clicks().items()}
        self.model = self._checkpoint(model, epochs)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.probabilities:
            return F.binary_cross_entropy(outputs.reshape(-1).clamp(1e-7, 1 - 1e-7), labels)
        return F.binary_cross_entropy_with_logits(outputs.reshape(-1), labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        start, end = _ENDS[split]
        for at in range(start, end, 500):
            rows = slice(at, min(at + 500, end))
            yield self._inputs(rows), self.columns["clicked"][rows], self.columns["user"][rows]

    def requests(self, seed: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Yield requests of one user and some hundred items."""
        random = np.random.default_rng(seed)
        for _ in range(200):
            size = int(np.clip(random.lognormal(4.6, 0.5), 1, 600))
            rows = torch.from_numpy(random.integers(*_ENDS["test"], size=size))
            request = {name: values.numpy() for name, values in self._inputs(rows).items()}
            for name in {"user", "history"} & set(request):
                request[name] = np.repeat(request[name][:1], size, axis=0)
            yield request

    def _inputs(self, rows: Any) -> dict[str, Tensor]:
        return {name: self.columns[name][rows] for name in self.takes}

    def _checkpoint(self, model: nn.Module, epochs: int) -> nn.Module:
        """Train on the first call alone: every process has to load the same weights."""
        path = Path(f"{self.name}.pt")
        if not path.exists():
            torch.save(self._trained(model, epochs).state_dict(), path)
        model.load_state_dict(torch.load(path))
        return model.eval()

    def _trained(self, model: nn.Module, epochs: int) -> nn.Module:
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-5)
        for number in range(epochs):
            order = torch.randperm(_ENDS["train"][1], generator=torch.Generator().manual_seed(number))
            model.train()
            for rows in torch.split(order, 512):
                optimizer.zero_grad()
                loss = self.loss(model(**self._inputs(rows)), self.columns["clicked"][rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return model.eval()


class ByName(nn.Module):
    """A model that takes a mapping of columns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, user: Tensor, item: Tensor, kind: Tensor, price: Tensor, history: Tensor) -> Tensor:
        columns = {"user": user, "item": item, "kind": kind, "price": price, "history": history}
        return self.net(columns)  # type: ignore[no-any-return]


def din() -> Shop:
    """DIN of torch-rechub."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIN

    torch.manual_seed(0)
    features = [SparseFeature("user", USERS, 16), SparseFeature("kind", KINDS, 16), DenseFeature("price")]
    target = [SparseFeature("item", ITEMS + 1, 16)]
    history = [SequenceFeature("history", ITEMS + 1, 16, pooling="concat", shared_with="item")]
    model = DIN(
        features[:2], history, target, {"dims": [256, 128]}, {"dims": [64, 32], "activation": "dice"}
    )  # fmt: skip
    return Shop("din", ByName(model), ("user", "item", "kind", "price", "history"), probabilities=True, epochs=4)


class Columns(nn.Module):
    """A model that takes all columns as one matrix."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, user: Tensor, item: Tensor, kind: Tensor, price: Tensor) -> Tensor:
        matrix = torch.stack([user.float(), item.float(), kind.float(), price], dim=1)
        return self.net(matrix)  # type: ignore[no-any-return]


def autoint() -> Shop:
    """AutoInt of DeepCTR-Torch."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import AutoInt

    columns = [
        SparseFeat("user", USERS, 16),
        SparseFeat("item", ITEMS + 1, 16),
        SparseFeat("kind", KINDS, 16),
        DenseFeat("price", 1),
    ]
    model = AutoInt(columns, columns, dnn_hidden_units=(256, 128), init_std=0.05, device="cpu")
    return Shop("autoint", Columns(model), ("user", "item", "kind", "price"), probabilities=True, epochs=4)


class Tabular(nn.Module):
    """A model that takes numbers and codes apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, user: Tensor, item: Tensor, kind: Tensor, price: Tensor) -> Tensor:
        return self.net(price.unsqueeze(1), torch.stack([user, item, kind], dim=1)).squeeze(1)  # type: ignore[no-any-return]


def ft_transformer() -> Shop:
    """FT-Transformer of rtdl-revisiting-models."""
    from rtdl_revisiting_models import FTTransformer

    torch.manual_seed(0)
    model = FTTransformer(
        n_cont_features=1,
        cat_cardinalities=[USERS, ITEMS + 1, KINDS],
        d_out=1,
        n_blocks=2,
        d_block=64,
        attention_n_heads=4,
        attention_dropout=0.1,
        ffn_d_hidden_multiplier=4 / 3,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    )
    return Shop("ft-transformer", Tabular(model), ("user", "item", "kind", "price"), probabilities=False, epochs=3)


class Encoder(nn.Module):
    """A history through an encoder of transformers, and the product of what it ends with and an item's embedding."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=ITEMS + 1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.kind = nn.Embedding(KINDS, 64)
        self.tower = nn.Sequential(nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, item: Tensor, kind: Tensor, history: Tensor) -> Tensor:
        state = self.encoder(input_ids=history).last_hidden_state.mean(1)
        candidate = self.encoder.embeddings.word_embeddings(item)
        return self.tower(torch.cat([state, candidate, self.kind(kind)], 1)).squeeze(1)  # type: ignore[no-any-return]


def bert() -> Shop:
    """BERT of Hugging Face's transformers."""
    torch.manual_seed(0)
    return Shop("bert", Encoder(), ("item", "kind", "history"), probabilities=False, epochs=2)


class Sourced(nn.Module):
    """A model that takes the columns of a row, its items one below the other, and which of its history there are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, user: Tensor, item: Tensor, kind: Tensor, price: Tensor, history: Tensor) -> Tensor:
        row = {"user": user, "kind": kind, "price": price}
        items = torch.cat([history, item[:, None]], dim=1).reshape(-1)
        return self.net((row, {"item": items}, history > 0))["y_pred"].squeeze(1)  # type: ignore[no-any-return]


def finalmlp() -> Shop:
    """FinalMLP of FuxiCTR: two towers, and the bilinear product of what they end with."""
    from fuxictr.features import FeatureMap
    from model_zoo.LongCTR.FinalMLP import FinalMLP

    torch.manual_seed(0)
    features = FeatureMap("shop", ".")
    features.labels, features.default_emb_dim = ["clicked"], 16
    features.features |= {
        "user": {"source": "row", "type": "categorical", "vocab_size": USERS},
        "kind": {"source": "row", "type": "categorical", "vocab_size": KINDS},
        "price": {"source": "row", "type": "numeric"},
        "item": {"source": "item", "type": "categorical", "vocab_size": ITEMS + 1, "padding_idx": 0},
    }
    model = FinalMLP(
        features,
        embedding_dim=16,
        mlp1_hidden_units=[256, 128],
        mlp2_hidden_units=[256, 128],
        num_heads=4,
        use_fs=False,
        optimizer="adam",
        loss="binary_crossentropy",
        verbose=0,
        model_root=".",
        metrics=["AUC"],
    )
    return Shop("finalmlp", Sourced(model), ("user", "item", "kind", "price", "history"), probabilities=True, epochs=2)


class MaskBlock(nn.Module):
    """Layer of features that are weighted by a mask of the instance (MaskNet, equations 5 to 8)."""

    def __init__(self, embedded: int, units: int, reduction: int = 2) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Linear(embedded, reduction * embedded), nn.ReLU(), nn.Linear(reduction * embedded, embedded)
        )
        self.hidden = nn.Sequential(nn.Linear(embedded, units, bias=False), nn.LayerNorm(units), nn.ReLU())

    def forward(self, embedded: Tensor, normalized: Tensor) -> Tensor:
        return self.hidden(self.mask(embedded) * normalized)  # type: ignore[no-any-return]


class MaskNet(nn.Module):
    """Parallel MaskNet (Wang, She and Zhang 2021, "MaskNet", section 3.4), with the mean of a history as one field."""

    def __init__(self, dim: int = 16, blocks: int = 3, units: int = 128) -> None:
        super().__init__()
        self.user, self.kind = nn.Embedding(USERS, dim), nn.Embedding(KINDS, dim)
        self.item = nn.Embedding(ITEMS + 1, dim, padding_idx=0)
        self.price = nn.Linear(1, dim, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.blocks = nn.ModuleList(MaskBlock(5 * dim, units) for _ in range(blocks))
        self.tower = nn.Sequential(
            nn.Linear(blocks * units, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, user: Tensor, item: Tensor, kind: Tensor, price: Tensor, history: Tensor) -> Tensor:
        past = self.item(history).sum(1) / (history > 0).sum(1, keepdim=True).clamp(min=1)
        fields = [self.user(user), self.item(item), self.kind(kind), self.price(price.unsqueeze(1)), past]
        embedded = torch.cat(fields, 1)
        normalized = torch.cat([norm(field) for norm, field in zip(self.norms, fields, strict=True)], 1)
        return self.tower(torch.cat([b(embedded, normalized) for b in self.blocks], 1)).squeeze(1)  # type: ignore[no-any-return]


def masknet() -> Shop:
    """MaskNet, after its paper."""
    torch.manual_seed(0)
    return Shop("masknet", MaskNet(), ("user", "item", "kind", "price", "history"), probabilities=False, epochs=1)


class Session(nn.Module):
    """A model that takes a history padded behind its end, and how long it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, item: Tensor, history: Tensor, length: Tensor) -> Tensor:
        columns = {"item_id": item, "item_id_list": history, "item_length": length}
        return self.net.predict(columns)  # type: ignore[no-any-return, operator]


class SessionShop(Shop):
    """Histories of different lengths: padded in batches, as long as they are in requests."""

    def __init__(self, name: str, model: nn.Module, epochs: int) -> None:
        self.lengths = torch.from_numpy(np.random.default_rng(1).integers(3, LENGTH + 1, size=USERS))
        super().__init__(name, Session(model), ("item", "history", "length"), probabilities=False, epochs=epochs)

    def _inputs(self, rows: Any) -> dict[str, Tensor]:
        history = self.columns["history"][rows].flip(1)  # what is padded comes last
        length = torch.minimum(self.lengths[self.columns["user"][rows]], (history > 0).sum(1))
        history = history * (torch.arange(LENGTH) < length[:, None])
        return {"item": self.columns["item"][rows], "history": history, "length": length}

    def requests(self, seed: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for request in super().requests(seed):
            count, length = len(request["item"]), request["length"][:1]
            history = request["history"][:1, : int(length[0])]
            yield {"item": request["item"], "history": history.repeat(count, 0), "length": length.repeat(count)}


class Catalogue:
    """The attributes that RecBole's models ask of a data set."""

    def num(self, field: str) -> int:
        return ITEMS + 1


def gru4rec() -> Shop:
    """GRU4Rec of RecBole."""
    from recbole.model.sequential_recommender import GRU4Rec

    torch.manual_seed(0)
    config = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "device": "cpu",
        "loss_type": "BPR",
        "embedding_size": 32,
        "hidden_size": 64,
        "num_layers": 1,
        "dropout_prob": 0.3,
    }
    return SessionShop("gru4rec", GRU4Rec(config, Catalogue()), epochs=4)

"""Lookup counts, compared with a count of the ids that a model sees, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from objectives.recommenders.lookup_counts import counted
from spaces.model_structure import Table

ROWS = 50


class Hashed(nn.Module):
    """Looks one input up as it is, one by its remainder, with padding behind it; and reads one table as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.word, self.whole = (nn.Embedding(ROWS, 4) for _ in range(3))

    def forward(self, item: Tensor, word: Tensor) -> Tensor:
        words = self.word(input=torch.where(word < 0, ROWS - 1, word % (ROWS - 1)))
        return self.item(item) + words.sum(1) + self.whole.weight.sum(0)


TABLES = [Table("item", ROWS, ("item",)), Table("word", ROWS), Table("whole", ROWS)]


def by_name(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return model(**inputs)  # type: ignore[no-any-return]


def test_ids_that_a_model_computes_are_counted_where_they_are_looked_up() -> None:
    random = torch.Generator().manual_seed(0)
    batches = [
        {
            "item": torch.randint(ROWS, (n,), generator=random),
            "word": torch.randint(-3, 10_000, (n, 6), generator=random),
        }
        for n in (7, 5000)
    ]
    model = Hashed()
    found = counted(model, TABLES, batches, by_name)
    assert set(found) == {"item", "word"}, "a table that is not called has no counts"
    words = Counter(49 if w < 0 else w % 49 for b in batches for w in b["word"].flatten().tolist())
    items = Counter(i for b in batches for i in b["item"].tolist())
    assert found["word"].tolist() == [words[i] for i in range(ROWS)]
    assert found["item"].tolist() == [items[i] for i in range(ROWS)]
    assert not model.word._forward_pre_hooks


def test_a_model_is_not_run_where_inputs_tell_all_ids() -> None:
    def refuse(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        raise AssertionError("the model was run")

    found = counted(Hashed(), TABLES[:1], [{"item": torch.tensor([3, 3, 1])}], refuse)
    assert found["item"].nonzero().flatten().tolist() == [1, 3] and int(found["item"][3]) == 2

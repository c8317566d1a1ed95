"""Random forest over knobs, whose trees are the draws of a prediction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from search.front import Floats
from spaces.domains import Scalar

# Number of trees, each of which gives one draw.
TREES = 64


class Forest:
    """Extremely randomized trees (Geurts et al., 2006), each fitted to a bootstrap sample, over knobs; one that a
    candidate does not have counts as 0.
    """

    def __init__(self, knobs: Sequence[Mapping[str, Scalar]], targets: Floats, seed: int) -> None:
        """Fit the trees to (n, m) targets."""
        # Here, since scikit-learn takes a second to load, and most commands fit nothing.
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.feature_extraction import DictVectorizer

        self._features = DictVectorizer(sparse=False)
        rows = self._features.fit_transform([_numbers(each) for each in knobs])
        forest = ExtraTreesRegressor(TREES, bootstrap=True, random_state=seed)
        self._trees = forest.fit(rows, targets[:, 0] if targets.shape[1] == 1 else targets).estimators_
        self._targets = targets.shape[1]

    def draw(self, knobs: Sequence[Mapping[str, Scalar]]) -> Floats:
        """Return (trees, n, m) draws of the targets for n candidates."""
        rows = self._features.transform([_numbers(each) for each in knobs])
        return np.stack([tree.predict(rows).reshape(len(rows), self._targets) for tree in self._trees])


def _numbers(knobs: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Add the sum of the widths to each list of them, such as 64-32, whose order a category does not show."""
    texts = {name: value for name, value in knobs.items() if isinstance(value, str)}
    lists = {name: value.split("-") for name, value in texts.items() if re.fullmatch(r"\d+(-\d+)*", value)}
    return {**knobs, **{f"{name}.sum": sum(map(int, widths)) for name, widths in lists.items()}}

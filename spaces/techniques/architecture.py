"""Architecture of a student: the sizes that its model family exposes."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.domains import Scalar
from spaces.techniques.reshaping import Reshaping


@dataclass(frozen=True)
class Architecture(Reshaping):
    """Sizes by name, sorted by name; the model family defines the meaning of each."""

    ablated = "lighter architecture"
    sizes: tuple[tuple[str, Scalar], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(sorted(self.sizes)))
        names = [name for name, _ in self.sizes]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"An architecture names each size once, but got {names}.")

    def knobs(self) -> dict[str, Scalar]:
        return {f"architecture.{name}": value for name, value in self.sizes}

    def as_dict(self) -> dict[str, Scalar]:
        return dict(self.sizes)

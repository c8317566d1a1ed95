"""How a model file is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Engine by name, replicas, threads of each; threads None leaves them to the engine's own default."""

    engine: str = "onnxruntime"
    device: str = "cpu"
    replicas: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"There is at least one replica, but got {self.replicas}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"A replica has at least one thread, but got {self.threads}.")

    @property
    def layout(self) -> str:
        return f"{self.replicas}x{self.threads or 'auto'}"


def parse_layout(text: str) -> tuple[int, int | None]:
    """Replicas and threads of a layout such as `2x1` or `1xauto`."""
    replicas, _, threads = text.partition("x")
    if not replicas.isdecimal() or not (threads == "auto" or threads.isdecimal()):
        raise ValueError(f"A layout reads REPLICASxTHREADS, such as 2x1 or 1xauto, but got {text!r}.")
    return int(replicas), None if threads == "auto" else int(threads)


def layouts(cores: int) -> tuple[str, ...]:
    """The baseline's own layout, then every split of the cores into equal replicas without sharing a core."""
    return ("1xauto", *(f"{r}x{t}" for r in range(1, cores + 1) for t in range(1, cores // r + 1)))

"""Names that benchmarks refer to by text, which a type checker does not read."""

from __future__ import annotations

from tests.benchmarks.visit_seconds import PARTS


def test_the_timed_parts_of_a_visit_exist() -> None:
    assert not [name for owner, name in PARTS if not hasattr(owner, name)]

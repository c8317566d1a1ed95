"""Each baseline is trained once for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.task import Task
from tests.build_tests.small import small_task


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def task_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Task]:
    home = tmp_path_factory.mktemp("home")
    return lambda family: small_task(home, family)


@pytest.fixture(scope="session")
def opened(task_of: Callable[[str], Task]) -> Callable[[str], Recommender]:
    return cache(lambda family: open_recommender(task_of(family), lambda line: None))

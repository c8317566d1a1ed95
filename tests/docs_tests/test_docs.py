"""The documentation agrees with the code: generated pages, examples, commands, links and paths."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.load import open_user_model
from objectives.task import Task
from search.cli.parser import _parser
from search.config.section import Section
from search.config.sections import StudyConfig
from search.config.study_file import parse
from search.config.yaml_reader import plain
from search.ledger.notes import FILTERS
from tests.serve_tests.bundles import write_distance

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("commands.md", "settings.md")


def blocks(language: str) -> Iterator[Any]:
    """Fenced blocks of all pages, each with its place."""
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(found[1], id=f"{page.name}-{line}")


def names_in(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, "example", "exec"), names)
    return names


def example(page: str, holding: str) -> dict[str, Any]:
    """The names that a page's Python block defines, the block being the one that holds a text."""
    (block,) = (one.values[0] for one in blocks("python") if one.id.startswith(page) and holding in one.values[0])
    return names_in(block)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- generated pages


@pytest.mark.parametrize("page", GENERATED)
def test_generated_pages_follow_from_the_code(page: str, generate: ModuleType) -> None:
    assert (ROOT / "docs" / page).read_text() == generate.PAGES[page](), "run: python docs/generate.py"


def leaves(section: type[Section], path: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind, within = field.annotation, f"{path}{name}"
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from leaves(kind, f"{within}.")
        elif name != "data":
            yield within


def test_every_setting_and_command_has_an_entry(generate: ModuleType) -> None:
    settings, commands = generate.settings_page(), generate.commands_page()
    assert [path for path in leaves(StudyConfig) if f"- **`{path}`**: " not in settings] == []
    (choices,) = (action.choices for action in _parser()._actions if action.choices)
    assert [name for name in choices if f"\n## {name}\n" not in commands] == []
    options = {option for command in choices.values() for option in command._option_string_actions} - {"-h", "--help"}
    assert [option for option in options if f"- `{option}" not in commands] == []


# -- examples


@pytest.mark.parametrize("block", list(blocks("yaml")))
def test_yaml_examples_are_study_files(block: str) -> None:
    assert parse(plain(block, "example")).name


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_examples_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names_in(block)


def test_the_readmes_model_is_one_that_leanrec_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (one.values[0] for one in blocks("python") if one.id.startswith("README"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop.py").write_text(block)
    task = Task(str(tmp_path), "shop:Shop", "", "", 200, 0.6, 1000, 0)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    found = open_user_model(task, lambda line: None)
    monkeypatch.delitem(sys.modules, "shop")
    assert {spec.name: spec.side for spec in found.inputs} == {"user": "user", "item": "item"}
    assert model_warnings(found, 0) == ()
    for part in ("validation", "test"):
        held = found.held_out(part)  # type: ignore[arg-type]
        assert set(np.unique(held.labels)) == {0, 1} and len(np.unique(held.groups)) > 100
    again = open_user_model(task, lambda line: None)
    monkeypatch.delitem(sys.modules, "shop")
    assert again.key == found.key, "each call gives the same"


def test_the_guides_wrapper_names_a_models_inputs() -> None:
    class Net(nn.Module):
        def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"y_pred": columns["user"] + columns["item"]}

    wrapped = example("user-models.md", "class ByName")["ByName"](Net())
    assert torch.equal(wrapped(user=torch.ones(3), item=torch.ones(3)), torch.full((3,), 2.0))


def test_the_guides_optimizer_clips() -> None:
    optimizer: Callable[[Any], torch.optim.Optimizer] = example("user-models.md", "def optimizer")["optimizer"]
    layer = nn.Linear(4, 1)
    made = optimizer(layer.parameters())
    (1e6 * layer(torch.ones(1, 4))).sum().backward()
    made.step()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in layer.parameters() if p.grad is not None]))
    assert norm <= 10.001


# -- what pages refer to


def commands_in_pages() -> Iterator[Any]:
    for page in PAGES:
        if page.name not in GENERATED:
            for line in page.read_text().splitlines():
                if line.startswith("    leanrec "):
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{page.name}-{line.split()[1]}")


@pytest.mark.parametrize("arguments", list(commands_in_pages()))
def test_commands_in_pages_are_valid(arguments: list[str]) -> None:
    assert callable(_parser().parse_args(arguments).command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:spaces|objectives|planning|search|tests|docs)/[\w/.*]*)`", text)
    missing = [path for path in paths if not path.isupper() and not any(ROOT.glob(path.rstrip("/")))]
    assert [path for path in missing if not re.search(r"[A-Z]{3,}", path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_pages_exist(page: Path) -> None:
    """Dotted names resolve; a name in brackets behind a file's path stands in that file."""
    text = page.read_text()
    for dotted in re.findall(r"`((?:spaces|objectives|planning|search)(?:\.\w+)+)(?:\(|`)", text):
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name), dotted
    for file, names in re.findall(r"`([\w/]+\.py)`\s\(((?:`\w[\w.]*`(?:,\s|\sand\s)?)+)", text):
        source = (ROOT / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert name.rpartition(".")[2] in source, f"{file}: {name}"


def test_the_readme_names_the_commands_of_the_checks() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE):
        assert command in readme


def test_the_librarys_example_ranks(tmp_path: Path) -> None:
    """Scores are -|user - item|, so that the nearest item is the best."""
    best_items = example("serving.md", "leanrec.load")["best_items"]
    assert best_items(5, [1, 9, 6, 5, 3], write_distance(tmp_path / "bundle")) == [5, 6, 3, 1, 9]
    with pytest.raises(ValueError, match="input item"):
        best_items(5, [1, 40], tmp_path / "bundle")


def test_the_filters_are_those_of_the_descriptions() -> None:
    text = (ROOT / "docs" / "mlflow.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| `+([^|]+?)`+ \| `metrics\.(\w+)` \|$", text, re.MULTILINE)
    assert {name: (expression, order) for name, expression, order in rows} == FILTERS

"""The direction of imports, and light imports of serving and measuring."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "onnx", "onnx_ir", "optuna", "mlflow", "plotly")
INSIDE = ("recommenders", "compression", "serving", "measurement")
ALLOWED = {
    "spaces": {"spaces"},
    "objectives": {"objectives", "spaces"},
    "planning": {"planning", "objectives", "spaces"},
    "search": {"search", "planning", "objectives", "spaces"},
}


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def _imports(file: Path) -> list[str]:
    nodes = list(ast.walk(_tree(file)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_every_package_is_packaged() -> None:
    """setuptools finds every folder with an `__init__.py` in one that has it too."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]["find"]["include"]) == {name for p in ALLOWED for name in (p, f"{p}.*")}
    folders = {folder for package in ALLOWED for file in _files(package) for folder in file.parents}
    within = {folder for folder in folders if folder.is_relative_to(ROOT) and folder != ROOT}
    assert [str(folder) for folder in within if not (folder / "__init__.py").is_file()] == []


def test_every_template_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "search" / "report"
    packaged = {file for pattern in settings["package-data"]["search.report"] for file in folder.glob(pattern)}
    assert packaged == {file for file in (folder / "templates").rglob("*") if file.is_file()} != set()


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package: str) -> None:
    ours = set(ALLOWED)
    for file in _files(package):
        wrong = {name for name in _imports(file) if name.split(".")[0] in ours - ALLOWED[package]}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_spaces_stand_on_the_standard_library() -> None:
    for file in _files("spaces"):
        for name in _imports(file):
            top = name.split(".")[0]
            assert top == "spaces" or top in sys.stdlib_module_names, f"{file.name} imports {name}"


@pytest.mark.parametrize("package", INSIDE)
def test_parts_of_objectives_do_not_know_each_other(package: str) -> None:
    for file in _files(f"objectives/{package}"):
        for name in _imports(file):
            other = name.removeprefix("objectives.").split(".")[0]
            assert not (name.startswith("objectives.") and other in set(INSIDE) - {package}), f"{file} imports {name}"


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("optuna", ["search/study.py", "search/samplers"]),
        ("mlflow", ["search/ledger"]),
        ("plotly", ["search/report/report.py"]),
        ("jinja2", ["search/report/render.py"]),
        ("starlette", ["search/plan/manifests/ray_files/application.py"]),
        ("ray", ["search/plan/manifests/ray_files/application.py"]),
        ("yaml", ["search/plan/manifests/files.py"]),
        ("uvicorn", ["objectives/serving/http/server.py", "objectives/serving/http/intake/connection.py"]),
        ("uvloop", ["objectives/measure/connections.py"]),
        ("httptools", ["objectives/measure/connections.py", "objectives/serving/http/intake/connection.py"]),
        ("prometheus_client", ["objectives/serving/http/metrics.py", "search/plan/observe/scrape.py"]),
        ("statsmodels", ["planning/seasonal_models.py"]),
    ],
)
def test_one_door_to_each_library(library: str, doors: list[str]) -> None:
    """`study.py`'s trials are read by their type elsewhere; nothing else of a library is touched behind its door."""
    for path in [*_files("search"), *_files("planning"), *_files("objectives")]:
        names = {n for n in _imports(path) if n.split(".")[0] == library} - {"optuna.trial"}
        inside = any(path.is_relative_to(ROOT / door) for door in doors)
        assert not names or inside, f"{path.relative_to(ROOT)} imports {sorted(names)}"


@pytest.mark.parametrize(
    "module",
    [
        "objectives.measure.__main__",
        "objectives.serving.bundle",
        "objectives.serving.pool",
        "objectives.serving.http.server",
        "planning.plan",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_coordinator_never_loads_torch() -> None:
    code = "import sys, search.session, search.cli.parser; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_no_folder_holds_more_than_15_modules() -> None:
    folders = {folder for package in ALLOWED for folder in [ROOT / package, *(ROOT / package).rglob("*/")]}
    counts = {folder: len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) for folder in folders}
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > 15} == {}


def test_modules_import_one_another_in_one_direction() -> None:
    """The import graph has no cycle: the standard library's sorter finds an order."""
    names = {_module(file): file for package in ALLOWED for file in _files(package)}
    graph = {name: {part for part in _modules(file) if part in names and part != name} for name, file in names.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _modules(file: Path) -> Iterator[str]:
    """Names that a file imports at its top, a name from a package being possibly a module of it."""
    for node in _tree(file).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)

"""Bad input gives one line that names the field and status 2; nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import optuna
import pytest

from search.cli import ui
from search.cli.commands import _study_arguments
from search.cli.console import Console
from search.cli.parser import _parser, run_command
from search.home import Home

ROOT = Path(__file__).resolve().parents[2]


def test_a_study_is_named_again_without_a_password() -> None:
    typed = ["choose", "shop.yaml", "--set", "storage=postgresql://me:secret@db/x", "--set", "budget.trials=9"]
    again = _study_arguments(_parser().parse_args([*typed, "--seed", "3", "--home", "its home"]))
    assert again == (
        "shop.yaml", "--seed", "3", "--set", "storage=...", "--set", "budget.trials=9", "--home", "its home",
    )  # fmt: skip
    assert _study_arguments(_parser().parse_args(["doctor"])) == ()


@pytest.mark.parametrize("typed", [["--trial", "18", "43"], ["--trial", "18", "--trial", "43"]])
def test_further_trials_are_given_together_or_one_by_one(typed: list[str]) -> None:
    for command in ("bundle", "remeasure"):
        assert _parser().parse_args([command, "shop.yaml", *typed]).trial == [18, 43]
    assert _parser().parse_args(["bundle", "shop.yaml"]).trial == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "ml-100x"], ["ml-100x", "ml-100k"]),
        (["validate", "ml-100k", "--set", "quality.max_los=0.1"], ["quality.max_los", "max_loss"]),
        (["validate", "ml-100k", "--set", "quality.max_loss=2"], ["quality.max_loss", "2"]),
        (["status", "ml-100k"], ["STUDY", "ml-100k"]),
        (["front", "ml-100k"], ["STUDY", "leanrec run"]),
        (["choose", "ml-100k", "--p95-ratio", "-1"], ["--p95-ratio", "above 0"]),
        (["choose", "ml-100k", "--throughput-rps", "0"], ["--throughput-rps", "above 0"]),
        (["choose", "ml-100k", "--memory-mb", "much"], ["--memory-mb", "above 0"]),
        (["choose", "ml-100k", "--max-loss", "1"], ["--max-loss", "between 0 and 1"]),
        (["choose", "ml-100k", "--prefer", "beauty"], ["beauty", "knee"]),
        (["data", "ml-7"], ["ml-7", "ml-100k"]),
        (["verify", "nowhere"], ["BUNDLE", "nowhere"]),
        (["bench", "nowhere"], ["BUNDLE", "nowhere"]),
        (["bench", ".", "--pattern", "storm"], ["--pattern", "storm", "diurnal"]),
        (["bench", ".", "--pattern", "replay"], ["--log", "replay"]),
        (["bench", ".", "--seconds", "0"], ["--seconds", "0"]),
        (["bench", ".", "--rows", "0"], ["--rows", "0"]),
        (["bench", ".", "--rate", "1e308"], ["--seconds", "1e-301"]),
        (["bench", ".", "--seed", "-1"], ["--seed", "from 0 to 4294967295", "'-1'"]),
        (["observe", "log.csv", "--seed", "4294967296"], ["--seed", "from 0 to", "'4294967296'"]),
        (["balance", "http://localhost:8000", "--port", "70000"], ["--port", "from 1 to 65535", "'70000'"]),
        (["serve", "nowhere"], ["BUNDLE", "nowhere"]),
        (["serve", ".", "--name", "a/b"], ["--name", "a/b"]),
        (["serve", ".", "--port", "99999"], ["--port", "99999"]),
        (["serve", ".", "--max-rows", "0"], ["--max-rows", "0"]),
        (["remeasure", "ml-100k"], ["STUDY", "leanrec run"]),
        (["ablate", "ml-100k"], ["STUDY", "leanrec run"]),
        (["ablate", "ml-100k", "--trial", "best"], ["--trial", "best"]),
        (["profile", "ml-100x"], ["ml-100x", "ml-100k"]),
        (["profile", "ml-100k", "--trial", "3"], ["STUDY", "leanrec run"]),
        (["profile", "ml-100k", "--trial", "best"], ["--trial", "best"]),
        (["profile", "ml-100k", "--floor"], ["--floor", "--trial"]),
        (["ui", "--port", "99999"], ["--port", "99999"]),
        (["run", "ml-100k", "--minutes", "nan"], ["budget.minutes", ".nan"]),
        (["run", "ml-100k", "--trials", "0", "--seed", "-1"], ["budget.trials", "0", "1 more"]),
        (["fly"], ["fly"]),
        ([], ["COMMAND"]),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LEANREC_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "mlruns" / "optuna.db").exists()


def test_a_foreign_mlruns_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "0").write_text("somebody's")
    assert run_command(["run", "synthetic-small", "--home", str(tmp_path)]) == 2
    assert str(tmp_path / "mlruns") in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mlruns").iterdir()] == ["0"]


def test_a_folder_that_is_no_bundle_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "leanrec", "verify", "empty", "--home", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "empty" in done.stderr


def test_a_busy_port_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run_command(["ui", "--port", str(taken.getsockname()[1]), "--home", str(tmp_path)]) == 2
    assert "--port" in capsys.readouterr().err.strip().splitlines()[-1]


def test_optunas_dashboard_needs_its_package_and_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ui", "--optuna", "--port", str(free_port()), "--home", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(ui, "_is_installed", lambda name: False)
        assert run_command(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'leanrec[dashboard]'")
    monkeypatch.setattr(ui, "_is_installed", lambda name: True)
    assert run_command(arguments) == 2
    assert "leanrec run makes it" in capsys.readouterr().err and not (tmp_path / "mlruns" / "optuna.db").exists()


_SERVED = """
import signal, sys
from search.cli.ui import _serve
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(_serve(["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(100)"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_ui_ends_its_server_also_in_the_background(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            server = int(process.stdout.readline())
            process.send_signal(number)
            assert process.wait(30) == 0
            with pytest.raises(ProcessLookupError):
                os.kill(server, 0)
        finally:
            process.kill()


@pytest.mark.slow
def test_optunas_dashboard_shows_the_study(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    home, port = Home(tmp_path), free_port()
    home.claim()
    optuna.create_study(study_name="shop", storage=home.storage(None), directions=["minimize"] * 3)
    command = [sys.executable, str(ROOT / "leanrec.py"), "ui", "--optuna", "--port", str(port), "--home", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while (found := asked(f"http://127.0.0.1:{port}/api/studies")) is None:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)
        assert [study["study_name"] for study in found["study_summaries"]] == ["shop"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def asked(url: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = httpx.get(url, timeout=10).json()
    except httpx.TransportError:
        return None
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_init_writes_a_file_that_validates_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["init", "study.yaml"]) == 0
    capsys.readouterr()
    assert run_command(["validate", "study.yaml", "--only-file", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quality"] == {"metric": None, "max_loss": 0.01, "slices": {}, "slice_by": []}
    assert run_command(["init", "study.yaml"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_option_counts_more_than_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["validate", "ml-100k", "--only-file", "--json", "--seed", "2", "--set", "seed=1"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 2


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command(["--help"])
    listed = re.findall(r"^ {4}(\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"data", "run", "front", "choose", "bench", "build", "doctor", "validate"} < set(listed)
    for command in listed:
        with pytest.raises(SystemExit, match="0"):
            run_command([command, "--help"])
        assert "--home" in capsys.readouterr().out


def test_another_distributions_package_is_told(tmp_path: Path) -> None:
    """A foreign package `search` that is found first is reported in one line before anything of it runs."""
    strange = tmp_path / "strange"
    (strange / "search").mkdir(parents=True)
    (strange / "search" / "__init__.py").write_text("raise SystemExit('the wrong search ran')")
    code = "import sys, leanrec; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['--help']\n"
    code += "import importlib.util as u\n"
    code += f"u.find_spec = lambda n: u.spec_from_file_location(n, {str(strange)!r} + '/search/__init__.py')\n"
    code += "sys.exit(leanrec.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(strange)], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 2
    assert "'search'" in done.stderr and str(strange) in done.stderr


def test_a_factorys_name_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(False, False)
    console.say("shop:factory: it failed")
    console.result({}, "shop:factory: it failed")
    streams = capsys.readouterr()
    assert streams.err == streams.out == "shop:factory: it failed\n"

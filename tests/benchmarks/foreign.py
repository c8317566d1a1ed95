"""Studies of models from other packages: preflight, a short study, what was compressed and what was left alone.

pip install -e '.[foreign]'
pip install --no-deps recbole==1.2.1  # it pins versions of long ago
pip install colorama colorlog texttable thop tensorboard
pip install fuxictr  # ray comes with it
python tests/benchmarks/foreign.py --home DIR [--model NAME ...] [--minutes 5] [--only-preflight]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.format import count

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("din", "autoint", "ft_transformer", "bert", "gru4rec", "finalmlp", "masknet")
STUDY = """
name: {name}
recommender: foreign_models:{model}
quality: {{max_loss: 0.01}}
space: {{distillation: {{epochs: 2}}}}
budget: {{minutes: {minutes:g}}}
timing: {{confirm_blocks: 60}}  # three visits: an encoder of histories takes more than a minute for each
"""


def leanrec(folder: Path, *words: str) -> str:
    """Run the command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "leanrec.py"), *words, "--home", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def studied(
    folder: Path, model: str, minutes: float, only_preflight: bool = False
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the dry run's findings on a model, and its study's front."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("foreign_models.py"), folder)
    name = model.replace("_", "-")
    file = folder / f"{name}.yaml"
    file.write_text(STUDY.format(name=name, model=model, minutes=minutes))
    validated = json.loads(leanrec(folder, "validate", str(file), "--json"))["preflight"]
    if only_preflight:
        return validated, None
    leanrec(folder, "run", str(file), "--minutes", str(minutes))
    return validated, json.loads(leanrec(folder, "front", str(file), "--json"))


def best(rows: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The least p95 ratio on the front; what its final benchmark passed over has the luck of a single visit."""
    able = [row for row in rows if row["on_front"] and row["trial"]]
    return min(able, key=lambda row: float(row["latency_ms"]["p95_ratio"]), default=None)


def lines(model: str, validated: Mapping[str, Any], front: Mapping[str, Any] | None) -> list[str]:
    groups = "; ".join(f"{g['name']}: {', '.join(g['can']) or 'nothing'}" for g in validated["groups"])
    refused = [f"{g['name']}: {c['technique']} ({c['reason']})" for g in validated["groups"] for c in g["cannot"]]
    alone = [f"{one['module']} ({one['reason']})" for one in validated["left_alone"]]
    told = [
        f"{model}: validate {validated['seconds']['all']:.0f} s",
        f"  can be compressed: {groups}",
        *(f"  cannot: {line}" for line in refused),
        *(f"  left alone: {line}" for line in alone),
    ]
    row = None if front is None else best(front["rows"])
    if row is not None:
        latency, quality = row["latency_ms"], row["quality"]
        low, high = latency["p95_ratio_interval"]
        least, most = quality["loss_interval"]
        told.append(
            f"  best: p95 ratio {latency['p95_ratio']:.3f} [{low:.3f}, {high:.3f}]  throughput "
            f"{row['throughput_ratio']:.1f}x  capacity {row['capacity_ratio']:.1f}x  loss {quality['loss']:+.2%} "
            f"[{least:+.2%}, {most:+.2%}]  {row['origin']}, {count(row['visits'], 'visit')}"
        )
        if (tuned := row["tuned"]) is not None:
            told.append(
                f"  beside the tuned baseline, trial {tuned['trial']}: p95 ratio {tuned['p95_ratio']:.3f}  throughput "
                f"{tuned['throughput_ratio']:.1f}x  capacity {tuned['capacity_ratio']:.1f}x"
            )
    elif front is not None:
        told.append(f"  no feasible point: {front['counts']}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only-preflight", action="store_true")
    options = parser.parse_args()
    folder = options.home.resolve()
    told: list[str] = []
    for model in options.model:
        told += lines(model, *studied(folder, model, options.minutes, options.only_preflight))
    print("\n" + "\n".join(told))


if __name__ == "__main__":
    main()

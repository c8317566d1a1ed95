"""Builds from a bundle's recipe with checkpoints trained from other seeds, and with a poisoned one.

    python tests/benchmarks/nightly.py --home DIR [--seeds 5] [--minutes 5]

The study of examples/shop.yaml is run and its point chosen where that was not done yet; then `leanrec build` is given
one checkpoint after the other, each from the same old bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = """
import shop

def poisoned():
    "A pipeline that broke overnight: clicks and the rest were mixed up in what the checkpoint learned from."
    found = shop.Shop()
    inputs, labels = found.data["train"]
    found.data["train"] = (inputs, 1 - labels)
    found.model = shop.checkpoint(found.data["train"], "poisoned", seed=0)
    return found
"""


def leanrec(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "leanrec.py"), *words, "--home", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def told(name: str, found: dict[str, Any]) -> str:
    if found["loss"] is None:
        return f"{name:12} {found['reason']}"
    low, high = found["loss_interval"]
    least, most = found["p95_ratio_interval"]
    verdict = "accepted" if found["accepted"] else found["reason"]
    return (
        f"{name:12} loss {found['loss']:+.2%} [{low:+.2%}, {high:+.2%}]  p95 ratio {found['p95_ratio']:.3f} "
        f"[{least:.3f}, {most:.3f}]  to the old bundle: {_to_old(found)}  {verdict}"
    )


def _to_old(found: dict[str, Any]) -> str:
    if found["not_compared"] is not None:
        return str(found["not_compared"])
    return f"p95 {found['p95_ratio_to_old']:.3f}, loss {found['loss_to_old']:+.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    folder = options.home.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("shop.py", "shop.yaml"):
        shutil.copy(ROOT / "examples" / name, folder)
    retrained = "".join(
        f"\ndef seed_{seed}():\n    return shop.Shop(seed={seed})\n" for seed in range(1, options.seeds + 1)
    )
    (folder / "checkpoints.py").write_text(CHECKPOINTS + retrained)
    bundle = folder / "reports" / "shop" / "bundle"
    if not bundle.exists():
        leanrec(folder, "run", "shop.yaml", "--minutes", str(options.minutes))
        leanrec(folder, "choose", "shop.yaml", "--prefer", "latency")
    rows = []
    for name in (*(f"seed_{seed}" for seed in range(1, options.seeds + 1)), "poisoned"):
        out = str(folder / f"bundle-{name}")
        done = leanrec(folder, "build", str(bundle), "--model", f"checkpoints:{name}", "--out", out, "--json")
        rows.append(told(name, json.loads(done.stdout)))
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()

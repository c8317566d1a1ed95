"""The console entry: makes sure that the packages are ours before anything of them is imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PACKAGES = ("search", "spaces", "objectives")


def main() -> int:
    """Run the command line; status 2 when another distribution's package stands where ours should."""
    # The user's own modules are found last, so that none of them hides one of ours.
    here = {"", str(Path.cwd())}
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [own, *(p for p in sys.path if p not in here and p != own), str(Path.cwd())]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent.parent
        if found != Path(own):
            sys.stderr.write(f"leanrec: the package {package!r} is found at {found}, not beside leanrec at {own}\n")
            return 2
    from search.cli import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

"""The console entry and `import leanrec`, which make sure that the packages are ours before importing any of them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("search", "spaces", "objectives", "planning")
# What `import leanrec` offers, each loaded when it is asked for.
_OFFERED = {"Study": "search.notebook", "load": "search.choose.bundles"}


def _stranger() -> str | None:
    """Name a package that belongs to another distribution, in one line; None if there is none.

    The import path then has ours first and the user's own modules last, so that none of them hides one of ours.
    """
    here = {"", str(Path.cwd())}
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [own, *(p for p in sys.path if p not in here and p != own), str(Path.cwd())]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent.parent
        if found != Path(own):
            return f"leanrec: the package {package!r} is found at {found}, not beside leanrec at {own}"
    return None


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"leanrec has {', '.join(_OFFERED)}, but got {name!r}")
    if (stranger := _stranger()) is not None:
        raise ImportError(stranger)
    return getattr(importlib.import_module(_OFFERED[name]), name)


def main() -> int:
    """Run the command line; status 2 when another distribution's package stands where ours should."""
    if (stranger := _stranger()) is not None:
        sys.stderr.write(stranger + "\n")
        return 2
    from search.cli.parser import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

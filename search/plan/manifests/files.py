"""Documents as text: YAML as Kubernetes, Prometheus and Ray read it, and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Writer of YAML that version 1.1 and 1.2 read alike: a text that either takes for something else is quoted."""

    def ignore_aliases(self, data: object) -> bool:
        """Write repeated parts in full."""
        return True


# Numbers of YAML 1.2 that are texts to 1.1, such as 1e3 and 0o7.
_NUMBER = re.compile(r"[-+]?(\d+|\d*\.\d+|\d+\.\d*)([eE][-+]?\d+)?$|0[ox][\da-fA-F]+$")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Write a text of several lines as a block."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def yaml_text(documents: Sequence[object]) -> str:
    """Return one YAML document, or several in a file."""
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def json_text(document: object) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"

"""Names that Kubernetes, Prometheus and Ray accept."""

from __future__ import annotations

import re

from spaces.serialization import digest

# Below the 63 characters of a label, since names are put together.
_LONGEST = 40
_DIGITS = 6


def dns_label(*parts: str) -> str:
    """Join names to a DNS label as Kubernetes takes it for services (RFC 1035).

    The label has lower-case letters, digits and '-', a letter first, and at most 40 characters. A digest tells names
    apart that would become the same.
    """
    text = "-".join(parts)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    lettered = plain if plain[:1].isalpha() else f"x{plain}"
    if lettered == text and len(text) <= _LONGEST:
        return text
    return f"{lettered[: _LONGEST - _DIGITS - 1].strip('-')}-{digest(text)[:_DIGITS]}"

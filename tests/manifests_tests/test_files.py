"""Written documents are read as they were, by readers of both versions of YAML."""

from __future__ import annotations

import io
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from search.plan.manifests.files import yaml_text
from search.plan.manifests.names import dns_label

WORDS = st.sampled_from(
    ("on", "yes", "No", "null", "~", "1e3", "12e456", "0o7", "0x1f", "1:30", "2026-11-28", "", ".5")
)
TEXTS = WORDS | st.text(st.characters(min_codepoint=32, max_codepoint=126)) | st.just("a\nor b")
PLAIN = st.recursive(
    TEXTS | st.integers(-(10**6), 10**6) | st.booleans() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(PLAIN)
@example({"study": "1e3", "namespace": "on"})
def test_documents_are_read_as_they_were(document: Any) -> None:
    text = yaml_text([document, {"second": document}])
    for found in (list(yaml.safe_load_all(text)), list(YAML(typ="safe", pure=True).load_all(io.StringIO(text)))):
        assert found == [document, {"second": document}]


def test_numbers_that_only_some_readers_know_are_quoted() -> None:
    """Readers in Go take 1e3 for a number in either version."""
    assert yaml_text([{"a": "1e3", "b": 1000}]) == "a: '1e3'\nb: 1000\n"


@given(st.text(max_size=120))
def test_names_are_dns_labels(text: str) -> None:
    name = dns_label(text)
    assert len(name) <= 40 and name[0].isascii() and name[0].isalpha() and name[-1] != "-"
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and dns_label(name) == name


@given(st.lists(st.text("ab_ -.A1", max_size=50), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(pair: list[str]) -> None:
    assert dns_label(pair[0]) != dns_label(pair[1])

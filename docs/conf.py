"""Sphinx settings: `make docs` builds into build/docs, without a network and with warnings as errors."""

project = "leanrec"
extensions = ["myst_parser"]
html_theme = "furo"
myst_heading_anchors = 3
exclude_patterns = ["generate.py"]

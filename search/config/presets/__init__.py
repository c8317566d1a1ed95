"""Preset study files, by name."""

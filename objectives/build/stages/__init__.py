"""Stages of a builder: prepare, fit and export."""

"""Intake of the server: connections, bodies, and what is refused before it is handled."""

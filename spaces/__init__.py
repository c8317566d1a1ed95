"""The choices of a search as pure data, on the standard library alone. Nothing here trains, runs or measures."""

"""What may be chosen: pure data on the standard library alone. Nothing here trains, runs or measures."""

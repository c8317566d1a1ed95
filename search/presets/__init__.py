"""Study files by name."""

"""Jobs of the worker processes: their protocol, and one typed request and response each."""

"""Open Inference Protocol V2 over HTTP, in front of the pool that was measured."""

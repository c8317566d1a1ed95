"""Open Inference Protocol V2 over HTTP, in front of the pool that was measured."""

# What the server imports beyond a light install.
PACKAGES = ("uvicorn", "httptools", "uvloop", "prometheus_client")

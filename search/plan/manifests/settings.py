"""Settings of the cluster that manifests are for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from search.errors import ConfigError
from search.plan.document import OfferRow

PORT = 8000
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster.

    image: container image with leanrec and its extra `serve`, and with the bundles
    bundles: folder in it, with a bundle for each point: trial-N
    prometheus: address of the server that reads the metrics, as KEDA reaches it
    """

    image: str
    namespace: str
    bundles: PurePosixPath
    prometheus: str

    def __post_init__(self) -> None:
        """Check the settings; ConfigError names the option."""
        if not self.image or re.search(r"\s", self.image):
            raise ConfigError(f"--image: must be a container image, but got {self.image!r}")
        if not _NAMESPACE.fullmatch(self.namespace):
            rule = "must be at most 63 lower-case letters, digits and '-'"
            raise ConfigError(f"--namespace: {rule}, but got {self.namespace!r}")
        if not self.bundles.is_absolute():
            raise ConfigError(f"--bundles: must be an absolute path in the image, but got {str(self.bundles)!r}")
        parts = urlsplit(self.prometheus)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--prometheus: must be http://HOST:PORT, but got {self.prometheus!r}")

    def bundle(self, offer: OfferRow) -> str:
        """Return the folder of the bundle of an offer's point."""
        return str(self.bundles / f"trial-{offer.trial}")

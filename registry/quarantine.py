"""Tags that are not served until what they point at is signed as a policy demands.

By its digest the artifact can be read all along: that is how it gets its signature.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from artifact.digest import Digest
from artifact.errors import Refused
from artifact.reference import Reference
from registry.config import sections
from registry.inside import StoredRepository
from registry.manifests import StoredManifest
from registry.tagrules import covered
from supplychain.policy import Policy
from supplychain.verify import verify

_FRESH = 60.0  # seconds for which a good decision holds while the evidence is the same
_REMEMBERED = 4096


class Quarantined(Refused):
    """The tag is in quarantine and what it points at is not allowed out."""

    code = "quarantined"


class Quarantines:
    """The quarantines of one registry. `repository` gives what a repository holds; policies see references with the
    host of `public_url`, or without a host if there is none. Raises `InvalidInput` on policies that are none. Safe for
    several threads."""

    def __init__(
        self,
        settings: Sequence[sections.Quarantine],
        repository: Callable[[str], StoredRepository],
        public_url: str = "",
    ) -> None:
        self._settings = [(item.tags, Policy.load(item.policy)) for item in settings]
        self._repository = repository
        self._host = urlsplit(public_url).netloc or None
        self._released: dict[tuple[str, str, Digest], tuple[float, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def cover(self, name: str, tag: str) -> bool:
        """Whether a tag is subject to any of them."""
        return any(covered(tags, name, tag) for tags, _ in self._settings)

    def check(self, name: str, tag: str, manifest: StoredManifest) -> None:
        """That a tag that points at `manifest` may be served. Raises `Quarantined`."""
        key = (name, tag, manifest.digest)
        repository = self._repository(name)
        evidence = repository.evidence(manifest.digest)  # before it is read: what changes meanwhile is looked at again
        with self._lock:
            until, seen = self._released.get(key, (0.0, ()))
            if until > time.monotonic() and seen == evidence:
                return
        reference = Reference(name, self._host, tag)
        for tags, policy in self._settings:
            if covered(tags, name, tag):
                decision = verify(repository, reference, manifest.descriptor, policy)
                if not decision.allowed:
                    raise Quarantined(f"{tag} is in quarantine until its policy allows it: {decision.code}")
        with self._lock:
            if len(self._released) >= _REMEMBERED:
                self._released.clear()
            self._released[key] = time.monotonic() + _FRESH, evidence

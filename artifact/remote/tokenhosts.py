"""Token services on other hosts than their registries, as the user names them.

``STOWAGE_TOKEN_HOSTS=REGISTRY=TOKENHOST,…`` says that the login of a registry may go to that host. Nothing that a
registry says does (CVE-2026-33990): it could name the token service of another registry that the user logs in to, and
be given what that one hands out.
"""

from __future__ import annotations

import os

from artifact.errors import InvalidInput
from artifact.reference import is_host

VARIABLE = "STOWAGE_TOKEN_HOSTS"


def parse_token_hosts(text: str) -> dict[str, frozenset[str]]:
    """The token hosts of every registry that `text` names, in lower case. Raises `InvalidInput`."""
    found: dict[str, frozenset[str]] = {}
    for pair in text.split(",") if text.strip() else ():
        registry, equals, host = (part.strip().lower() for part in pair.partition("="))
        if not equals or not is_host(registry) or not is_host(host):
            raise InvalidInput(
                f"{VARIABLE}: not REGISTRY=TOKENHOST: {pair.strip()[:80]!r} "
                "(such as registry.example.com=gitlab.example.com, several with commas between them)"
            )
        found[registry] = found.get(registry, frozenset()) | {host}
    return found


def token_hosts_of(registry: str) -> frozenset[str]:
    """The hosts that the environment names for the registry `registry`. Raises `InvalidInput`."""
    return parse_token_hosts(os.environ.get(VARIABLE, "")).get(registry.lower(), frozenset())

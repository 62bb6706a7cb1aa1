"""The files that a configuration names."""

from __future__ import annotations

from registry.access.htpasswd import HtpasswdFile
from registry.access.oidc import Issuers
from registry.access.tokens import Tokens
from registry.config.sections import Config
from supplychain.policy import Policy


def check_files(config: Config) -> None:
    """Read every file that a configuration names. Raises `InvalidInput`."""
    if config.auth.htpasswd is not None:
        HtpasswdFile(config.auth.htpasswd)
    token = config.auth.token
    if token is not None:
        Tokens(token.key, token.previous, token.service, token.lifetime)
    Issuers(config.oidc)
    for item in config.admission.quarantine:
        Policy.load(item.policy)

"""The files that a configuration names."""

from __future__ import annotations

from registry.access.htpasswd import HtpasswdFile
from registry.access.oidc import Issuers
from registry.access.tokens import Tokens
from registry.config.proxy import password_of
from registry.config.sections import Config
from registry.http import tls
from registry.http.certificate import Certificates
from registry.log.key import LogKey
from registry.receiver import secret_of
from supplychain.policy import Policy


def check_files(config: Config) -> None:
    """Read every file that a configuration names. Raises `InvalidInput`."""
    if config.auth.htpasswd is not None:
        HtpasswdFile(config.auth.htpasswd)
    token = config.auth.token
    if token is not None:
        Tokens(token.key, token.previous, token.service, token.lifetime)
    Issuers(config.oidc)
    tls.check(config.server.tls)
    Certificates(config.server.forwarded_certificate)
    for hook in config.webhooks:
        secret_of(hook)
    if config.transparency is not None:
        LogKey.load(config.transparency.key, config.transparency.origin)
    for upstream in config.proxy.upstreams if config.proxy is not None else ():
        password_of(upstream)
    for item in config.admission.quarantine:
        Policy.load(item.policy)

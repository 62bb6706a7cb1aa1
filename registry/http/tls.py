"""The server's own certificate, which can be renewed while connections are open."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import uvicorn

from artifact.errors import InvalidInput
from registry.config.sections import Tls

_contexts: list[ssl.SSLContext] = []  # the one of this server process


def context(config: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """The TLS settings of this process, as uvicorn makes them."""
    made = default()
    _contexts.append(made)
    return made


def check(settings: Tls | None) -> None:
    """That certificate and key can be read and belong together, and the authority be read. Raises `InvalidInput`."""
    if settings is None:
        return
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(trial, settings)
    if settings.client_ca is not None:
        try:
            trial.load_verify_locations(settings.client_ca)
        except (OSError, ssl.SSLError):
            raise InvalidInput(f"{settings.client_ca} holds no certificates in PEM") from None


def renew(settings: Tls | None) -> None:
    """Show the certificate that is in the file now to whoever connects from here on. Raises `InvalidInput`."""
    check(settings)
    if settings is not None:
        for item in _contexts:
            _load(item, settings)


def _load(made: ssl.SSLContext, settings: Tls) -> None:
    try:
        made.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        reason = (error.reason or "not in PEM") if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidInput(
            f"certificate {settings.certificate} and key {settings.key} cannot be used together: {reason}"
        ) from None

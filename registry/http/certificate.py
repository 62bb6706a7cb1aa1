"""The client certificate of a connection. Its chain has been verified by the TLS handshake against the authority in
the configuration: a connection with another certificate is never made."""

from __future__ import annotations

from cryptography import x509
from starlette.types import Scope

from registry.http.connection import EXTENSION, Connection


def subject_of(scope: Scope) -> str | None:
    """The subject of the client's certificate, as RFC 4514 writes it; None if it has shown none."""
    connection = scope.get("extensions", {}).get(EXTENSION)
    if not isinstance(connection, Connection) or connection.transport is None:
        return None
    tls = connection.transport.get_extra_info("ssl_object")
    raw = tls.getpeercert(binary_form=True) if tls is not None else None
    return x509.load_der_x509_certificate(raw).subject.rfc4514_string() if raw else None

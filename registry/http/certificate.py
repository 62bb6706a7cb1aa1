"""Client certificates: of the connection itself, or of the connection to a proxy that passes the certificate on.

The chain of a connection's own certificate has been verified by the TLS handshake against the authority in the
configuration: a connection with another certificate is never made. A certificate that a proxy passes on is believed of
trusted proxies alone, and its chain is verified here once more: some proxies pass on what they have not verified.
Source: RFC 9440; nginx, ``$ssl_client_escaped_cert``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import time
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError
from starlette.types import Scope

from artifact.errors import InvalidInput, Unauthorized
from registry.config.sections import ForwardedCertificate
from registry.http.connection import EXTENSION, Connection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_HEADER = 24 * 1024
_REMEMBERED = 1024
_FRESH = 60.0  # seconds for which a certificate is not verified again


class Certificates:
    """Who has shown a client certificate. `proxies` are those that may pass one on as `forwarded` says. Raises
    `InvalidInput` if the authority cannot be read."""

    def __init__(self, forwarded: ForwardedCertificate | None = None, proxies: Sequence[Network] = ()) -> None:
        self._header = forwarded.header.encode("ascii") if forwarded is not None else b""
        self._authority = _authority(forwarded) if forwarded is not None else None
        self._proxies = tuple(proxies)
        self._known: dict[bytes, tuple[float, str]] = {}

    def subject_of(self, scope: Scope) -> str | None:
        """The subject of the client's certificate, as RFC 4514 writes it; None if there is none, or if it was not one
        of the trusted proxies that passed it on. Raises `Unauthorized` on one that proves nothing."""
        own = _of_connection(scope)
        if own is not None or self._authority is None:
            return own
        values = [value for key, value in scope["headers"] if key == self._header and value]
        if not values or not self._trusts(scope):
            return None
        if len(values) > 1 or len(values[0]) > _MAX_HEADER:
            raise Unauthorized("the client certificate that the proxy passed on cannot be read")
        until, subject = self._known.get(values[0], (0.0, ""))
        if until < time.monotonic():
            subject = _verified(values[0], self._authority)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[values[0]] = (time.monotonic() + _FRESH, subject)
        return subject

    def _trusts(self, scope: Scope) -> bool:
        """Whether the request comes from a trusted proxy: by the address of the connection, not by any header."""
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except (TypeError, KeyError, ValueError):
            return False
        return any(address in network for network in self._proxies)


def _of_connection(scope: Scope) -> str | None:
    connection = scope.get("extensions", {}).get(EXTENSION)
    if not isinstance(connection, Connection) or connection.transport is None:
        return None
    tls = connection.transport.get_extra_info("ssl_object")
    raw = tls.getpeercert(binary_form=True) if tls is not None else None
    return x509.load_der_x509_certificate(raw).subject.rfc4514_string() if raw else None


def _authority(forwarded: ForwardedCertificate) -> Store:
    file = forwarded.client_ca
    try:
        return Store(x509.load_pem_x509_certificates(file.read_bytes()))
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise InvalidInput(f"{file} holds no certificates in PEM") from None


def read_certificate(value: bytes) -> x509.Certificate:
    """The certificate in a header: DER in base64 between colons (RFC 9440 section 2.1), or PEM with percent-encoding
    (nginx). Raises `Unauthorized`."""
    try:
        if value.startswith(b":"):
            if len(value) < 3 or not value.endswith(b":"):
                raise ValueError
            return x509.load_der_x509_certificate(base64.b64decode(value[1:-1], validate=True))
        return x509.load_pem_x509_certificate(unquote_to_bytes(value))
    except (ValueError, binascii.Error):
        raise Unauthorized("the client certificate that the proxy passed on cannot be read") from None


def _verified(value: bytes, authority: Store) -> str:
    certificate = read_certificate(value)
    # Clients are named by their subjects, so nothing is asked of the alternative names that the web demands.
    leaf = ExtensionPolicy.permit_all().may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_clients)
    issuer = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _an_authority)
    builder = PolicyBuilder().store(authority).extension_policies(
        ca_policy=issuer.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates), ee_policy=leaf
    )  # fmt: skip
    try:
        builder.build_client_verifier().verify(certificate, [])
        return certificate.subject.rfc4514_string()
    except (VerificationError, ValueError):
        raise Unauthorized("the client certificate is not of the authority trusted here, or not for now") from None


def _for_clients(_policy: object, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    allowed = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if usage is not None and not any(item in allowed for item in usage):
        raise ValueError("not for clients")


def _an_authority(_policy: object, _certificate: x509.Certificate, basic: x509.BasicConstraints) -> None:
    if not basic.ca:
        raise ValueError("not an authority")


def _signs_certificates(_policy: object, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("not an authority")

"""Whom a keyless signature is by: what its certificate says, once that is to be believed.

A certificate of Fulcio names a person or a workflow in its one subject alternative name, and who vouches for the name
in an extension. Source: sigstore/fulcio, docs/certificate-specification.md and docs/oid-info.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1

from artifact.errors import Malformed
from supplychain.bundle import Bundle
from supplychain.dsse import pae
from supplychain.logentry import Signed, logged_at
from supplychain.refusal import Reason
from supplychain.timestamp import stamped_at
from supplychain.trustroot import TrustRoot

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_OLD_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_OTHER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_MAX_NAME = 2048


@dataclass(frozen=True)
class Identity:
    """Someone an OpenID Connect issuer knows. `roots` are the fingerprints of the trust roots that say so."""

    name: str
    issuer: str
    roots: frozenset[str] = frozenset()

    @property
    def person(self) -> tuple[str, str]:
        """Name and issuer: the same person whichever root says so."""
        return self.name, self.issuer

    def __str__(self) -> str:
        return f"{_shown(self.name)} (by {_shown(self.issuer)})"


@dataclass(frozen=True)
class Certified:
    """A keyless signature that holds. `time` is when it is proven to have been there, within its certificate's few
    minutes."""

    identity: Identity
    time: datetime


@dataclass(frozen=True)
class Sealed:
    """A signature with everything that came with it: the certificate (DER), log entries and timestamps, and the bundle
    (`raw`) it was in."""

    signed: Signed
    certificate: bytes
    log_entries: Sequence[Mapping[str, Any]]
    timestamps: Mapping[str, Any]
    raw: bytes = field(repr=False)

    @classmethod
    def of(cls, bundle: Bundle) -> Sealed:
        """The one signature of the envelope in a keyless bundle."""
        assert bundle.certificate is not None
        signed = Signed.of(bundle.envelope, bundle.certificate)
        return cls(signed, bundle.certificate, bundle.log_entries, bundle.timestamps, bundle.raw)


class NotCertified(Exception):
    """A keyless signature that does not hold, with the `Reason`."""

    def __init__(self, code: Reason, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def certify(sealed: Sealed, roots: Iterable[TrustRoot]) -> Certified:
    """Whom the certificate of a signature names, if the signature is by its key, it leads to a trust root with a
    certificate timestamp of its log, a log holds an entry of this very signature, and it was valid at the time.

    What was signed is for the caller to judge. A function of its arguments: it asks nobody and reads no clock.
    Raises `NotCertified`, with what a root that knows its issuer says against it.
    """
    found: Certified | None = None
    refused = NotCertified(Reason.UNKNOWN_SIGNER, "a keyless signature; the policy names keys")
    for root in roots:
        try:
            one = _remembered(sealed, root)
        except NotCertified as error:
            # What a root that knows the signer says is worth more than that another does not.
            refused = error if refused.code is Reason.UNKNOWN_SIGNER else refused
            continue
        roots_ = one.identity.roots | (found.identity.roots if found else frozenset())
        found = Certified(Identity(one.identity.name, one.identity.issuer, roots_), one.time)
    if found is None:
        raise refused
    return found


_MEMORY = 4096
_outcomes: dict[tuple[bytes, str, str], Certified | NotCertified] = {}


def _remembered(sealed: Sealed, root: TrustRoot) -> Certified:
    """`_certified`, worked out once: a decision asks about the same bundle as a signature and as an attestation."""
    key = (hashlib.sha256(sealed.raw).digest(), sealed.signed.data_sha256, root.fingerprint)
    outcome = _outcomes.get(key)
    if outcome is None:
        try:
            outcome = _certified(sealed, root)
        except NotCertified as error:
            outcome = NotCertified(error.code, str(error))  # without the frames of the one that was raised
        except Exception as error:  # parsers of certificates raise all kinds of things: none of them is a good sign
            outcome = NotCertified(Reason.MALFORMED, f"the certificate cannot be read: {_line(error)}")
        if len(_outcomes) >= _MEMORY:
            _outcomes.clear()
        _outcomes[key] = outcome
    if isinstance(outcome, NotCertified):
        raise NotCertified(outcome.code, str(outcome))
    return outcome


def _certified(sealed: Sealed, root: TrustRoot) -> Certified:
    certificate = x509.load_der_x509_certificate(sealed.certificate)
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _check_issuer(certificate, root)
    times = _times(sealed, root)
    if not times:
        raise NotCertified(Reason.NO_TIME, "neither a log's promise nor a timestamp says when it was made")
    if not all(not_before <= time <= not_after for time in times):
        raise NotCertified(
            Reason.EXPIRED_CERTIFICATE,
            f"made at {min(times):%Y-%m-%dT%H:%M:%SZ}, when its certificate was not valid "
            f"({not_before:%Y-%m-%dT%H:%M:%SZ} to {not_after:%Y-%m-%dT%H:%M:%SZ})",
        )
    _check_with_sigstore(sealed, root)
    try:
        name, issuer = _name(certificate), _issuer(certificate)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise NotCertified(Reason.MALFORMED, f"the certificate names nobody: {error}") from None
    return Certified(Identity(name, issuer, frozenset({root.fingerprint})), min(times))


def _check_issuer(certificate: x509.Certificate, root: TrustRoot) -> None:
    """Tell a stranger's certificate from one that is wrong; whether it leads to the root sigstore checks."""
    for authority in root.authorities:
        try:
            certificate.verify_directly_issued_by(authority)
            return
        except (ValueError, TypeError, InvalidSignature):
            continue
    issuer = _shown(certificate.issuer.rfc4514_string())
    raise NotCertified(
        Reason.UNKNOWN_SIGNER, f"its certificate is by {issuer[:200]}, whom the trust root does not name"
    )


def _times(sealed: Sealed, root: TrustRoot) -> list[datetime]:
    if not sealed.log_entries:
        raise NotCertified(Reason.LOG_ENTRY, "it is in no transparency log: the bundle has no log entry")
    try:
        stamped = stamped_at(sealed.timestamps, sealed.signed.signature, root)
    except Malformed as error:
        raise NotCertified(Reason.MALFORMED, str(error)) from None
    try:
        logged = [logged_at(entry, sealed.signed, root, stamped) for entry in sealed.log_entries]
    except Malformed as error:
        raise NotCertified(Reason.LOG_ENTRY, str(error)) from None
    return [*(time for time in logged if time is not None), *stamped]


def _check_with_sigstore(sealed: Sealed, root: TrustRoot) -> None:
    """The chain at the time of the signature, the certificate's timestamp, its profile, the log entry and the
    signature, as sigstore's own library sees them."""
    from sigstore import models
    from sigstore.errors import CertValidationError
    from sigstore.hashes import Hashed
    from sigstore_models.common.v1 import HashAlgorithm

    try:
        read = models.Bundle.from_json(sealed.raw)
        if sealed.signed.payload is None:
            digest = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(sealed.signed.data_sha256))
            return root.verifier.verify_artifact(digest, read, _Anyone())
        kind, payload = root.verifier.verify_dsse(read, _Anyone())
    except CertValidationError as error:
        raise NotCertified(Reason.UNTRUSTED_CERTIFICATE, _line(error)) from None
    except Exception as error:  # it reads what others wrote: whatever it stumbles over is no good signature
        raise NotCertified(Reason.INVALID_SIGNATURE, _line(error)) from None
    if hashlib.sha256(pae(kind, payload)).hexdigest() != sealed.signed.data_sha256:
        raise NotCertified(Reason.MALFORMED, "two readers of the bundle see two different statements")


class _Anyone:
    """Whom the certificate names is for the policy file to judge, which sigstore does not read."""

    def verify(self, cert: x509.Certificate) -> None:
        """Nothing to say against it."""


def _line(error: Exception) -> str:
    return _shown(" ".join(str(error).split())[:300] or type(error).__name__)


def _name(certificate: x509.Certificate) -> str:
    names: list[str] = []
    for item in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value:
        if isinstance(item, x509.RFC822Name | x509.UniformResourceIdentifier):
            names.append(item.value)
        elif isinstance(item, x509.OtherName) and item.type_id == _OTHER_NAME:
            names.append(asn1.decode_der(str, item.value))
        else:
            raise ValueError("a name of a kind that is not read")
    if len(names) != 1 or not 0 < len(names[0]) <= _MAX_NAME:
        raise ValueError("need exactly one name")
    return names[0]


def _issuer(certificate: x509.Certificate) -> str:
    held: Mapping[x509.ObjectIdentifier, Any] = {item.oid: item.value for item in certificate.extensions}
    stated = set()
    if _ISSUER in held:
        stated.add(asn1.decode_der(str, held[_ISSUER].value))
    if _OLD_ISSUER in held:
        stated.add(held[_OLD_ISSUER].value.decode())
    if len(stated) != 1 or not 0 < len(issuer := stated.pop()) <= _MAX_NAME:
        raise ValueError("need exactly one issuer")
    return issuer


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)

"""Who vouches for whom in a small Sigstore: an OpenID Connect issuer, Fulcio, and a timestamp authority."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUDIENCE = "sigstore"
ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
OLD_ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
ECDSA = ec.ECDSA(hashes.SHA256())
START = {"start": "2020-01-01T00:00:00Z"}


class Refusal(Exception):
    """The request is not good; the text says why."""


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def spki(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


class Clock:
    """What time it is, moved by `offset`."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return (datetime.now(UTC) + self.offset).replace(microsecond=0)


class Issuer:
    """Who knows people and workflows, and says so in signed tokens."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.url = ""

    def token(self, subject: str, *, audience: str = AUDIENCE, lifetime: int = 300, **claims: Any) -> str:
        now = int(time.time())
        value = {"iss": self.url, "sub": subject, "aud": audience, "iat": now, "exp": now + lifetime, **claims}
        return jwt.encode(value, self.key, algorithm="ES256", headers={"kid": "1"})

    def configuration(self) -> dict[str, Any]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def keys(self) -> dict[str, Any]:
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**key, "kid": "1", "use": "sig", "alg": "ES256"}]}


class Authority:
    """A certificate authority: a root and the key below it that issues."""

    def __init__(self, name: str, purpose: x509.ObjectIdentifier) -> None:
        root_key = ec.generate_private_key(ec.SECP256R1())
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._ca(f"{name} root", root_key, f"{name} root", root_key, None)
        self.certificate = self._ca(name, self.key, f"{name} root", root_key, purpose)

    @staticmethod
    def _ca(
        name: str, key: ec.EllipticCurvePrivateKey, by: str, by_key: ec.EllipticCurvePrivateKey,
        purpose: x509.ObjectIdentifier | None,
    ) -> x509.Certificate:  # fmt: skip
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        builder = (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called(by))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2049, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(True, 0 if purpose else 1), True)
            .add_extension(usage(sign=False), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), False)
        )
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), False)
        return builder.sign(by_key, hashes.SHA256())

    def chain(self) -> dict[str, Any]:
        encoded = [item.public_bytes(serialization.Encoding.DER) for item in (self.certificate, self.root)]
        return {"certificates": [{"rawBytes": b64(item)} for item in encoded]}


def usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, False, False, False, not sign, not sign, False, False)


class Fulcio:
    """Issues certificates of ten minutes to whoever shows a token and holds the key."""

    def __init__(self, clock: Clock, issuer: Issuer) -> None:
        self.clock, self.issuer = clock, issuer
        self.authority = Authority("fulcio", ExtendedKeyUsageOID.CODE_SIGNING)
        self.ct_key = ec.generate_private_key(ec.SECP256R1())

    def signing_cert(self, token: str, body: dict[str, Any]) -> dict[str, Any]:
        claims = self._claims(token)
        request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
        if not request.is_signature_valid:
            raise Refusal("the request does not prove possession of the key")
        certificate = self.issue(request.public_key(), str(claims.get("email") or claims["sub"]), str(claims["iss"]))
        chain = (certificate, self.authority.certificate, self.authority.root)
        pems = [item.public_bytes(serialization.Encoding.PEM).decode() for item in chain]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": pems}}}

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that this Fulcio's one issuer has signed."""
        if jwt.decode(token, options={"verify_signature": False}).get("iss") != self.issuer.url:
            raise Refusal("the token is by an issuer that is not configured")
        keys = jwt.PyJWKClient(self.issuer.configuration()["jwks_uri"])
        required = {"require": ["exp", "iat", "iss", "aud", "sub"]}
        key = keys.get_signing_key_from_jwt(token)
        try:
            return jwt.decode(token, key, ["ES256"], audience=AUDIENCE, issuer=self.issuer.url, options=required)
        except jwt.PyJWTError as error:
            raise Refusal(f"the token is not good: {error}") from None

    def issue(
        self, key: Any, name: str, issuer: str, *, lifetime: timedelta = timedelta(minutes=10), sct: bool = True,
        names: tuple[x509.GeneralName, ...] | None = None,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
    ) -> x509.Certificate:  # fmt: skip
        now = self.clock.now()
        kind = x509.RFC822Name if "@" in name and "://" not in name else x509.UniformResourceIdentifier
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + lifetime)
            .add_extension(usage(sign=True), True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.key.public_key()), False)
            .add_extension(x509.SubjectAlternativeName(names or (kind(name),)), True)
            .add_extension(x509.UnrecognizedExtension(OLD_ISSUER_OID, issuer.encode()), False)
            .add_extension(x509.UnrecognizedExtension(ISSUER_OID, asn1.encode_der(issuer)), False)
        )
        if sct:
            precertificate = builder.sign(self.authority.key, hashes.SHA256())
            stamp = self._sct(precertificate.tbs_certificate_bytes)
            builder = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, stamp), False)
        return builder.sign(self.authority.key, hashes.SHA256())

    def _sct(self, tbs: bytes) -> bytes:
        """A list of one certificate timestamp (RFC 6962, section 3.3), as the octet string the extension holds."""
        when = int(self.clock.now().timestamp() * 1000)
        issuer = hashlib.sha256(spki(self.authority.key)).digest()
        entry = struct.pack("!BBQH", 0, 0, when, 1) + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = self.ct_key.sign(entry, ECDSA)
        log_id = hashlib.sha256(spki(self.ct_key)).digest()
        sct = struct.pack("!B32sQH", 0, log_id, when, 0) + struct.pack("!BBH", 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        return asn1.encode_der(listed)


class TimestampAuthority:
    """Stamps what it is shown, by OpenSSL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("timestamps", ExtendedKeyUsageOID.TIME_STAMPING)
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        own = self.authority
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "timestamping")]))
            .issuer_name(own.certificate.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1000))
            .not_valid_after(now + timedelta(days=1000))
            .add_extension(usage(sign=True), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own.key.public_key()), False)
            .sign(own.key, hashes.SHA256())
        )
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / "tsa.key").write_bytes(self.key.private_bytes(serialization.Encoding.PEM, form, plain))
        (folder / "tsa.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "tsa.cnf").write_text(
            "[tsa]\ndefault_tsa = own\n[own]\nserial = serial\ncrypto_device = builtin\nsigner_digest = sha256\n"
            "default_policy = 1.2.3.4.1\ndigests = sha256\naccuracy = secs:1\ness_cert_id_alg = sha256\n"
        )
        (folder / "serial").write_text("01\n")
        self._lock = threading.Lock()

    def stamp(self, query: bytes) -> bytes:
        with self._lock:
            (self.folder / "query").write_bytes(query)
            command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-section", "own", "-queryfile", "query"]
            command += ["-signer", "tsa.pem", "-inkey", "tsa.key", "-out", "reply"]
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=60)
            return (self.folder / "reply").read_bytes()

    def chain(self) -> dict[str, Any]:
        own = {"rawBytes": b64(self.certificate.public_bytes(serialization.Encoding.DER))}
        return {"certificates": [own, *self.authority.chain()["certificates"]]}

"""Signing keys: ECDSA P-256 to sign and verify, Ed25519 to verify.

A location is a file path, or ``env://NAME`` for a key held in an environment variable. Key files are the user's own,
so a bad one is `InvalidInput`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from artifact.errors import InvalidInput, Malformed
from supplychain import keyfile

_ENV = "env://"
_MAX_SIGNATURE = 128
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class PublicKey:
    """A public key, identified by its SubjectPublicKeyInfo in canonical DER."""

    spki: bytes

    @classmethod
    def parse(cls, pem: bytes) -> PublicKey:
        """Read a PEM public key. Raises `InvalidInput` if it is not one, or neither P-256 nor Ed25519."""
        if len(pem) > keyfile.MAX_BYTES:
            raise InvalidInput(f"larger than {keyfile.MAX_BYTES} bytes: not a public key")
        label = keyfile.pem_label(pem.decode("ascii", "replace"))
        if label is not None and "PRIVATE" in label:
            raise InvalidInput("this is a private key: give the public one (PREFIX.pub)")
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidInput("not a PEM public key (-----BEGIN PUBLIC KEY-----)") from None
        if isinstance(key, ec.EllipticCurvePublicKey):
            if not isinstance(key.curve, ec.SECP256R1):
                raise InvalidInput(f"unsupported curve {key.curve.name}: use P-256")
        elif not isinstance(key, ed25519.Ed25519PublicKey):
            raise InvalidInput("unsupported key type: use ECDSA P-256 or Ed25519")
        return cls._of(key)

    @classmethod
    def load(cls, location: str) -> PublicKey:
        """Read the public key at `location`. Raises `InvalidInput`."""
        raw = _read(location, "public key")
        try:
            return cls.parse(raw)
        except InvalidInput as error:
            raise InvalidInput(f"{location}: {error}") from None

    @classmethod
    def _of(cls, key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> PublicKey:
        # Written anew so that one key has one identity however its point was encoded.
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return cls(key.public_bytes(serialization.Encoding.DER, form))

    @property
    def pem(self) -> bytes:
        """The key as a PEM file."""
        body = base64.b64encode(self.spki).decode()
        lines = [body[at : at + 64] for at in range(0, len(body), 64)]
        return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]).encode()

    @property
    def hint(self) -> str:
        """base64 of the SHA-256 of the SPKI: what a bundle names the key by, and its fingerprint in policies."""
        return base64.b64encode(hashlib.sha256(self.spki).digest()).decode()

    @cached_property
    def _key(self) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        key = serialization.load_der_public_key(self.spki)
        assert isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
        return key

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is this key's over `data`: ECDSA (DER) with SHA-256, or pure Ed25519."""
        if len(signature) > _MAX_SIGNATURE:
            return False
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, data, _ECDSA)
            else:
                self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def verify_digest(self, signature: bytes, sha256: bytes) -> bool:
        """Whether `signature` is this ECDSA key's over data with that SHA-256. An Ed25519 key signs no digests."""
        if len(signature) > _MAX_SIGNATURE or not isinstance(self._key, ec.EllipticCurvePublicKey):
            return False
        try:
            self._key.verify(signature, sha256, ec.ECDSA(Prehashed(hashes.SHA256())))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class LoggedKey(PublicKey):
    """A public key whose signature stands in a transparency log. `roots` are the fingerprints of the trust roots that
    name the log."""

    roots: frozenset[str] = frozenset()


class PrivateKey:
    """An ECDSA P-256 key that signs."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey._of(key.public_key())

    @classmethod
    def new(cls) -> PrivateKey:
        """A fresh key from the operating system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, location: str, password: Callable[[], bytes]) -> PrivateKey:
        """Read the private key at `location`: cosign's encrypted form, or plain PKCS#8 PEM.

        `password` is called only for an encrypted key. Raises `InvalidInput` if there is no usable key or the
        password is wrong.
        """
        text = _read(location, "private key").decode("ascii", "replace")
        label = keyfile.pem_label(text)
        try:
            if label in keyfile.LABELS:
                key = serialization.load_der_private_key(keyfile.unseal(text, password()), None)
            elif label == "PRIVATE KEY":
                key = serialization.load_pem_private_key(text.encode("ascii", "replace"), None)
            elif label == "PUBLIC KEY":
                raise InvalidInput(f"{location} is a public key: give the private one (PREFIX.key)")
            else:
                raise InvalidInput(f"{location} is not a private key that can be used: make one with packager keygen")
        except keyfile.WrongPassword:
            raise InvalidInput(f"wrong password for {location} (COSIGN_PASSWORD or the prompt)") from None
        except (Malformed, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidInput(f"{location} is not a usable private key: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidInput(f"{location}: only ECDSA P-256 keys can sign: make one with packager keygen")
        return cls(key)

    def sign(self, data: bytes) -> bytes:
        """The DER ECDSA signature over the SHA-256 of `data`."""
        return self._key.sign(data, _ECDSA)

    @property
    def pkcs8(self) -> bytes:
        """The unencrypted key as PKCS#8 DER."""
        form = serialization.PrivateFormat.PKCS8
        return self._key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())


def generate(prefix: Path, password: bytes) -> tuple[Path, Path]:
    """Make a key pair: ``PREFIX.key`` (mode 0600, encrypted under `password`) and ``PREFIX.pub``.

    Raises `InvalidInput` if either file exists; then neither is written.
    """
    private_path, public_path = Path(f"{prefix}.key"), Path(f"{prefix}.pub")
    if not private_path.parent.is_dir():
        raise InvalidInput(f"folder {private_path.parent} does not exist: create it first")
    for path in (private_path, public_path):
        if os.path.lexists(path):
            raise _exists(path)
    key = PrivateKey.new()
    _write_new(private_path, keyfile.seal(key.pkcs8, password), 0o600)
    try:
        _write_new(public_path, key.public.pem, 0o644)
    except BaseException:
        private_path.unlink()
        raise
    return private_path, public_path


def _exists(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} exists and is not overwritten: choose another prefix or move it away")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet; it appears complete or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)  # unlike rename, fails if the name is taken
        except FileExistsError:
            raise _exists(path) from None
    finally:
        Path(temporary).unlink()


def _read(location: str, what: str) -> bytes:
    """The bytes at a location, bounded."""
    if location.startswith(_ENV):
        value = os.environ.get(location.removeprefix(_ENV))
        if value is None:
            raise InvalidInput(f"{what} {location}: the environment variable is not set")
        raw = os.fsencode(value)
    elif "://" in location:
        raise InvalidInput(f"{what} {location}: only file paths and env://NAME are supported")
    else:
        try:
            with Path(location).open("rb") as stream:
                raw = stream.read(keyfile.MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a file path"
            raise InvalidInput(f"cannot read {what} {location!r}: {reason}") from None
    if len(raw) > keyfile.MAX_BYTES:
        raise InvalidInput(f"{location} is too large to be a key")
    return raw

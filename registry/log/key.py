"""The key of a log: it signs checkpoints, and what is derived from it seals what replicas write into the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from artifact.errors import InvalidInput
from supplychain.tlog.note import SignerKey, VerifierKey

_MAX_FILE = 64 * 1024


@dataclass(frozen=True)
class LogKey:
    """A log's key, under the log's name. `state_seal` and `tag_seal` are secret keys for HMACs."""

    signer: SignerKey
    state_seal: bytes
    tag_seal: bytes

    @property
    def origin(self) -> str:
        """The name of the log."""
        return self.signer.verifier.name

    @classmethod
    def load(cls, file: Path, origin: str) -> LogKey:
        """Read the private key in a file. Raises `InvalidInput`."""
        try:
            key = load_pem_private_key(_read(file), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(f"{file} is not an Ed25519 private key: make one with registry transparency keygen")
        return cls(SignerKey(origin, key), _derived(key, origin, "log state"), _derived(key, origin, "tag records"))


def generate(file: Path, origin: str) -> VerifierKey:
    """Make a key: the private half in `file`, readable by its owner alone, the verifier key in `file` with ``.pub``.
    Raises `InvalidInput` if either is there."""
    key = Ed25519PrivateKey.generate()
    verifier = SignerKey(origin, key).verifier
    public = file.with_name(f"{file.name}.pub")
    if public.exists():
        raise InvalidInput(f"{public} is there already: choose another name, a key is never replaced")
    _create(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _create(public, f"{verifier}\n".encode(), 0o644)
    return verifier


def verifier_of(text: str) -> VerifierKey:
    """A verifier key, given as itself or as a file that holds it. Raises `InvalidInput`."""
    return VerifierKey.parse(text if "+" in text else _read(Path(text)).decode("utf-8", "replace"))


def _derived(key: Ed25519PrivateKey, origin: str, purpose: str) -> bytes:
    info = f"stowage registry {purpose}\n{origin}".encode()
    return HKDF(SHA256(), 32, None, info).derive(key.private_bytes_raw())


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_FILE)
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None


def _create(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise InvalidInput(f"{file} is there already: choose another name, a key is never replaced") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())

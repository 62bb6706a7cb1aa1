"""Private key files as cosign writes them.

PEM around JSON that names a key derivation (scrypt) and a cipher (NaCl secretbox) over the PKCS#8 DER of the key.
Source: go-securesystemslib, package ``encrypted``; PEM labels from cosign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from typing import Any

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from artifact.errors import Malformed
from artifact.manifest import canonical_json, load_json

LABEL = "ENCRYPTED SIGSTORE PRIVATE KEY"
"""PEM label that is written."""

LABELS = (LABEL, "ENCRYPTED COSIGN PRIVATE KEY")
"""PEM labels that are read; cosign before 2.0 wrote the second."""

MAX_BYTES = 64 * 1024
"""Largest key file that is read, in bytes."""

MAX_SCRYPT_MEMORY = 256 * 1024 * 1024
"""Most memory a key file may make scrypt use (128 * N * r), in bytes."""

_MAX_PARALLEL = 16
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,64})-----([A-Za-z0-9+/=\s]*)-----END \1-----")


class WrongPassword(Exception):
    """The password does not open the key file, or the file was altered: the cipher cannot tell which."""


def pem_label(text: str) -> str | None:
    """The label of the first PEM block in `text`, or None."""
    match = _PEM.search(text)
    return match[1] if match else None


def seal(pkcs8: bytes, password: bytes) -> bytes:
    """`pkcs8` encrypted under `password`, as a PEM file."""
    salt, nonce = os.urandom(32), os.urandom(SecretBox.NONCE_SIZE)
    params = {"N": 65536, "r": 8, "p": 1}
    box = SecretBox(_derive(password, salt, **params))
    document = {
        "kdf": {"name": "scrypt", "params": params, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box.encrypt(pkcs8, nonce).ciphertext).decode(),
    }
    body = base64.b64encode(canonical_json(document)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {LABEL}-----", *lines, f"-----END {LABEL}-----", ""]).encode()


def unseal(text: str, password: bytes) -> bytes:
    """The PKCS#8 DER inside an encrypted key file. Raises `Malformed`, `WrongPassword`."""
    match = _PEM.search(text)
    if match is None or match[1] not in LABELS:
        raise Malformed("not an encrypted private key in cosign's format")
    document = load_json(_base64(match[2], "PEM body"), "encrypted key", MAX_BYTES)
    kdf, cipher = _part(document, "kdf", "scrypt"), _part(document, "cipher", "nacl/secretbox")
    params = _scrypt_params(kdf.get("params"))
    salt = _base64(kdf.get("salt"), "salt")
    nonce = _base64(cipher.get("nonce"), "nonce")
    ciphertext = _base64(document.get("ciphertext"), "ciphertext")
    if len(nonce) != SecretBox.NONCE_SIZE or len(ciphertext) <= SecretBox.MACBYTES:
        raise Malformed("encrypted key: nonce or ciphertext has an impossible length")
    try:
        return bytes(SecretBox(_derive(password, salt, **params)).decrypt(ciphertext, nonce))
    except CryptoError:
        raise WrongPassword from None


def _derive(password: bytes, salt: bytes, N: int, r: int, p: int) -> bytes:  # noqa: N803 - scrypt's own names
    memory = 128 * r * (N + p + 2) + 1024 * 1024
    return hashlib.scrypt(password, salt=salt, n=N, r=r, p=p, maxmem=memory, dklen=SecretBox.KEY_SIZE)


def _scrypt_params(value: Any) -> dict[str, int]:
    """N, r and p from the file, bounded: an unchecked file could ask for any amount of memory and time."""
    if not isinstance(value, dict):
        raise Malformed("encrypted key: kdf.params must be an object")
    cost, block, parallel = (_integer(value, name) for name in ("N", "r", "p"))
    if cost < 2 or cost & (cost - 1) or not 1 <= parallel <= _MAX_PARALLEL or block < 1:
        raise Malformed("encrypted key: scrypt parameters out of range")
    if 128 * cost * block > MAX_SCRYPT_MEMORY:
        raise Malformed(f"encrypted key: scrypt would use more than {MAX_SCRYPT_MEMORY >> 20} MiB")
    return {"N": cost, "r": block, "p": parallel}


def _integer(value: dict[str, Any], name: str) -> int:
    number = value.get(name)
    if not isinstance(number, int) or isinstance(number, bool):
        raise Malformed("encrypted key: scrypt needs the integers N, r and p")
    return number


def _part(document: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    part = document.get(key)
    if not isinstance(part, dict) or part.get("name") != name:
        raise Malformed(f"encrypted key: {key} must be {name}")
    return part


def _base64(value: Any, what: str) -> bytes:
    if not isinstance(value, str):
        raise Malformed(f"encrypted key: {what} must be base64 text")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"encrypted key: {what} is not base64") from None

"""Signed notes, with Ed25519 keys. Source: c2sp.org/signed-note.

A verifier key is text, ``NAME+HASH+BASE64``, as Go's checksum database writes its own (golang.org/x/mod/sumdb/note).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from artifact.errors import InvalidInput, Malformed, Refused

MAX_BYTES = 1024 * 1024
"""Largest note that is read, in bytes."""

MAX_SIGNATURES = 100
"""Most signatures of a note that are looked at."""

_ED25519 = b"\x01"
_DASH = "— "  # an em dash and a space
_HASH = re.compile(r"[0-9a-f]{8}")


class Unsigned(Refused):
    """A note is not signed by the key it must be signed by, or the signature is wrong."""

    code = "unsigned-note"


def is_key_name(text: str) -> bool:
    """Whether `text` can name a key: not empty, no Unicode space, no plus, nothing that cannot be printed."""
    return bool(text) and text.isprintable() and "+" not in text and not any(char.isspace() for char in text)


@dataclass(frozen=True)
class VerifierKey:
    """A public key and its name. `raw` are the 32 bytes of RFC 8032."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """The four bytes that stand before its signatures."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.raw).decode()}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read what `str` writes. Raises `InvalidInput`."""
        name, _, rest = text.strip().partition("+")
        hash_, _, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if not is_key_name(name) or not _HASH.fullmatch(hash_) or raw is None:
            raise InvalidInput(f"not a verifier key (NAME+HASH+BASE64): {text[:80]!r}")
        if raw[:1] != _ED25519 or len(raw) != 33:
            raise InvalidInput(f"the verifier key of {name} is not an Ed25519 key")
        key = cls(name, raw[1:])
        if key.id.hex() != hash_:
            raise InvalidInput(f"the verifier key of {name} is damaged: its hash is {key.id.hex()}, not {hash_}")
        return key

    def accepts(self, signature: bytes, text: str) -> bool:
        """Whether a signature over `text` is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class SignerKey:
    """A private key and its name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        if not is_key_name(name):
            raise InvalidInput(f"not a name for a key: {name[:80]!r} (no spaces and no plus; for example HOST/log)")
        self._key = key
        self.verifier = VerifierKey(name, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """A note with this text, which ends in a newline. The same text always makes the same note."""
        signature = base64.b64encode(self.verifier.id + self._key.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{self.verifier.name} {signature}\n"


@dataclass(frozen=True)
class Signature:
    """A line below a note's text: who signed, with a key of which id."""

    name: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True)
class Note:
    """A text with signatures none of which has been verified."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Note:
        """Read a note. Raises `Malformed`."""
        if len(raw) > MAX_BYTES:
            raise Malformed(f"a note of more than {MAX_BYTES} bytes")
        try:
            note = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("a note that is not UTF-8") from None
        if any(char < " " and char != "\n" for char in note):
            raise Malformed("a note with control characters")
        text, blank, below = note.rpartition("\n\n")
        if not blank or not below.endswith("\n"):
            raise Malformed("a note without signatures")
        lines = below[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise Malformed(f"a note with more than {MAX_SIGNATURES} signatures")
        return cls(text + "\n", tuple(map(_signature, lines)))

    def verified(self, keys: Sequence[VerifierKey]) -> str:
        """The text, if one of `keys` has signed it and none of them has a signature on it that is wrong. Raises
        `Unsigned`."""
        signed = False
        for signature in self.signatures:
            for key in keys:
                if (key.name, key.id) != (signature.name, signature.key_id):
                    continue
                if not key.accepts(signature.value, self.text):
                    raise Unsigned(f"the signature of {key.name} on a note is wrong: it was changed, or is another's")
                signed = True
        if not signed:
            names = ", ".join(key.name for key in keys)
            raise Unsigned(f"a note is not signed by the key it must be signed by ({names})")
        return self.text


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _decoded(encoded)
    if not line.startswith(_DASH) or not is_key_name(name) or raw is None or len(raw) < 5:
        raise Malformed(f"not a signature line of a note: {line[:80]!r}")
    return Signature(name, raw[:4], raw[4:])


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None

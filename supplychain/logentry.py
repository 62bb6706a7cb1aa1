"""Entries of a Rekor transparency log, as bundles carry them: whether the log holds one, since when, and about what.

Source: sigstore/protobuf-specs, sigstore_rekor.proto; the note of a checkpoint is C2SP's signed-note, its proof
RFC 6962's. An entry counts only for the very signature, signer and payload it was made of (CVE-2026-22703): a genuine
entry of something else proves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from artifact.errors import Malformed
from artifact.manifest import load_json
from artifact.merkle import check_inclusion, leaf_hash
from supplychain.dsse import Envelope, decode_base64, exact_object
from supplychain.trustroot import Log, TrustRoot

_MAX_BODY = 256 * 1024
_MAX_CHECKPOINT = 16 * 1024
_MAX_NUMBER = 2**63
_FIELDS = {
    "logIndex", "logId", "kindVersion", "integratedTime", "inclusionPromise", "inclusionProof", "canonicalizedBody",
}  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """What an entry has to be about: a signature, who made it (the DER of a certificate or of a public key), and what
    it is over. `payload` is that of a DSSE envelope, None for a signature over plain bytes."""

    signature: bytes
    signer: bytes
    data_sha256: str
    payload: bytes | None = None

    @classmethod
    def of(cls, envelope: Envelope, signer: bytes) -> Signed:
        """The one signature of `envelope`, by `signer`."""
        digest = hashlib.sha256(envelope.signed_bytes).hexdigest()
        return cls(envelope.signatures[0], signer, digest, envelope.payload)


def logged_at(
    entry: Mapping[str, Any], signed: Signed, root: TrustRoot, stamped: Sequence[datetime] = ()
) -> datetime | None:
    """Check that a log of `root` holds `entry` and that it is about `signed`; when the log says it was added, None if
    the log does not say so with its signature: then one of the times at which timestamp authorities saw the signature,
    `stamped`, must lie in the period of a log whose key has ceased to count.

    Raises `Malformed` if the entry does not count, whatever the reason.
    """
    fields = exact_object(entry, "log entry", _FIELDS)
    body = decode_base64(fields.get("canonicalizedBody"), "the body of a log entry")
    log = root.logs.get(decode_base64(_object(fields, "logId").get("keyId"), "the identifier of a log"))
    if log is None:
        raise Malformed("the log entry is of a log that the trust root does not name")
    _check_proof(_object(fields, "inclusionProof"), body, log)
    _check_body(body, _object(fields, "kindVersion"), signed)
    if not _object(fields, "inclusionPromise"):
        if log.valid.end is not None and not any(time in log.valid for time in stamped):
            raise Malformed("nothing proves that the log entry is of a time at which the log's key counted")
        return None
    return _promised(fields, body, log)


def _promised(fields: Mapping[str, Any], body: bytes, log: Log) -> datetime:
    """The time in a signed entry timestamp (Rekor's API, version 1)."""
    when, index = _number(fields, "integratedTime"), _number(fields, "logIndex")
    promise = _object(fields, "inclusionPromise").get("signedEntryTimestamp")
    # RFC 8785 of an object of short ASCII texts and small numbers is this.
    said = {"body": base64.b64encode(body).decode(), "integratedTime": when, "logID": log.id.hex(), "logIndex": index}
    text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    if not log.verify(decode_base64(promise, "an inclusion promise"), text):
        raise Malformed("the log's promise to include the entry is not signed by the log")
    try:
        time = datetime.fromtimestamp(when, UTC)
    except (ValueError, OverflowError, OSError):
        raise Malformed("the log entry's time is out of range") from None
    if time not in log.valid:
        raise Malformed("the log entry is of a time at which the log's key does not count")
    return time


def _check_proof(proof: Mapping[str, Any], body: bytes, log: Log) -> None:
    checkpoint = _object(proof, "checkpoint").get("envelope")
    if not isinstance(checkpoint, str) or not checkpoint:
        raise Malformed("the log entry has no inclusion proof with a checkpoint")
    size, root = _checkpoint(checkpoint, log)
    if (size, root) != (_number(proof, "treeSize"), decode_base64(proof.get("rootHash"), "a root hash")):
        raise Malformed("the inclusion proof is for another tree than the log's checkpoint")
    nodes = proof.get("hashes", [])
    if not isinstance(nodes, list) or len(nodes) > 64:
        raise Malformed("the inclusion proof is not a list of at most 64 nodes")
    path = [decode_base64(node, "a node of the inclusion proof") for node in nodes]
    check_inclusion(leaf_hash(body), _number(proof, "logIndex"), size, path, root)


def _checkpoint(text: str, log: Log) -> tuple[int, bytes]:
    """The size and root hash in a checkpoint that `log` has signed. Raises `Malformed`."""
    note, separator, signatures = text.partition("\n\n")
    lines = note.split("\n")
    if len(text) > _MAX_CHECKPOINT or not separator or len(lines) < 3 or not lines[0]:
        raise Malformed("the checkpoint is not a signed note of origin, size and root hash")
    signed = f"{note}\n".encode()
    for line in signatures.splitlines():
        dash, name, raw = (*line.split(" "), "", "")[:3]
        if dash != "\u2014" or not raw or line.count(" ") != 2:
            raise Malformed("a signature of the checkpoint cannot be read")
        signature = decode_base64(raw, "a signature of the checkpoint")
        # A log signs in its own name, which the origin begins with; other lines are those of witnesses.
        if name == lines[0].partition(" ")[0] and signature[:4] == log.id[:4] and log.verify(signature[4:], signed):
            break
    else:
        raise Malformed("the checkpoint is not signed by the log")
    if not (lines[1].isascii() and lines[1].isdecimal() and len(lines[1]) < 20):
        raise Malformed("the checkpoint has no size")
    return int(lines[1]), decode_base64(lines[2], "the checkpoint's root hash")


def _check_body(body: bytes, kind_version: Mapping[str, Any], signed: Signed) -> None:
    value = load_json(body, "the body of a log entry", _MAX_BODY)
    kind, version = value.get("kind"), value.get("apiVersion")
    if (kind, version) != (kind_version.get("kind"), kind_version.get("version")):
        raise Malformed("the log entry is of another kind than the bundle says")
    check = _KINDS.get((str(kind), str(version)))
    if check is None:
        raise Malformed(f"a log entry of kind {str(kind)[:40]!r} {str(version)[:20]!r} is not read")
    check(_object(value, "spec"), signed)


def _check_dsse(spec: Mapping[str, Any], signed: Signed) -> None:
    payload = _object(spec, "payloadHash")
    expected = hashlib.sha256(signed.payload).hexdigest() if signed.payload is not None else None
    if payload.get("algorithm") != "sha256" or expected is None or payload.get("value") != expected:
        raise _other("payload")
    listed = spec.get("signatures")
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise _other("signature")
    _check_same(listed[0].get("signature"), _pem(listed[0].get("verifier")), signed)


def _check_hashedrekord(spec: Mapping[str, Any], signed: Signed) -> None:
    hash_ = _object(_object(spec, "data"), "hash")
    if (hash_.get("algorithm"), hash_.get("value")) != ("sha256", signed.data_sha256):
        raise _other("payload")
    signature = _object(spec, "signature")
    _check_same(signature.get("content"), _pem(_object(signature, "publicKey").get("content")), signed)


def _check_hashedrekord_v2(spec: Mapping[str, Any], signed: Signed) -> None:
    inner = _object(spec, "hashedRekordV002")
    data, signature = _object(inner, "data"), _object(inner, "signature")
    digest = decode_base64(data.get("digest"), "the digest in a log entry").hex()
    if (data.get("algorithm"), digest) != ("SHA2_256", signed.data_sha256):
        raise _other("payload")
    verifier = _object(signature, "verifier")
    held = _object(verifier, "x509Certificate") or _object(verifier, "publicKey")
    _check_same(signature.get("content"), decode_base64(held.get("rawBytes"), "the signer in a log entry"), signed)


_KINDS = {
    ("dsse", "0.0.1"): _check_dsse,
    ("hashedrekord", "0.0.1"): _check_hashedrekord,
    ("hashedrekord", "0.0.2"): _check_hashedrekord_v2,
}


def _check_same(signature: Any, signer: bytes, signed: Signed) -> None:
    if decode_base64(signature, "the signature in a log entry") != signed.signature:
        raise _other("signature")
    if signer != signed.signer:
        raise _other("signer")


def _other(what: str) -> Malformed:
    return Malformed(f"the log entry is about another {what}")


def _pem(value: Any) -> bytes:
    """The DER of a certificate or public key kept as base64 of PEM."""
    pem = decode_base64(value, "the signer in a log entry")
    try:
        if b"CERTIFICATE" in pem[:64]:
            return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        key = serialization.load_pem_public_key(pem)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise Malformed("the signer in a log entry is neither a certificate nor a public key") from None
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise Malformed(f"log entry: {name} must be an object")
    return value


def _number(fields: Mapping[str, Any], name: str) -> int:
    """A 64-bit number as protobuf's JSON writes it: text. Left out, it is 0."""
    value = fields.get(name, "0")
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < _MAX_NUMBER):
        raise Malformed(f"log entry: {name} must be a number")
    return int(text)

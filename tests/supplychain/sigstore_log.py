"""The log of a small Sigstore: Rekor, with its API 1 and 2."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from artifact import merkle
from supplychain.dsse import pae
from tests.supplychain.sigstore_identity import ECDSA, START, Clock, Refusal, b64, spki

ORIGIN = "127.0.0.1"
"""The name a log signs with: that of its host."""


class Rekor:
    """A log over a Merkle tree that grows, with a signed checkpoint for every entry."""

    def __init__(self, clock: Clock, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self.clock, self.key = clock, key
        self.id = hashlib.sha256(spki(key)).digest()
        self.leaves: list[bytes] = []
        self._lock = threading.Lock()

    def sign(self, data: bytes) -> bytes:
        key = self.key
        return key.sign(data, ECDSA) if isinstance(key, ec.EllipticCurvePrivateKey) else key.sign(data)

    def add(self, body: bytes) -> dict[str, Any]:
        """Append an entry; its number and proof, in the names of the API."""
        with self._lock:
            self.leaves.append(merkle.leaf_hash(body))
            index, size = len(self.leaves) - 1, len(self.leaves)
            root = merkle.root_hash(self.leaves)
            proof = merkle.inclusion_proof(self.leaves, index)
        note = f"{ORIGIN} - 1\n{size}\n{b64(root)}\n"
        signature = b64(self.id[:4] + self.sign(note.encode()))
        checkpoint = f"{note}\n\u2014 {ORIGIN} {signature}\n"
        return {"index": index, "size": size, "root": root, "proof": proof, "checkpoint": checkpoint}

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """``POST /api/v1/log/entries``."""
        body = self.body(request)
        raw = canonical(body)
        added, when = self.add(raw), int(self.clock.now().timestamp())
        said = {"body": b64(raw), "integratedTime": when, "logID": self.id.hex(), "logIndex": added["index"]}
        proof = {
            "logIndex": added["index"], "treeSize": added["size"], "rootHash": added["root"].hex(),
            "hashes": [node.hex() for node in added["proof"]], "checkpoint": added["checkpoint"],
        }  # fmt: skip
        promise = {"signedEntryTimestamp": b64(self.sign(canonical(said))), "inclusionProof": proof}
        return {f"{1:016x}{merkle.leaf_hash(raw).hex()}": {**said, "verification": promise}}

    @staticmethod
    def body(request: dict[str, Any]) -> dict[str, Any]:
        """The entry that a proposed one becomes. Only the two kinds that sigstore's clients send."""
        spec, kind = request["spec"], request["kind"]
        if kind == "hashedrekord":
            return {"apiVersion": "0.0.1", "kind": kind, "spec": spec}
        if kind != "dsse":
            raise Refusal(f"unknown kind {kind}")
        proposed = spec["proposedContent"]
        envelope, pem = json.loads(proposed["envelope"]), base64.b64decode(proposed["verifiers"][0])
        payload, signature = base64.b64decode(envelope["payload"]), envelope["signatures"][0]["sig"]
        named = b"CERTIFICATE" in pem
        key = x509.load_pem_x509_certificate(pem).public_key() if named else serialization.load_pem_public_key(pem)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(base64.b64decode(signature), pae(envelope["payloadType"], payload), ECDSA)
        except InvalidSignature:
            raise Refusal("the signature is not by the certificate's key") from None
        digests = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(proposed["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
        }
        listed = [{"signature": signature, "verifier": b64(pem)}]
        return {"apiVersion": "0.0.1", "kind": "dsse", "spec": {**digests, "signatures": listed}}

    def create_v2(self, request: dict[str, Any]) -> dict[str, Any]:
        """``POST /api/v2/log/entries``: no promise, and no time."""
        asked = request["hashedRekordRequestV002"]
        inner = {"data": {"algorithm": "SHA2_256", "digest": asked["digest"]}, "signature": asked["signature"]}
        body = {"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": inner}}
        raw = canonical(body)
        added = self.add(raw)
        proof = {
            "logIndex": str(added["index"]), "treeSize": str(added["size"]), "rootHash": b64(added["root"]),
            "hashes": [b64(node) for node in added["proof"]], "checkpoint": {"envelope": added["checkpoint"]},
        }  # fmt: skip
        return {
            "logIndex": str(added["index"]), "logId": {"keyId": b64(self.id)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "inclusionProof": proof, "canonicalizedBody": b64(raw),
        }  # fmt: skip

    def instance(self, url: str) -> dict[str, Any]:
        details = "PKIX_ED25519" if isinstance(self.key, ed25519.Ed25519PrivateKey) else "PKIX_ECDSA_P256_SHA_256"
        return log_instance(url, spki(self.key), details)


def canonical(value: Any) -> bytes:
    """JSON as RFC 8785 has it, for values like these."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def log_instance(url: str, der: bytes, details: str) -> dict[str, Any]:
    key = {"rawBytes": b64(der), "keyDetails": details, "validFor": dict(START)}
    log_id = {"keyId": b64(hashlib.sha256(der).digest())}
    return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": key, "logId": log_id}

"""A small Sigstore on loopback: an OpenID Connect issuer, Fulcio, Rekor (API 1 and 2) and a timestamp authority.

Everything a verifier checks is real: tokens are verified against the issuer's published keys, certificates carry a
certificate timestamp, and the log grows a Merkle tree under signed checkpoints. What is missing is only what would make
it fit for use: storage, rate limits, key care. `clock` is what the services take the time to be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

from artifact.mediatypes import IN_TOTO, SIGSTORE_BUNDLE
from supplychain.dsse import pae
from supplychain.keys import PublicKey
from tests.supplychain.sigstore_identity import (
    ECDSA,
    START,
    Clock,
    Fulcio,
    Issuer,
    Refusal,
    TimestampAuthority,
    b64,
    spki,
)
from tests.supplychain.sigstore_log import Rekor, log_instance


class Sigstore:
    """All of them behind one address on loopback, and the files that tell clients about them."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.issuer = Clock(), Issuer()
        self.fulcio = Fulcio(self.clock, self.issuer)
        self.rekor = Rekor(self.clock, ec.generate_private_key(ec.SECP256R1()))
        self.rekor_v2 = Rekor(self.clock, ed25519.Ed25519PrivateKey.generate())
        self.tsa = TimestampAuthority(folder)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.issuer.url = f"{self.url}/oidc"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Sigstore]:
        """The services, until the block is left."""
        services = cls(folder)
        try:
            yield services
        finally:
            services.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trusted_root(self) -> dict[str, Any]:
        def authority(chain: dict[str, Any]) -> dict[str, Any]:
            return {
                "subject": {"organization": "test", "commonName": "test"},
                "certChain": chain,
                "validFor": dict(START),
            }

        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.rekor.instance(self.url), self.rekor_v2.instance(f"{self.url}/2")],
            "certificateAuthorities": [authority(self.fulcio.authority.chain())],
            "ctlogs": [log_instance(f"{self.url}/ct", spki(self.fulcio.ct_key), "PKIX_ECDSA_P256_SHA_256")],
            "timestampAuthorities": [authority(self.tsa.chain())],
        }

    def trust_config(self, rekor: int = 1, *, tsa: bool = False) -> dict[str, Any]:
        """A client trust config; `rekor` is the version of the log's API to sign with."""

        def service(path: str, version: int = 1) -> list[dict[str, Any]]:
            return [{"url": self.url + path, "majorApiVersion": version, "operator": "test", "validFor": dict(START)}]

        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service(""), "oidcUrls": service("/oidc"),
            "rekorTlogUrls": service("" if rekor == 1 else "/2", rekor), "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": service("/tsa") if tsa else [], "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return {"mediaType": kind, "trustedRoot": self.trusted_root(), "signingConfig": signing}

    def bundle(
        self, payload: bytes, *, name: str = "alice@example.com", kind: str = IN_TOTO, log: int | None = 1,
        stamp: bool = False, key: ec.EllipticCurvePrivateKey | None = None, certificate: x509.Certificate | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A keyless bundle made by hand, so that any part of it can be another than it should be."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = certificate or self.fulcio.issue(key.public_key(), name, self.issuer.url)
        signature = key.sign(pae(kind, payload), ECDSA)
        envelope = {"payload": b64(payload), "payloadType": kind, "signatures": [{"sig": b64(signature)}]}
        material: dict[str, Any] = {
            "certificate": {"rawBytes": b64(certificate.public_bytes(serialization.Encoding.DER))},
            "tlogEntries": [self.entry(envelope, certificate, log)] if log else [],
        }
        if stamp:
            material["timestampVerificationData"] = {"rfc3161Timestamps": [{"signedTimestamp": self.stamp(signature)}]}
        return {"mediaType": SIGSTORE_BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}

    def stamp(self, signature: bytes) -> str:
        """A timestamp of `signature`, of now whatever the clock says."""
        return b64(
            self.tsa.stamp(
                TimestampRequestBuilder().hash_algorithm(HashAlgorithm.SHA256).data(signature).build().as_bytes()
            )
        )

    def entry(
        self, envelope: dict[str, Any], signer: x509.Certificate | PublicKey, version: int
    ) -> dict[str, Any]:  # fmt: skip
        """A log entry of an envelope signed by `signer`, as a bundle has it."""
        certified = isinstance(signer, x509.Certificate)
        der = signer.public_bytes(serialization.Encoding.DER) if certified else signer.spki
        signature = envelope["signatures"][0]["sig"]
        if version == 2:
            digest = hashlib.sha256(pae(envelope["payloadType"], base64.b64decode(envelope["payload"]))).digest()
            kind = "x509Certificate" if certified else "publicKey"
            verifier = {kind: {"rawBytes": b64(der)}, "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
            asked = {"digest": b64(digest), "signature": {"content": signature, "verifier": verifier}}
            return self.rekor_v2.create_v2({"hashedRekordRequestV002": asked})
        pem = b64(signer.public_bytes(serialization.Encoding.PEM) if certified else signer.pem)
        spec = {"proposedContent": {"envelope": json.dumps(envelope), "verifiers": [pem]}}
        (made,) = self.rekor.create({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}).values()
        proof, promise = made["verification"]["inclusionProof"], made["verification"]["signedEntryTimestamp"]
        return {
            "logIndex": str(made["logIndex"]), "logId": {"keyId": b64(self.rekor.id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"}, "integratedTime": str(made["integratedTime"]),
            "inclusionPromise": {"signedEntryTimestamp": promise},
            "inclusionProof": {
                "logIndex": str(proof["logIndex"]), "rootHash": b64(bytes.fromhex(proof["rootHash"])),
                "treeSize": str(proof["treeSize"]), "hashes": [b64(bytes.fromhex(node)) for node in proof["hashes"]],
                "checkpoint": {"envelope": proof["checkpoint"]},
            },
            "canonicalizedBody": made["body"],
        }  # fmt: skip

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        services = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, lambda: services.get(self.path, self.headers.get("Authorization", "")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(201, lambda: services.post(self.path, self.headers.get("Authorization", ""), body))

            def _answer(self, status: int, make: Callable[[], Any]) -> None:
                try:
                    made = make()
                except Refusal as error:
                    status, made = 400, {"code": 400, "message": str(error)}
                except KeyError:
                    status, made = 404, {"code": 404, "message": "not found"}
                raw = made if isinstance(made, bytes) else json.dumps(made).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None: ...

        return Handler

    def get(self, path: str, authorization: str) -> Any:
        if path.startswith("/github?") and authorization == "bearer request-token":
            audience = path.partition("audience=")[2]
            return {"value": self.issuer.token("https://ci.example/acme/build.yml@refs/heads/main", audience=audience)}
        return {
            "/oidc/.well-known/openid-configuration": self.issuer.configuration,
            "/oidc/keys": self.issuer.keys,
        }[path]()  # fmt: skip

    def post(self, path: str, authorization: str, body: bytes) -> Any:
        if path == "/tsa":
            return self.tsa.stamp(body)
        value = json.loads(body)
        if path == "/api/v2/signingCert":
            return self.fulcio.signing_cert(authorization.removeprefix("Bearer "), value)
        return {"/api/v1/log/entries": self.rekor.create, "/2/api/v2/log/entries": self.rekor_v2.create_v2}[path](value)

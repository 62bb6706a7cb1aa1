"""A small Sigstore on loopback: an OpenID Connect issuer, Fulcio, Rekor (API 1 and 2) and a timestamp authority.

Everything a verifier checks is real: tokens are verified against the issuer's published keys, certificates carry a
certificate timestamp, and the log grows a Merkle tree under signed checkpoints. What is missing is only what would make
it fit for use: storage, rate limits, key care. `clock` is what the services take the time to be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

from artifact import merkle
from artifact.mediatypes import IN_TOTO, SIGSTORE_BUNDLE
from supplychain.dsse import pae
from supplychain.keys import PublicKey

AUDIENCE = "sigstore"
ORIGIN = "127.0.0.1"
"""The name a log signs with: that of its host."""
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


def canonical(value: Any) -> bytes:
    """JSON as RFC 8785 has it, for values like these."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def log_instance(url: str, der: bytes, details: str) -> dict[str, Any]:
    key = {"rawBytes": b64(der), "keyDetails": details, "validFor": START}
    log_id = {"keyId": b64(hashlib.sha256(der).digest())}
    return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": key, "logId": log_id}


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
            return {"subject": {"organization": "test", "commonName": "test"}, "certChain": chain, "validFor": START}

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
            return [{"url": self.url + path, "majorApiVersion": version, "operator": "test", "validFor": START}]

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

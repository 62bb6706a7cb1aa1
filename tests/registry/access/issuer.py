"""A small OpenID Connect issuer on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa


@dataclass
class LocalIssuer:
    """`keys` are what its JWKS shows; `document` overrides its discovery document; `asked` are the paths asked for."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def new_key(self, kid: str, kind: str = "EC") -> None:
        """Another signing key, in the JWKS from now on."""
        self.keys[kid] = (
            ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else rsa.generate_private_key(65537, 2048)
        )

    def token(self, kid: str, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token that is good for a minute, but for `changes` (None removes a claim)."""
        now = int(time.time())
        value = {
            "iss": self.url, "aud": "test-registry", "sub": "repo:acme/model:ref:refs/heads/main", "owner": "acme",
            "iat": now, "nbf": now, "exp": now + 60, **changes,
        }  # fmt: skip
        key = self.keys[kid]
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        claims = {name: item for name, item in value.items() if item is not None}
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid, **(headers or {})})

    def answer(self, path: str) -> dict[str, Any] | None:
        """The document at a path."""
        self.asked.append(path)
        if self.broken:
            return None
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.document}
        return {"keys": [jwk(kid, key) for kid, key in self.keys.items()]} if path == "/keys" else None


def jwk(kid: str, key: Any) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


@contextmanager
def local_issuer() -> Iterator[LocalIssuer]:
    """A running issuer with one EC key, ``k1``."""
    issuer = LocalIssuer()
    issuer.new_key("k1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = issuer.answer(self.path)
            body = json.dumps(found).encode()
            self.send_response(500 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()

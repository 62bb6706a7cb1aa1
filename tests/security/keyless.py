"""What keyless signatures are tried with: a local Sigstore, a policy that requires Alice, and what that decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from artifact.digest import Digest
from artifact.errors import Malformed
from supplychain.bundle import Bundle
from supplychain.decision import Decision, decide
from supplychain.evidence import Evidence, Fault, Form, Item
from supplychain.glob import Target
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.refusal import Reason
from supplychain.statement import COSIGN_SIGN, Statement
from supplychain.trustroot import TrustRoot
from tests.supplychain.sigstore_services import Sigstore

ALICE, BOB = "alice@example.com", "bob@example.com"
SUBJECT, OTHER = Digest("sha256", "ab" * 32), Digest("sha256", "cd" * 32)
PAYLOAD = Statement.about(SUBJECT, COSIGN_SIGN).to_bytes()
KEY = PrivateKey.new()

POLICY = """
version: 1
authorities:
  release: {keyless: {identity: "alice@example.com", issuer: "ISSUER", trust-root: root}}
rules:
  - {name: all, match: ["**"], require: {any-of: [release]}}
"""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sigstore]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: there is no timestamp authority for keyless signatures")
    with Sigstore.running(tmp_path_factory.mktemp("sigstore")) as running:
        yield running


@pytest.fixture
def sigstore(services: Sigstore) -> Iterator[Sigstore]:
    services.clock.offset = timedelta()
    yield services
    services.clock.offset = timedelta()


Check = Callable[..., Decision]


def decided(services: Sigstore, *bundles: Json | bytes, text: str = POLICY, root: Json | None = None) -> Decision:
    trusted = TrustRoot.parse(json.dumps(root or services.trusted_root()).encode(), "root.json")
    rules = text.replace("ISSUER", services.issuer.url).encode()
    policy = Policy.parse(rules, "policy.yaml", lambda _: KEY.public, lambda _: trusted)
    return decide(policy, Target("model"), Evidence(SUBJECT, tuple(map(item_of, bundles)), datetime.now(UTC)))


def item_of(bundle: Json | bytes) -> Item:
    raw = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    try:
        return Item(Form.BUNDLE, "referrer", Bundle.parse(raw))
    except Malformed as error:
        return Item(Form.BUNDLE, "referrer", fault=Fault(Reason.MALFORMED, str(error)))


@pytest.fixture
def check(sigstore: Sigstore) -> Check:
    return lambda *bundles, **more: decided(sigstore, *bundles, **more)


def entries(bundle: Json) -> list[Json]:
    found = bundle["verificationMaterial"]["tlogEntries"]
    assert isinstance(found, list)
    return found

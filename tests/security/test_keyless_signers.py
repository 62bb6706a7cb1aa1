"""Who counts as a signer, and how often, where certificates and logs have a say."""

from __future__ import annotations

import base64
import copy
import json

from artifact.mediatypes import IN_TOTO
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.keys import PrivateKey
from supplychain.statement import COSIGN_SIGN, Statement
from tests.security.keyless import BOB, KEY, OTHER, PAYLOAD, Check, Json, check, services, sigstore
from tests.supplychain.sigstore_services import Sigstore

__all__ = ["check", "services", "sigstore"]

TWO = """
version: 1
authorities:
  release: {keyless: {identity: "alice@example.com", issuer: "ISSUER", trust-root: root}}
  anyone: {keyless: {identity-glob: "*@example.com", issuer: "ISSUER", trust-root: root}}
  key: {key: k}
rules:
  - {name: all, match: ["**"], require: {at-least: {count: 2, of: [anyone, release, key]}}}
"""


def test_one_person_does_not_count_as_two(sigstore: Sigstore, check: Check) -> None:
    """Two names of the policy that mean the same person are two people only if two have signed."""
    alice, again, bob = sigstore.bundle(PAYLOAD), sigstore.bundle(PAYLOAD), sigstore.bundle(PAYLOAD, name=BOB)
    assert check(alice, again, text=TWO).code == "insufficient-signatures"
    assert check(bob, text=TWO).code == "insufficient-signatures"
    for order in ((alice, bob), (bob, alice)):
        decision = check(*order, text=TWO)
        assert decision.allowed, decision.reason
    assert check(alice, by_key(), text=TWO).allowed
    assert check(by_key(), by_key(), text=TWO).code == "insufficient-signatures"


def by_key() -> bytes:
    return Bundle(Envelope(PAYLOAD, IN_TOTO, (KEY.sign(pae(IN_TOTO, PAYLOAD)),)), hint=KEY.public.hint).to_bytes()


def test_a_keyless_signature_under_a_policy_of_keys(sigstore: Sigstore, check: Check) -> None:
    text = "version: 1\nauthorities: {k: {key: k}}\nrules: [{match: ['**'], require: {any-of: [k]}}]\n"
    assert check(sigstore.bundle(PAYLOAD), text=text).code == "unknown-signer"


def test_a_key_signature_has_no_trusted_time(sigstore: Sigstore, check: Check) -> None:
    text = "version: 1\nauthorities: {k: {key: k}}\nrules: [{match: ['**'], require: {any-of: [k]}, max-age: 9d}]\n"
    assert check(by_key(), text=text).code == "no-trusted-time"


LOGGED = """
version: 1
authorities: {release: {key: k, log: root}}
rules: [{name: all, match: ["**"], require: {any-of: [release]}}]
"""


def test_a_key_signature_that_has_to_be_in_a_log(sigstore: Sigstore, check: Check) -> None:
    """An entry counts for this signature, this key and this payload alone (CVE-2026-22703)."""
    signed, other = json.loads(by_key()), Statement.about(OTHER, COSIGN_SIGN).to_bytes()

    def logged(envelope: Json, key: PrivateKey, log: int = 1) -> Json:
        return sigstore.entry(envelope, key.public, log)

    def enveloped(payload: bytes, key: PrivateKey = KEY) -> Json:
        envelope = Envelope(payload, IN_TOTO, (key.sign(pae(IN_TOTO, payload)),))
        return envelope.to_json()

    def with_entries(*listed: Json) -> Json:
        forged = copy.deepcopy(signed)
        forged["verificationMaterial"]["tlogEntries"] = list(listed)
        return forged

    envelope, stranger = signed["dsseEnvelope"], PrivateKey.new()
    good = [logged(envelope, KEY), logged(envelope, KEY, 2)]
    for entry in good:
        decision = check(with_entries(entry), text=LOGGED)
        assert decision.allowed, decision.reason
    edited = copy.deepcopy(good[0])
    edited["integratedTime"] = "1700000000"
    for entries_ in (
        [],
        [logged(enveloped(other), KEY)],  # another artifact
        [logged(enveloped(PAYLOAD), KEY)],  # the same one, signed once more
        [logged(enveloped(PAYLOAD, stranger), stranger)],  # by somebody else
        [edited],
        [good[0], logged(enveloped(other), KEY)],  # one good entry does not cover for another
    ):
        decision = check(with_entries(*entries_), text=LOGGED)
        assert decision.code == "log-entry", decision.reason
    root = sigstore.trusted_root()
    assert check(with_entries(good[0]), text=LOGGED, root={**root, "tlogs": root["tlogs"][1:]}).code == "log-entry"
    assert check(with_entries(), text=LOGGED.replace(", log: root", "")).allowed


def test_a_log_whose_key_has_ceased_to_count(sigstore: Sigstore, check: Check) -> None:
    """Whoever has the key of a retired log could leave out the promise, which alone says when. A time in its period
    has to be proven then, by a timestamp authority."""
    signed = json.loads(by_key())
    entry = sigstore.entry(signed["dsseEnvelope"], KEY.public, 1)
    del entry["inclusionPromise"]
    signed["verificationMaterial"]["tlogEntries"] = [entry]
    assert check(signed, text=LOGGED).allowed
    for end, stamped, allowed in (
        ("2021-01-01T00:00:00Z", False, False),
        ("2021-01-01T00:00:00Z", True, False),
        ("2999-01-01T00:00:00Z", False, False),
        ("2999-01-01T00:00:00Z", True, True),
    ):
        root = copy.deepcopy(sigstore.trusted_root())
        root["tlogs"][0]["publicKey"]["validFor"]["end"] = end
        bundle = copy.deepcopy(signed)
        if stamped:
            stamp = sigstore.stamp(base64.b64decode(signed["dsseEnvelope"]["signatures"][0]["sig"]))
            bundle["verificationMaterial"]["timestampVerificationData"] = {
                "rfc3161Timestamps": [{"signedTimestamp": stamp}]
            }
        decision = check(bundle, text=LOGGED, root=root)
        assert decision.code == ("allowed" if allowed else "log-entry"), (end, stamped, decision.reason)

"""What a verifier of keyless signatures that only asks "is the certificate good and the signature by it?" gets wrong.

Every forgery here has a genuine certificate of the authority, for the very identity the policy requires, unless it is
the certificate that is the matter; each is otherwise whole, so that it is refused for what is wrong with it.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from supplychain.statement import COSIGN_SIGN, Statement
from tests.security.keyless import (
    ALICE,
    BOB,
    KEY,
    OTHER,
    PAYLOAD,
    SUBJECT,
    Check,
    Json,
    check,
    decided,
    entries,
    services,
    sigstore,
)  # fmt: skip
from tests.supplychain.sigstore_identity import Fulcio
from tests.supplychain.sigstore_log import Rekor
from tests.supplychain.sigstore_services import Sigstore

__all__ = ["check", "services", "sigstore"]


@pytest.mark.parametrize(("log", "stamp"), [(1, False), (1, True), (2, True)])
def test_the_builders_here_make_good_signatures(sigstore: Sigstore, check: Check, log: int, stamp: bool) -> None:
    decision = check(sigstore.bundle(PAYLOAD, log=log, stamp=stamp))
    assert decision.allowed, decision.reason


@pytest.mark.parametrize("stamp", [False, True])
def test_no_log_entry(sigstore: Sigstore, check: Check, stamp: bool) -> None:
    assert check(sigstore.bundle(PAYLOAD, log=None, stamp=stamp)).code == "log-entry"


@pytest.mark.parametrize("log", [1, 2])
def test_a_log_entry_of_something_else(sigstore: Sigstore, check: Check, log: int) -> None:
    """CVE-2026-22703: a genuine entry with a genuine proof, by the same certificate, about another signature."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sigstore.fulcio.issue(key.public_key(), ALICE, sigstore.issuer.url)
    mine = {"key": key, "certificate": certificate, "log": log, "stamp": True}
    good = sigstore.bundle(PAYLOAD, **mine)
    of_another_artifact = sigstore.bundle(Statement.about(OTHER, COSIGN_SIGN).to_bytes(), **mine)
    same_payload_again = sigstore.bundle(PAYLOAD, **mine)
    someone_elses = sigstore.bundle(PAYLOAD, name=BOB, log=log, stamp=True)
    for other in (of_another_artifact, same_payload_again, someone_elses):
        forged = copy.deepcopy(good)
        forged["verificationMaterial"]["tlogEntries"] = entries(other)
        decision = check(forged)
        assert (decision.code, "about another" in decision.reason) == ("log-entry", True), decision.reason
    assert check(good).allowed


def test_an_entry_by_the_same_signature_under_another_certificate(sigstore: Sigstore, check: Check) -> None:
    """One key, two certificates: the log has the signature under Bob's, the bundle shows Alice's."""
    key = ec.generate_private_key(ec.SECP256R1())
    alices, bobs = (sigstore.fulcio.issue(key.public_key(), name, sigstore.issuer.url) for name in (ALICE, BOB))
    forged = sigstore.bundle(PAYLOAD, key=key, certificate=alices)
    forged["verificationMaterial"]["tlogEntries"] = [sigstore.entry(forged["dsseEnvelope"], bobs, 1)]
    decision = check(forged)
    assert (decision.code, "another signer" in decision.reason) == ("log-entry", True)


def test_a_proof_that_proves_something_else(sigstore: Sigstore, check: Check) -> None:
    for number in range(3):
        sigstore.rekor.add(b"another entry %d" % number)
    good = sigstore.bundle(PAYLOAD)
    later = entries(sigstore.bundle(Statement.about(OTHER, COSIGN_SIGN).to_bytes()))[0]["inclusionProof"]
    stranger = Rekor(sigstore.clock, ec.generate_private_key(ec.SECP256R1()))  # a log nobody trusts
    elsewhere = stranger.add(base64.b64decode(entries(good)[0]["canonicalizedBody"]))

    def changed(**fields: Any) -> Json:
        forged = copy.deepcopy(good)
        entries(forged)[0]["inclusionProof"].update(fields)
        return forged

    root = base64.b64encode(elsewhere["root"]).decode()
    checkpoint = {"envelope": elsewhere["checkpoint"]}
    for forged in (
        changed(checkpoint={}),
        changed(hashes=[]),
        changed(logIndex="0"),
        changed(treeSize="2"),
        changed(rootHash=later["rootHash"]),
        changed(checkpoint=later["checkpoint"]),
        changed(checkpoint=checkpoint, rootHash=root, treeSize="1", logIndex="0", hashes=[]),
    ):
        assert check(forged).code == "log-entry"
    without = copy.deepcopy(good)
    del entries(without)[0]["inclusionProof"]
    assert check(without).code == "log-entry"


def test_a_promise_with_another_time(sigstore: Sigstore, check: Check) -> None:
    """The log's promise binds the time; whoever edits it does not get a certificate back from the dead."""
    sigstore.clock.offset = timedelta(days=-30)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sigstore.fulcio.issue(key.public_key(), ALICE, sigstore.issuer.url)
    issued = int(sigstore.clock.now().timestamp())
    sigstore.clock.offset = timedelta()
    late = sigstore.bundle(PAYLOAD, key=key, certificate=certificate)
    assert check(late).code == "expired-certificate"
    entries(late)[0]["integratedTime"] = str(issued + 60)
    assert check(late).code == "log-entry"
    del entries(late)[0]["inclusionPromise"]
    assert check(late).code == "no-trusted-time"


def test_an_expired_certificate_with_and_without_a_timestamp(sigstore: Sigstore, check: Check) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for offset, stamp, code in (
        (timedelta(), True, "allowed"),
        (timedelta(), False, "no-trusted-time"),  # the certificate's own dates say nothing about the signature
        (timedelta(minutes=-20), True, "expired-certificate"),
        (timedelta(minutes=20), True, "expired-certificate"),  # not valid yet
    ):
        sigstore.clock.offset = offset
        certificate = sigstore.fulcio.issue(key.public_key(), ALICE, sigstore.issuer.url)
        decision = check(sigstore.bundle(PAYLOAD, key=key, certificate=certificate, log=2, stamp=stamp))
        assert decision.code == code, decision.reason


def test_one_good_time_does_not_hide_a_bad_one(sigstore: Sigstore, check: Check) -> None:
    sigstore.clock.offset = timedelta(hours=-3)
    bundle = sigstore.bundle(PAYLOAD, log=1, stamp=True)  # the log says in time, the timestamp says three hours late
    assert check(bundle).code == "expired-certificate"


def test_a_timestamp_of_something_else(sigstore: Sigstore, check: Check) -> None:
    bundle = sigstore.bundle(PAYLOAD, log=2)
    times = {"rfc3161Timestamps": [{"signedTimestamp": sigstore.stamp(b"another signature")}]}
    bundle["verificationMaterial"]["timestampVerificationData"] = times
    assert check(bundle).code == "no-trusted-time"


def test_a_timestamp_by_nobody_we_know(sigstore: Sigstore, check: Check) -> None:
    root = sigstore.trusted_root()
    bundle = sigstore.bundle(PAYLOAD, log=2, stamp=True)
    assert check(bundle, root={**root, "timestampAuthorities": []}).code == "no-trusted-time"
    ended = copy.deepcopy(root)
    ended["timestampAuthorities"][0]["validFor"]["end"] = "2021-01-01T00:00:00Z"
    assert check(bundle, root=ended).code == "no-trusted-time"


def test_certificates_that_are_not_good(sigstore: Sigstore, check: Check) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public, issuer = key.public_key(), sigstore.issuer.url
    twin = Fulcio(sigstore.clock, sigstore.issuer)  # the same names, other keys
    own_ca = Fulcio(sigstore.clock, sigstore.issuer)
    own_ca.authority = copy.copy(sigstore.fulcio.authority)
    own_ca.authority.certificate = sigstore.fulcio.issue(public, ALICE, issuer)  # a leaf that plays authority
    own_ca.authority.key = key
    other_ct = Fulcio(sigstore.clock, sigstore.issuer)
    other_ct.authority = sigstore.fulcio.authority
    emails = (x509.RFC822Name(ALICE), x509.RFC822Name(BOB))
    for certificate, code in (
        (twin.issue(public, ALICE, issuer), "unknown-signer"),
        (own_ca.issue(public, ALICE, issuer), "unknown-signer"),
        (other_ct.issue(public, ALICE, issuer), "invalid-signature"),
        (sigstore.fulcio.issue(public, ALICE, issuer, sct=False), "invalid-signature"),
        (sigstore.fulcio.issue(public, ALICE, issuer, purpose=ExtendedKeyUsageOID.SERVER_AUTH), "invalid-signature"),
        (sigstore.fulcio.issue(public, ALICE, issuer, names=emails), "malformed-signature"),
        (sigstore.fulcio.issue(public, ALICE, issuer, names=(x509.DNSName("example.com"),)), "malformed-signature"),
        (sigstore.fulcio.issue(public, ALICE, "https://another.example"), "unknown-signer"),
        (sigstore.fulcio.issue(public, BOB, issuer), "unknown-signer"),
        (sigstore.fulcio.issue(public, f"https://x/{ALICE}", issuer), "unknown-signer"),
    ):
        decision = check(sigstore.bundle(PAYLOAD, key=key, certificate=certificate))
        assert decision.code == code, decision.reason


def test_a_certificate_whose_two_issuers_disagree(sigstore: Sigstore, check: Check, monkeypatch: Any) -> None:
    from tests.supplychain import sigstore_identity

    real = sigstore_identity.asn1.encode_der
    monkeypatch.setattr(
        sigstore_identity.asn1, "encode_der", lambda value: real("https://x" if isinstance(value, str) else value)
    )
    assert check(sigstore.bundle(PAYLOAD)).code == "malformed-signature"


def test_a_signature_by_another_key_than_the_certificates(sigstore: Sigstore, check: Check) -> None:
    bundle = sigstore.bundle(PAYLOAD)
    forged = sigstore.bundle(PAYLOAD)
    bundle["dsseEnvelope"] = forged["dsseEnvelope"]
    assert check(bundle).code == "log-entry"
    bundle["verificationMaterial"]["tlogEntries"] = entries(forged)
    assert check(bundle).code == "log-entry"


def test_logs_that_do_not_count(sigstore: Sigstore, check: Check) -> None:
    root, bundle = sigstore.trusted_root(), sigstore.bundle(PAYLOAD)
    assert check(bundle, root={**root, "tlogs": root["tlogs"][1:]}).code == "log-entry"
    ended = copy.deepcopy(root)
    ended["tlogs"][0]["publicKey"]["validFor"]["end"] = "2021-01-01T00:00:00Z"
    assert check(bundle, root=ended).code == "log-entry"
    assert check(bundle, root={**root, "ctlogs": []}).code == "invalid-signature"


@pytest.mark.parametrize(
    ("payload", "kind", "code"),
    [
        (Statement.about(SUBJECT, "https://slsa.dev/provenance/v1").to_bytes(), None, "wrong-predicate"),
        (Statement.about(OTHER, COSIGN_SIGN).to_bytes(), None, "wrong-subject"),
        (PAYLOAD, "text/plain", "wrong-payload-type"),
        (b"{}", None, "malformed-signature"),
    ],
)
def test_what_was_signed_is_something_else(
    sigstore: Sigstore, check: Check, payload: bytes, kind: str | None, code: str
) -> None:
    assert check(sigstore.bundle(payload, **({"kind": kind} if kind else {}))).code == code


def test_two_signatures_in_one_envelope(sigstore: Sigstore, check: Check) -> None:
    bundle, other = sigstore.bundle(PAYLOAD), sigstore.bundle(PAYLOAD, name=BOB)
    bundle["dsseEnvelope"]["signatures"] += other["dsseEnvelope"]["signatures"]
    assert check(bundle).code == "signature-count"


def test_a_key_and_a_certificate_in_one_bundle(sigstore: Sigstore, check: Check) -> None:
    bundle = sigstore.bundle(PAYLOAD)
    bundle["verificationMaterial"]["publicKey"] = {"hint": KEY.public.hint}
    assert check(bundle).code == "malformed-signature"


def test_a_bundle_cut_short_anywhere(sigstore: Sigstore, check: Check) -> None:
    raw = json.dumps(sigstore.bundle(PAYLOAD)).encode()
    for length in range(0, len(raw), 97):
        assert check(raw[:length]).code == "malformed-signature"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_part_of_a_bundle_can_be_changed(services: Sigstore, data: st.DataObject) -> None:
    """Whatever is changed, it is refused, and with one of our own words for it."""
    bundle = _cached(services)
    path = data.draw(st.sampled_from(list(leaves(bundle))))
    forged = copy.deepcopy(bundle)
    at: Any = forged
    for step in path[:-1]:
        at = at[step]
    old = at[path[-1]]
    junk = st.one_of(st.text(max_size=20), st.integers(), st.none(), st.binary(max_size=90).map(_base64), st.just({}))
    new = data.draw(st.one_of(junk, st.integers(0, len(old) - 1).map(lambda n: old[:n] + _next(old[n]) + old[n + 1 :])))
    at[path[-1]] = new
    decision = decided(services, forged)
    same = isinstance(new, str) and _means(new) == _means(old)
    assert same or not decision.allowed, (path, new)
    assert decision.reason.isprintable()


_MADE: dict[int, Json] = {}


def _cached(services: Sigstore) -> Json:
    if id(services) not in _MADE:
        services.rekor.add(b"so that the proof is not empty")
        _MADE[id(services)] = services.bundle(PAYLOAD)
    return _MADE[id(services)]


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _next(character: str) -> str:
    return {"9": "8", "z": "y", "Z": "Y"}.get(character, chr(ord(character) + 1))


def _means(text: str) -> Any:
    """The same bytes can be written in more than one base64, and a number with leading zeros."""
    if text.isdecimal():
        return int(text)
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return text

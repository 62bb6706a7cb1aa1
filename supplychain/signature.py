"""Whether one signature found for an artifact is a signature of that artifact, and by whom.

A plain function of (item, subject, keys, roots). The order matters: nothing in a payload is believed before its
signature has been checked, with a key the policy names or a certificate that leads to one of its trust roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.mediatypes import IN_TOTO
from supplychain.authority import Signer
from supplychain.bundle import Bundle
from supplychain.evidence import Form, Item, Legacy
from supplychain.identity import NotCertified, Sealed, certify
from supplychain.keys import LoggedKey, PublicKey
from supplychain.logentry import Signed, logged_at
from supplychain.refusal import Reason
from supplychain.simplesigning import SimpleSigning
from supplychain.statement import COSIGN_SIGN, OMS_SIGN, Statement
from supplychain.timestamp import stamped_at
from supplychain.trustroot import TrustRoot


@dataclass(frozen=True)
class Finding:
    """What one item proves. `signer` is who made it, where that is one of the given keys, or someone whom a certificate
    under one of the given trust roots names; `time` is when, where something trusted says so."""

    form: Form
    source: str
    code: Reason
    detail: str
    signer: Signer | None = None
    time: datetime | None = None


def judge(item: Item, subject: Digest, keys: Sequence[PublicKey], roots: Sequence[TrustRoot] = ()) -> Finding:
    """Judge `item` as a signature of `subject` by one of `keys`, or by someone under one of `roots`. `Reason.VALID` is
    the only good outcome; whether the signer is one that is wanted is another question."""
    if item.fault is not None:
        return Finding(item.form, item.source, item.fault.code, item.fault.detail)
    if isinstance(item.content, Bundle):
        return _bundle(item, item.content, subject, keys, roots)
    if isinstance(item.content, Legacy):
        return _legacy(item, item.content, subject, keys)
    return Finding(item.form, item.source, Reason.UNSUPPORTED, f"a {item.form} signature is present; it is not judged")


def _bundle(
    item: Item, bundle: Bundle, subject: Digest, keys: Sequence[PublicKey], roots: Sequence[TrustRoot]
) -> Finding:
    opened = open_bundle(item, bundle, keys, roots)
    if isinstance(opened, Finding):
        return opened
    statement, by = opened.statement, opened
    if statement.predicate_type != COSIGN_SIGN:
        kind = statement.predicate_type[:120]
        detail = f"an attestation of type {kind!r} is no signature"
        return Finding(item.form, item.source, Reason.WRONG_PREDICATE, detail, by.signer, by.time)
    if not statement.names(subject):
        detail = "it is a signature of another artifact"
        return Finding(item.form, item.source, Reason.WRONG_SUBJECT, detail, by.signer, by.time)
    return Finding(item.form, item.source, Reason.VALID, "bundle", by.signer, by.time)


@dataclass(frozen=True)
class Opened:
    """A statement, who has signed it, and when, where something trusted says so."""

    statement: Statement
    signer: Signer
    time: datetime | None = None


def open_bundle(
    item: Item, bundle: Bundle, keys: Sequence[PublicKey], roots: Sequence[TrustRoot] = ()
) -> Opened | Finding:
    """The statement in a bundle and who signed it, one of `keys` or someone under one of `roots`; a `Finding` that says
    why not.

    What the statement says, of which type and about what, is for the caller to check.
    """

    def found(code: Reason, detail: str, signer: Signer | None = None) -> Finding:
        return Finding(item.form, item.source, code, detail, signer)

    envelope = bundle.envelope
    if len(envelope.signatures) != 1:
        return found(Reason.SIGNATURE_COUNT, f"{len(envelope.signatures)} signatures in one envelope: need exactly one")
    if envelope.payload_type != IN_TOTO:
        return found(Reason.WRONG_PAYLOAD_TYPE, f"payloadType is {envelope.payload_type!r}, not {IN_TOTO}")
    signer: Signer | None
    time = None
    if bundle.certificate is not None:
        try:
            certified = certify(Sealed.of(bundle), roots)
        except NotCertified as error:
            stranger = error.code is Reason.UNKNOWN_SIGNER
            return _unknown(item, envelope.payload, str(error)) if stranger else found(error.code, str(error))
        signer, time = certified.identity, certified.time
    else:
        signer = _signer(envelope.signatures[0], envelope.signed_bytes, keys)
        if signer is not None and bundle.log_entries:
            signer = _logged(bundle, signer, roots)
    if signer is None:
        if any(key.hint == bundle.hint for key in keys):
            return found(Reason.INVALID_SIGNATURE, f"names key {bundle.hint}, which did not make it")
        return _unknown(item, envelope.payload, f"made by no key of the policy (names key {bundle.hint!r})")
    try:
        return Opened(Statement.parse(envelope.payload), signer, time)
    except Malformed as error:
        return found(Reason.MALFORMED, str(error), signer)


def _legacy(item: Item, legacy: Legacy, subject: Digest, keys: Sequence[PublicKey]) -> Finding:
    signer = _signer(legacy.signature, legacy.payload, keys)
    if signer is None:
        how = "a keyless signature; the policy names keys" if legacy.keyless else "made by no key of the policy"
        return Finding(item.form, item.source, Reason.UNKNOWN_SIGNER, how)
    try:
        payload = SimpleSigning.parse(legacy.payload)
    except Malformed as error:
        return Finding(item.form, item.source, Reason.MALFORMED, str(error), signer)
    if payload.digest != subject:
        detail = f"it is a signature of {payload.digest.short}"
        return Finding(item.form, item.source, Reason.WRONG_SUBJECT, detail, signer)
    return Finding(item.form, item.source, Reason.VALID, "simple signing", signer)


def _signer(signature: bytes, data: bytes, keys: Sequence[PublicKey]) -> PublicKey | None:
    # The hint is not consulted: it is unsigned text, and some writers leave it out.
    return next((key for key in keys if key.verify(signature, data)), None)


def _logged(bundle: Bundle, key: PublicKey, roots: Sequence[TrustRoot]) -> PublicKey:
    """`key` with the trust roots of whose logs every entry in the bundle is one about this signature by it."""
    signed, found = Signed.of(bundle.envelope, key.spki), set()
    for root in roots:
        try:
            stamped = stamped_at(bundle.timestamps, signed.signature, root)
            for entry in bundle.log_entries:
                logged_at(entry, signed, root, stamped)
        except Malformed:
            continue
        found.add(root.fingerprint)
    return LoggedKey(key.spki, frozenset(found))


def _unknown(item: Item, payload: bytes, detail: str) -> Finding:
    """A bundle nobody vouches for. Its own word about its kind only serves to describe it."""
    try:
        kind = Statement.parse(payload).predicate_type
    except Malformed:
        kind = COSIGN_SIGN
    if kind == OMS_SIGN:
        return Finding(item.form, item.source, Reason.UNSUPPORTED, "an OpenSSF model-signing signature is present")
    return Finding(item.form, item.source, Reason.UNKNOWN_SIGNER, detail)

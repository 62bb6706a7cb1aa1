"""Whether one bundle found for an artifact is an attestation of it, and by whom.

A plain function of (item, subject, keys, roots), as strict as that of signatures (`supplychain.signature`). The two
never overlap: a statement is one or the other by its predicate type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from artifact.digest import Digest
from artifact.errors import Malformed
from supplychain.authority import Signer
from supplychain.bundle import Bundle
from supplychain.evidence import REFERRERS, Form, Item
from supplychain.keys import PublicKey
from supplychain.predicate import SIGNATURES, short_name
from supplychain.refusal import Reason
from supplychain.signature import Finding, open_bundle
from supplychain.statement import Statement
from supplychain.trustroot import TrustRoot


@dataclass(frozen=True)
class Attestation:
    """What one item attests. Only with `Reason.VALID_ATTESTATION` are there a `statement` and a `signer` to trust.

    `predicate_type` is the item's own word where the code is another one, and empty where it could not be read.
    `manifest` is the digest of the referrer that carries it; `time` is when it was made, where something trusted says
    so.
    """

    source: str
    code: Reason
    detail: str
    predicate_type: str = ""
    signer: Signer | None = None
    statement: Statement | None = None
    manifest: Digest | None = None
    time: datetime | None = None

    @property
    def valid(self) -> bool:
        """Whether it is an attestation of the artifact by one of the keys, or by someone under one of the roots."""
        return self.code is Reason.VALID_ATTESTATION


def judge_attestation(
    item: Item, subject: Digest, keys: Sequence[PublicKey], roots: Sequence[TrustRoot] = ()
) -> Attestation | None:
    """Judge `item` as an attestation of `subject` by one of `keys`, or by someone under one of `roots`; None if it is a
    signature and no attestation."""
    if item.form is not Form.BUNDLE and item.source != REFERRERS:
        return None
    if item.fault is not None or not isinstance(item.content, Bundle):
        code, detail = (item.fault.code, item.fault.detail) if item.fault else (Reason.MALFORMED, "it has no content")
        return Attestation(item.source, code, detail, manifest=item.manifest)
    claimed = _claimed(item.content)
    if claimed in SIGNATURES:
        return None
    opened = open_bundle(item, item.content, keys, roots)
    if isinstance(opened, Finding):
        return Attestation(item.source, opened.code, opened.detail, claimed, opened.signer, manifest=item.manifest)
    statement, signer = opened.statement, opened.signer
    if not statement.names(subject):
        detail = "it is an attestation of another artifact"
        return Attestation(item.source, Reason.WRONG_SUBJECT, detail, claimed, signer, manifest=item.manifest)
    kind = short_name(statement.predicate_type)[:120]
    detail = f"an attestation of type {kind if kind.isprintable() else repr(kind)}"
    return Attestation(
        item.source, Reason.VALID_ATTESTATION, detail, statement.predicate_type, signer, statement, item.manifest,
        opened.time,
    )  # fmt: skip


def _claimed(bundle: Bundle) -> str:
    """The predicate type of the payload, believed by nobody yet; empty if there is none to be read."""
    try:
        return Statement.parse(bundle.envelope.payload).predicate_type
    except Malformed:
        return ""

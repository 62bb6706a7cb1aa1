"""Two listings of the referrers of one artifact: neither can hide what the other has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.manifest import Index
from artifact.reference import Reference, referrers_tag
from supplychain.attest import attest
from supplychain.evidence import NOTATION
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.predicate import SCAN
from supplychain.sign import sign
from supplychain.statement import Statement
from supplychain.verify import verify

REFERENCE = Reference.parse("registry.example/acme/model:v1")
EVERY = """
version: 1
authorities: {release: {key: release}}
rules:
- match: ["**"]
  require: {any-of: [release]}
  attestations: [{type: scan, which: every, conditions: [{verdict: pass}]}]
"""


@pytest.mark.parametrize("relabelled", ["application/vnd.other", NOTATION, None, mediatypes.SIGSTORE_BUNDLE])
@pytest.mark.parametrize("kind", [mediatypes.IMAGE_MANIFEST, mediatypes.IMAGE_INDEX])
def test_the_fallback_tag_hides_nothing_that_the_registry_lists(
    repository: LayoutRepository,
    subject: Descriptor,
    keys: dict[str, PrivateKey],
    policy: Callable[[str], Policy],
    relabelled: str | None,
    kind: str,
) -> None:
    """Whoever may push can write that tag, and say there of a scan with a bad verdict that it is something else."""
    sign(repository, subject, keys["release"])
    attest(repository, subject, Statement.about(subject.digest, SCAN, {"verdict": "pass"}), keys["release"])
    assert verify(repository, REFERENCE, subject, policy(EVERY)).allowed
    bad = attest(repository, subject, Statement.about(subject.digest, SCAN, {"verdict": "fail"}), keys["release"])
    entry = Descriptor(kind, bad.digest, bad.size, artifact_type=relabelled)
    repository.push_manifest(Index((entry,)).to_bytes(), mediatypes.IMAGE_INDEX, referrers_tag(subject.digest))
    decision = verify(repository, REFERENCE, subject, policy(EVERY))
    assert (decision.allowed, decision.code) == (False, "attestation-condition")

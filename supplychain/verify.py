"""Verification: collect what a repository holds in favour of an artifact, and decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch
from artifact.reference import Reference
from artifact.repository import Repository
from supplychain.decision import Decision, decide
from supplychain.evidence import Evidence, collect, layout_of, other_digests
from supplychain.glob import Target
from supplychain.policy import Policy


def verify(repository: Repository, reference: Reference, subject: Descriptor, policy: Policy) -> Decision:
    """Decide whether `subject`, asked for as `reference` and kept in `repository`, may be used under `policy`.

    `subject` is what the reference was resolved to, once: the tag is not looked at again, so what is verified is what
    the caller goes on with. It decides nothing about the bytes behind the digest; whoever fetches them checks them.
    Raises `DigestMismatch` if the reference states another digest, and the repository's own errors if it cannot be
    read: no answer is not a good answer.
    """
    if reference.digest is not None and reference.digest != subject.digest:
        raise DigestMismatch(f"{reference} states another digest than {subject.digest}, which it resolved to")
    if reference.layout is not None:
        reference = replace(reference, layout=str(Path(reference.layout).resolve()))
    target = Target.of(reference)
    rules = policy.rules_for(target)
    needed = any(rule.requirement.count or rule.attestations for rule in rules)
    evidence = collect(repository, subject.digest) if needed else Evidence(subject.digest)
    evidence = replace(evidence, also=other_digests(repository, subject.digest, policy.revoked.algorithms))
    if any(rule.layouts is not None for rule in rules):
        evidence = replace(evidence, layout=layout_of(repository, subject.digest))
    return decide(policy, target, evidence)

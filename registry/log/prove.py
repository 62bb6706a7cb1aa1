"""Showing somebody else that something is in a registry's log."""

from __future__ import annotations

from artifact.digest import Digest
from artifact.errors import NotFound, Refused
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from artifact.remote.transport import Transport
from registry.log.remote import RemoteLog
from supplychain.tlog.entry import Entry
from supplychain.tlog.evidence import Evidence
from supplychain.tlog.proofs import Tree
from supplychain.tlog.tiles import WIDTH, bundles_of


class NotLogged(Refused):
    """What the registry serves is not what its log says."""

    code = "not-logged"


def prove(transport: Transport, log: RemoteLog, reference: Reference) -> tuple[Evidence, Entry]:
    """The proof that the tag, or the manifest, of a reference is in the log; it has been checked. Raises `NotLogged`,
    `Malformed`, `NotFound`."""
    served: Digest | None = reference.digest
    if reference.tag is not None:
        repository = RemoteRepository(transport.host, reference.name, transport=transport)
        served = repository.resolve(reference.tag).digest
        if reference.digest is not None and reference.digest != served:
            raise Refused(f"{reference} points at {served}")
    note, checkpoint = log.checkpoint()
    index, raw, entry = _last(log, checkpoint.size, reference)
    if entry.digest != served:
        raise NotLogged(
            f"{reference} is {served}; entry {index} of the log says {entry.digest or 'that it was removed'}"
        )
    proof = Tree(checkpoint.size, log.read).inclusion_proof(index)
    evidence = Evidence(raw, index, tuple(proof), note)
    evidence.check(log.key)
    return evidence, entry


def _last(log: RemoteLog, size: int, reference: Reference) -> tuple[int, bytes, Entry]:
    """The last entry about a tag, or of a manifest's push: its number, its bytes, and what it says."""
    for tile in reversed(list(bundles_of(size))):
        for position, raw in reversed(list(enumerate(log.entries(tile)))):
            entry = Entry.parse(raw)
            if entry.repository == reference.name and _is_about(entry, reference):
                return tile.index * WIDTH + position, raw, entry
    raise NotFound(f"the log of {size} entries has none about {reference}")


def _is_about(entry: Entry, reference: Reference) -> bool:
    if reference.tag is not None:
        return entry.tag == reference.tag
    return entry.action == "push" and entry.digest == reference.digest

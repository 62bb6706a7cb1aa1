"""Bringing a model into the store: found once by tag, from then on only by digest; decided on before it is fetched.

The order is the point. The manifest is checked against its digest and read, the policy decides on that digest, and
only then does a weight blob move. The manifest gets its name in the store last, after the files have been shown to be
what they claim. What is refused leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, Malformed, Refused
from artifact.locate import open_repository, resolve
from artifact.modelconfig import MAX_CONFIG
from artifact.moved import size_text
from artifact.progress import Progress, Quiet
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.tensorindex.attach import push_index, push_referrer
from artifact.terminal import note
from artifact.transfer import CONCURRENCY, copy_referrers, push_blobs
from runner.check import check_files
from runner.delta import Received, index_of, local_chunks, sources
from runner.model import Model, model_files, model_manifest
from runner.records import recorded_name
from runner.store import Store
from supplychain.usage import NO_CODE, Grant

if TYPE_CHECKING:
    from supplychain.decision import Decision
    from supplychain.policy import Policy


@dataclass(frozen=True)
class Found:
    """A model that was found and, where there is a policy, allowed by it. Nothing but its manifest and config has been
    read. `origin` is where it was found: the store, or the place its reference names; `store` is the store's folder."""

    reference: Reference
    model: Model
    raw: bytes
    origin: Repository
    stored: bool
    decision: Decision | None
    store: Path

    @property
    def grant(self) -> Grant:
        """The code in the model that the policy lets run."""
        return self.decision.grant if self.decision is not None else NO_CODE

    @property
    def pinned(self) -> str:
        """The repository with the digest: the one way to name exactly this model."""
        return f"{self.reference.repository}@{self.model.digest}"


def find(
    reference: Reference,
    store: Store,
    policy: Policy | None,
    *,
    plain_http: bool = False,
    local: bool = True,
    source: Collection[str] | None = (),
) -> Found:
    """Find a model and let the policy decide on it: in the store if `local` and it is there, else where its reference
    says. `source` is the Python source it may carry where there is no policy, as in `model_files`. Raises `Refused`,
    `NotFound`, `DigestMismatch`, `Malformed` and what the network raises."""
    reference = absolute(reference)
    home = store.home(reference) if local or reference.is_local else None
    if home is not None:
        return find_in(home[0], reference, home[1], store, policy, stored=True, source=source)
    origin: Repository = store.repository(reference)
    if not reference.is_local:
        origin = open_repository(reference, plain_http=plain_http, store=store.root)
    return find_in(origin, reference, resolve(origin, reference), store, policy, source=source)


def find_in(
    origin: Repository,
    reference: Reference,
    descriptor: Descriptor,
    store: Store,
    policy: Policy | None,
    *,
    stored: bool = False,
    source: Collection[str] | None = (),
) -> Found:
    """Read the model that `descriptor` names at `origin`, and let the policy decide on it. Raises as `find` does."""
    got, raw = origin.manifest(descriptor.digest)
    if got.digest != descriptor.digest or not descriptor.digest.matches(raw):
        raise DigestMismatch(f"{reference}: the manifest is not the one {descriptor.digest} names")
    manifest = model_manifest(got, raw)
    # Unsafe paths, pickles and what is code in disguise end here, before anything else is asked for.
    model_files(manifest, None if policy is not None else source)
    decision = None
    if policy is not None:
        from supplychain.verify import verify  # loading it takes longer than most pulls that have no policy

        decision = verify(origin, reference, got, policy)
        decision.enforce()
        if decision.warned:
            note(f"warning: {decision.reason}")
    if decision is not None:
        source = decision.grant.code
    model = Model.read(got, raw, origin.read_blob(manifest.config, MAX_CONFIG), source)
    return Found(reference, model, raw, origin, stored, decision, store.root)


@dataclass(frozen=True)
class Fetched:
    """What a pull took: the bytes that were moved, of how many the model has."""

    moved: int
    size: int


def fetch(
    found: Found, store: Store, progress: Progress, *, concurrency: int = CONCURRENCY, delta: bool = True
) -> Fetched:
    """Bring a found model into the store, with its signatures and its tensor index, and tell in a line what was moved:
    with `delta` not what other models in the store have.

    Raises `DigestMismatch`, `Refused` if the files are not what they claim, `StorageFull` (what arrived is kept).
    """
    target = store.repository(found.reference)
    manifest = found.model.manifest
    blobs = manifest.blobs
    size = sum(blob.size for blob in blobs)
    if found.stored:
        check(found, store)
        return Fetched(0, size)
    received, began = Received(), time.monotonic()
    try:
        with store.pulling():
            index = index_of(found.origin, target, manifest, received)
            local = local_chunks(store, target, blobs, index) if index is not None and delta else {}
            contents = sources(found.origin, blobs, index, local, received)
            push_blobs(target, contents, progress, concurrency, origin=found.origin)
            check(found, store)
            copy_referrers(found.origin, target, found.model.digest, Quiet(), concurrency)
            store.write_record(found.model.digest, recorded_name(found.reference), _record(found))
            subject = target.push_manifest(found.raw, manifest.media_type, found.reference.tag)
            if index is not None:
                push_referrer(target, subject, push_index(target, index.to_bytes()))
    except (Refused, Malformed):
        store.discard(blobs)
        raise
    note(
        f"pulled {found.reference}: {len(found.model.files)} files, moved {size_text(received.bytes)} of "
        f"{size_text(size)}, {time.monotonic() - began:.1f} s"
    )
    return Fetched(received.bytes, size)


def check(found: Found, store: Store) -> None:
    """Check that the stored files are what the manifest, the config and the tag say. Raises `Refused`, `Malformed`."""
    for file in found.model.files:
        path = store.blob(file.blob.digest)
        if not path.is_file() or path.stat().st_size != file.blob.size:
            raise DigestMismatch(f"{file.path} ({file.blob.digest.short}) is missing or cut short in the store")
    check_files(found.model, found.reference.tag, lambda file: store.blob(file.blob.digest), found.grant.configs)


def absolute(reference: Reference) -> Reference:
    """`reference` with the folder of an ``oci:`` layout made absolute: its name in the store cannot depend on where a
    command was typed."""
    if reference.layout is None:
        return reference
    return replace(reference, layout=str(Path(reference.layout).absolute()))


def _record(found: Found) -> dict[str, Any]:
    verified = None
    if found.decision is not None:
        signers = [signer.name for signer in found.decision.signers]
        verified = {"policy": found.decision.policy, "code": found.decision.code.value, "signers": signers}
    return {"from": found.origin.place, "verified": verified}

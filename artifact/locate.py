"""From a reference to the repository it names, and to the one manifest it means."""

from __future__ import annotations

from pathlib import Path

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, InvalidInput, NotFound, StowageError
from artifact.layout import LayoutRepository
from artifact.reference import Reference, shown_tags
from artifact.remote import RemoteRepository
from artifact.remote.delta import Base
from artifact.repository import Repository
from artifact.store import default_store


def open_repository(
    reference: Reference, *, plain_http: bool = False, store: Path | None = None
) -> RemoteRepository | LayoutRepository:
    """The repository of `reference`: a registry, an ``oci:`` layout, or the local store where it has no host.

    Plain HTTP is used for loopback hosts, and for others only with `plain_http`.
    """
    if reference.layout is not None:
        return LayoutRepository(Path(reference.layout))
    if reference.host is not None:
        return RemoteRepository(reference.host, reference.name, plain_http=plain_http)
    return local_repository(reference, store)


def local_repository(reference: Reference, store: Path | None = None) -> LayoutRepository:
    """The place of `reference` in the local store, whatever registry it names."""
    return LayoutRepository(store or default_store(), reference.repository)


def base_at(ref: str | None, *, plain_http: bool = False) -> Base | None:
    """The earlier version of an artifact that `ref` names, for a push that rests on it; None if it names none.

    Raises `InvalidInput` if it names no registry, and what `resolve` raises.
    """
    if ref is None:
        return None
    reference = Reference.parse(ref)
    if reference.host is None:
        raise InvalidInput(f"{ref} names no registry: a push rests on what its registry has (HOST[:PORT]/NAME:TAG)")
    repository = RemoteRepository(reference.host, reference.name, plain_http=plain_http)
    return Base(repository, resolve(repository, reference).digest)


def resolve(repository: Repository, reference: Reference) -> Descriptor:
    """The manifest `reference` means, its tag looked up once.

    Raises `InvalidInput` if it has neither tag nor digest, `NotFound`, and `DigestMismatch` if its tag points at
    another digest than the one it states.
    """
    if reference.tag is None and reference.digest is None:
        raise InvalidInput(f"{reference} has neither a tag nor a digest{_others(repository)}")
    if reference.tag is None:
        assert reference.digest is not None
        return repository.resolve(reference.digest)
    try:
        descriptor = repository.resolve(reference.tag)
    except NotFound as error:
        if isinstance(repository, LayoutRepository):  # which says so itself
            raise
        raise NotFound(f"{error}{_others(repository, reference.tag)}") from None
    if reference.digest is not None and descriptor.digest != reference.digest:
        raise DigestMismatch(
            f"{reference.repository}:{reference.tag} is {descriptor.digest}, not {reference.digest}: the tag has moved"
        )
    return descriptor


def _others(repository: Repository, near: str = "") -> str:
    """The tags there are, for the end of an error message; nothing if they cannot be had."""
    try:
        return shown_tags(repository.tags(), near)
    except StowageError:
        return ""

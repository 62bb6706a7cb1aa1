"""What a model that is served is called."""

from __future__ import annotations

from artifact.reference import Reference


def served_name(reference: Reference, digest: str) -> str:
    """The one name a model is listed under: its repository with the tag, or with the digest if it has no tag."""
    return f"{reference.repository}:{reference.tag}" if reference.tag else f"{reference.repository}@{digest}"


def served_names(reference: Reference, digest: str) -> frozenset[str]:
    """Every name that means this model: with and without host, tag and digest."""
    places = {reference.repository, reference.name} - {""}
    tagged = {f"{place}:{reference.tag}" for place in places if reference.tag}
    pinned = {f"{place}@{digest}" for place in (*places, *tagged)}
    return frozenset({digest, *places, *tagged, *pinned})

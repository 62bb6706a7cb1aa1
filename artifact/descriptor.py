"""Descriptors: how one piece of content points at another. Source: OCI image-spec, descriptor.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
MAX_SIZE = 2**63 - 1
"""Largest size a descriptor may state, in bytes (an int64, as the specification says)."""


@dataclass(frozen=True)
class Descriptor:
    """Media type, digest and size in bytes of some content, with what else is said about it."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None

    def __post_init__(self) -> None:
        if not _MEDIA_TYPE.fullmatch(self.media_type):
            raise Malformed(f"not a media type: {self.media_type[:80]!r}")
        if not 0 <= self.size <= MAX_SIZE:
            raise Malformed(f"descriptor of {self.digest.short} has an impossible size: {self.size}")

    @classmethod
    def of(cls, data: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """The descriptor of `data`."""
        return cls(media_type, Digest.of(data), len(data), annotations or {})

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        """Read a descriptor from parsed JSON. Raises `Malformed`."""
        if not isinstance(value, dict):
            raise Malformed("a descriptor must be a JSON object")
        media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise Malformed("a descriptor needs mediaType and digest")
        if not isinstance(size, int) or isinstance(size, bool):
            raise Malformed(f"descriptor of {digest[:80]!r}: size must be an integer")
        artifact_type = value.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise Malformed(f"descriptor of {digest[:80]!r}: artifactType must be a string")
        try:
            parsed = Digest.parse(digest)
        except InvalidInput as error:
            raise Malformed(str(error)) from None
        return cls(media_type, parsed, size, annotations_from_json(value.get("annotations")), artifact_type or None)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as JSON, absent fields left out, annotations sorted."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return value


def annotations_from_json(value: Any) -> dict[str, str]:
    """Read an annotations map, absent meaning empty. Raises `Malformed`."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed("annotations must map strings to strings")
    return dict(value)

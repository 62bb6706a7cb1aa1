"""Image manifests and indexes. Source: OCI image-spec, manifest.md and image-index.md.

Reading is strict about everything a decision could rest on and silent about the rest. Writing is canonical: the same
content always gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor, annotations_from_json
from artifact.digest import Digest
from artifact.errors import Malformed

MAX_BYTES = 4 * 1024 * 1024
"""Largest manifest that is read or accepted, in bytes (distribution-spec, "Pushing manifests")."""

EMPTY_CONFIG = b"{}"
"""The content of the empty descriptor (image-spec, "Guidance for an Empty Descriptor")."""


def canonical_json(value: Any) -> bytes:
    """`value` as JSON bytes that depend on nothing but the value: UTF-8, no spaces, keys in the order given."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def load_json(raw: bytes, what: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Parse a JSON object of bounded size with no key given twice, and text that is text (no lone surrogates). `what`
    names it in errors. Raises `Malformed`."""
    if len(raw) > limit:
        raise Malformed(f"{what} is larger than {limit} bytes")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\ud" in raw or b"\\uD" in raw:  # half a character can be escaped, but neither written nor shown
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class Manifest:
    """An image manifest: one config, ordered layers, and possibly the manifest it refers to."""

    config: Descriptor
    layers: Sequence[Descriptor]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = mediatypes.IMAGE_MANIFEST

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Manifest:
        """Read a manifest. With `media_type`, the document's own must equal it. Raises `Malformed`."""
        value = load_json(raw, "manifest")
        _check_envelope(value, media_type)
        if "manifests" in value:  # CVE-2021-41190: a document must not be readable as two kinds
            raise Malformed("not an image manifest: it has 'manifests' (an index is never a model)")
        stated = value.get("mediaType") or media_type or mediatypes.IMAGE_MANIFEST
        if stated not in (mediatypes.IMAGE_MANIFEST, mediatypes.DOCKER_MANIFEST):
            raise Malformed(f"not an image manifest: {stated!r}")
        layers = value.get("layers")
        if not isinstance(layers, list):
            raise Malformed("manifest has no list of layers")
        subject = value.get("subject")
        config, contents = Descriptor.from_json(value.get("config")), tuple(map(Descriptor.from_json, layers))
        _check_sizes((config, *contents))
        return cls(
            config=config,
            layers=contents,
            artifact_type=_optional_text(value, "artifactType"),
            subject=None if subject is None else Descriptor.from_json(subject),
            annotations=annotations_from_json(value.get("annotations")),
            media_type=stated,
        )

    def to_bytes(self) -> bytes:
        """The manifest's canonical bytes; its digest is theirs."""
        value: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        value["config"] = self.config.to_json()
        value["layers"] = [layer.to_json() for layer in self.layers]
        if self.subject:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return canonical_json(value)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers, each digest once."""
        return tuple({item.digest: item for item in (self.config, *self.layers)}.values())

    @property
    def referrer_type(self) -> str:
        """The artifact type a referrers listing shows: artifactType, else the config's media type."""
        return self.artifact_type or self.config.media_type


@dataclass(frozen=True)
class Index:
    """An image index: a list of manifests. Used for referrers and layouts, never behind a model's tag."""

    manifests: Sequence[Descriptor]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = mediatypes.IMAGE_INDEX

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Index:
        """Read an index. With `media_type`, the document's own must equal it. Raises `Malformed`."""
        value = load_json(raw, "index")
        _check_envelope(value, media_type)
        if "layers" in value or "config" in value:
            raise Malformed("not an index: it has 'layers' or 'config'")
        manifests = value.get("manifests")
        if not isinstance(manifests, list):
            raise Malformed("index has no list of manifests")
        subject = value.get("subject")
        return cls(
            manifests=tuple(Descriptor.from_json(item) for item in manifests),
            artifact_type=_optional_text(value, "artifactType"),
            subject=None if subject is None else Descriptor.from_json(subject),
            annotations=annotations_from_json(value.get("annotations")),
            media_type=value.get("mediaType") or media_type or mediatypes.IMAGE_INDEX,
        )

    def to_bytes(self) -> bytes:
        """The index's canonical bytes."""
        value: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        value["manifests"] = [item.to_json() for item in self.manifests]
        if self.subject:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return canonical_json(value)


def _check_envelope(value: dict[str, Any], media_type: str | None) -> None:
    if value.get("schemaVersion") != 2:
        raise Malformed(f"schemaVersion must be 2, not {value.get('schemaVersion')!r}")
    stated = value.get("mediaType")
    if stated is not None and not isinstance(stated, str):
        raise Malformed("mediaType must be a string")
    if media_type is not None and stated is not None and stated != media_type:
        raise Malformed(f"mediaType {stated!r} differs from the content type {media_type!r}")


def _check_sizes(blobs: Sequence[Descriptor]) -> None:
    """Refuse one digest with two sizes: one of them is wrong, and which of them counts would be anybody's choice."""
    sizes: dict[Digest, int] = {}
    for blob in blobs:
        if sizes.setdefault(blob.digest, blob.size) != blob.size:
            raise Malformed(f"manifest gives {blob.digest.short} two sizes: {sizes[blob.digest]} and {blob.size}")


def _optional_text(value: dict[str, Any], key: str) -> str | None:
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise Malformed(f"{key} must be a string")
    return text or None

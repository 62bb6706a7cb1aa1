"""How an artifact was made, and from what: the predicate of SLSA provenance, version 1.

Source: slsa.dev/spec/v1.0/provenance. The build types are this project's own; `docs/supply-chain.md` describes their
parameters. They name everything the manifest's digest depends on, so that the artifact can be made again from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed

BUILD_TYPES = "https://stowage.dev/buildtypes/"
BUILDER = "https://stowage.dev/builders/packager/v1"
"""The builder where none is named: `packager` on a machine nobody but the signer vouches for."""

LOCAL = "local"
"""The source of an artifact made from files on a disk. Where they lay is not said."""


class Build(StrEnum):
    """What was done to the source."""

    PACK = "pack"
    CONVERT = "convert"
    QUANTIZE = "quantize"

    @property
    def type(self) -> str:
        """The build type's URI."""
        return f"{BUILD_TYPES}{self}/v1"


@dataclass(frozen=True)
class SourceFile:
    """A file the artifact was made from: its path in the source, and its digest (sha256)."""

    path: str
    digest: Digest


@dataclass(frozen=True)
class Provenance:
    """One build. Fields left empty do not apply.

    `source` is `LOCAL`, or the model on a hub (``hf://ORG/NAME``) with its page as `source_url` and its commit as
    `revision`, or an artifact (``HOST/NAME``, or `LOCAL`) with its manifest's digest as `revision`. `format` and
    `precision` are those of the artifact; `created` is the time it states (RFC 3339); `allowed` are the findings that
    were waved through; `imatrix` is the path of the importance matrix among `files`; `base` is the digest of the model
    an adapter is for. `converter` is named if it is another project's; weights are cut into files of at most
    `split_max_size` bytes of tensors (0: not cut).
    `tools` are names with versions, `finished` when the build ended, if anyone stated it.
    """

    build: Build
    source: str
    format: str
    precision: str
    layout: str
    created: str
    files: Sequence[SourceFile]
    tools: Mapping[str, str]
    builder: str = BUILDER
    source_url: str = ""
    revision: str = ""
    file_filter: Sequence[str] = ()
    allowed: Sequence[str] = ()
    imatrix: str = ""
    converter: str = ""
    split_max_size: int = 0
    base: str = ""
    finished: str = ""
    builder_version: Mapping[str, str] = field(default_factory=dict)

    def to_predicate(self) -> dict[str, Any]:
        """The predicate. It depends on the fields alone."""
        external = {
            "source": self.source, "sourceURL": self.source_url, "revision": self.revision, "format": self.format,
            "precision": self.precision, "imatrix": self.imatrix, "converter": self.converter,
            "splitMaxSize": self.split_max_size, "layout": self.layout,
            "fileFilter": list(self.file_filter), "base": self.base, "created": self.created,
            "allowedFindings": sorted(self.allowed),
        }  # fmt: skip
        builder: dict[str, Any] = {"id": self.builder}
        if self.builder_version:
            builder["version"] = dict(sorted(self.builder_version.items()))
        details: dict[str, Any] = {"builder": builder}
        if self.finished:
            details["metadata"] = {"finishedOn": self.finished}
        return {
            "buildDefinition": {
                "buildType": self.build.type,
                "externalParameters": {
                    key: value for key, value in external.items() if value or key == "allowedFindings"
                },
                "internalParameters": {"tools": dict(sorted(self.tools.items()))},
                "resolvedDependencies": [*self._repository(), *map(self._file, self.files)],
            },
            "runDetails": details,
        }

    def _repository(self) -> list[dict[str, Any]]:
        if not self.revision:
            return []
        algorithm, colon, hexadecimal = self.revision.partition(":")
        if colon:  # an artifact, by its manifest's digest
            named = {} if self.source == LOCAL else {"uri": f"oci://{self.source}"}
            return [{**named, "digest": {algorithm: hexadecimal}}]
        return [{"uri": self.source_url, "digest": {"gitCommit": self.revision}}]

    def _file(self, file: SourceFile) -> dict[str, Any]:
        described: dict[str, Any] = {"name": file.path, "digest": {file.digest.algorithm: file.digest.hex}}
        if self.source_url:
            described["uri"] = f"{self.source_url}/resolve/{self.revision}/{quote(file.path)}"
        return described

    @classmethod
    def parse(cls, predicate: Mapping[str, Any]) -> Provenance:
        """Read a predicate that `to_predicate` wrote. Raises `Malformed`, also for other projects' build types."""
        definition, details = _object(predicate, "buildDefinition"), _object(predicate, "runDetails")
        external, builder = _object(definition, "externalParameters"), _object(details, "builder")
        internal = _object(definition, "internalParameters")
        dependencies = definition.get("resolvedDependencies")
        if not isinstance(dependencies, list):
            raise Malformed("provenance: resolvedDependencies must be a list")
        return cls(
            build=_build(definition.get("buildType")),
            source=_text(external, "source", required=True),
            source_url=_text(external, "sourceURL"),
            revision=_text(external, "revision"),
            format=_text(external, "format", required=True),
            precision=_text(external, "precision", required=True),
            imatrix=_text(external, "imatrix"),
            converter=_text(external, "converter"),
            split_max_size=_count(external, "splitMaxSize"),
            base=_text(external, "base"),
            layout=_text(external, "layout", required=True),
            file_filter=_texts(external, "fileFilter"),
            created=_text(external, "created", required=True),
            allowed=_texts(external, "allowedFindings"),
            files=tuple(
                _source_file(item) for item in dependencies if not _is_source(item, _text(external, "revision"))
            ),
            tools=_versions(internal, "tools"),
            builder=_text(builder, "id", required=True),
            builder_version=_versions(builder, "version"),
            finished=_text(_object(details, "metadata"), "finishedOn"),
        )


def _build(value: Any) -> Build:
    for build in Build:
        if value == build.type:
            return build
    raise Malformed(f"provenance: unknown build type {str(value)[:120]!r}: it cannot be repeated here")


def _is_source(value: Any, revision: str) -> bool:
    """Whether a dependency is the source itself, by its commit or its manifest's digest, and not one of its files."""
    digest = _object(value, "digest")
    algorithm, _, hexadecimal = revision.partition(":")
    return "gitCommit" in digest or ("name" not in value and digest == {algorithm: hexadecimal})


def _source_file(value: Mapping[str, Any]) -> SourceFile:
    digest = _text(_object(value, "digest"), "sha256", required=True)
    try:
        return SourceFile(_text(value, "name", required=True), Digest("sha256", digest))
    except InvalidInput as error:
        raise Malformed(f"provenance: {error}") from None


def _object(value: Any, key: str) -> dict[str, Any]:
    inner = value.get(key, {}) if isinstance(value, Mapping) else None
    if not isinstance(inner, dict):
        raise Malformed(f"provenance: {key} must be an object")
    return inner


def _text(value: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    text = value.get(key, "")
    if not isinstance(text, str) or (required and not text):
        raise Malformed(f"provenance: {key} must be text")
    return text


def _count(value: Mapping[str, Any], key: str) -> int:
    count = value.get(key, 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise Malformed(f"provenance: {key} must be a count")
    return count


def _texts(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    items = value.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Malformed(f"provenance: {key} must be a list of texts")
    return tuple(items)


def _versions(value: Mapping[str, Any], key: str) -> dict[str, str]:
    versions = _object(value, key)
    if not all(isinstance(version, str) for version in versions.values()):
        raise Malformed(f"provenance: {key} must map names to versions")
    return versions

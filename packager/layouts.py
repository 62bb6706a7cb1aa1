"""The two ways an artifact is written: CNCF ModelPack, and Docker Model Runner's own. Pure: descriptors in, bytes out.

Sources: ModelPack model-spec v1 (spec.md, config.md, annotations.go); Docker's model-spec v0.2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import Manifest, canonical_json
from artifact.modelconfig import ModelConfig
from packager.checkpoint import CHAT_TEMPLATE, PackFile
from packager.files import Kind, is_license, is_projector

_MODELPACK_TYPES = {
    Kind.WEIGHT: mediatypes.MODEL_WEIGHT,
    Kind.CONFIG: mediatypes.MODEL_WEIGHT_CONFIG,
    Kind.CODE: mediatypes.MODEL_CODE,
    Kind.DOC: mediatypes.MODEL_DOC,
}
_MAX_DOCKER_VALUE = 1024


@dataclass(frozen=True)
class Sealed:
    """An artifact ready to be stored: its manifest, its config's bytes, and the content of each layer."""

    manifest: Manifest
    config: bytes
    layers: tuple[tuple[Descriptor, PackFile], ...]

    @property
    def raw(self) -> bytes:
        """The manifest's bytes."""
        return self.manifest.to_bytes()

    def with_annotation(self, key: str, value: str) -> Sealed:
        """The artifact with one more annotation on its manifest."""
        return replace(self, manifest=replace(self.manifest, annotations={**self.manifest.annotations, key: value}))

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return Digest.of(self.raw)


def modelpack(files: Sequence[PackFile], digests: Sequence[Digest], config: ModelConfig) -> Sealed:
    """The artifact in CNCF ModelPack's layout: one raw layer a file."""
    layers = _layers(files, digests, lambda file: _MODELPACK_TYPES[file.kind])
    raw = config.to_bytes(layers)
    manifest = Manifest(
        config=Descriptor.of(raw, mediatypes.MODEL_CONFIG),
        layers=layers,
        artifact_type=mediatypes.MODEL_MANIFEST,
        annotations=config.annotations(),
    )
    return Sealed(manifest, raw, tuple(zip(layers, files, strict=True)))


def docker(
    files: Sequence[PackFile], digests: Sequence[Digest], config: ModelConfig, metadata: Mapping[str, Any]
) -> Sealed:
    """The artifact in Docker Model Runner's layout; `metadata` is that of the GGUF header, if it is one."""
    layers = _layers(files, digests, _docker_type)
    stated: dict[str, Any] = {
        "format": config.format,
        "quantization": config.precision,
        "parameters": _docker_count(config.parameters),
        "architecture": config.architecture,
        "size": f"{sum(file.size for file in files if file.kind is Kind.WEIGHT) / 2**20:.2f}MiB",
        "context_size": config.context_length,
    }
    if config.format == "gguf":
        stated["gguf"] = _docker_metadata(metadata)
    raw = canonical_json(
        {
            "config": {key: value for key, value in stated.items() if value},
            "descriptor": {"created": config.created},
            "rootfs": {"type": "rootfs", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    # Without an artifactType: with one, Docker's client takes it for another kind of artifact.
    manifest = Manifest(
        config=Descriptor.of(raw, mediatypes.DOCKER_MODEL_CONFIG_V02), layers=layers, annotations=config.annotations()
    )
    return Sealed(manifest, raw, tuple(zip(layers, files, strict=True)))


def _layers(
    files: Sequence[PackFile], digests: Sequence[Digest], media_type: Callable[[PackFile], str]
) -> tuple[Descriptor, ...]:
    return tuple(
        Descriptor(media_type(file), digest, file.size, layer_annotations(file))
        for file, digest in zip(files, digests, strict=True)
    )


def layer_annotations(file: PackFile) -> dict[str, str]:
    """What every reader of model artifacts names the file by. Mode, owner and time are the same for every file."""
    metadata = {
        "name": file.path.rpartition("/")[2], "mode": 0o644, "uid": 0, "gid": 0, "size": file.size,
        "mtime": "1970-01-01T00:00:00Z", "typeflag": 0,
    }  # fmt: skip
    return {
        mediatypes.FILEPATH: file.path,
        mediatypes.FILE_METADATA: json.dumps(metadata, ensure_ascii=False, separators=(",", ":")),
        mediatypes.FILE_UNTESTED: "false",
        mediatypes.TITLE: file.path,
    }


def _docker_type(file: PackFile) -> str:
    if file.kind is Kind.WEIGHT:
        if is_projector(file.path):
            return mediatypes.DOCKER_MMPROJ
        return mediatypes.DOCKER_GGUF if file.path.endswith(".gguf") else mediatypes.DOCKER_SAFETENSORS
    if file.path == CHAT_TEMPLATE:
        return mediatypes.DOCKER_CHAT_TEMPLATE
    return mediatypes.DOCKER_LICENSE if is_license(file.path) else mediatypes.DOCKER_MODEL_FILE


def _docker_count(parameters: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.2f}{unit}"
    return str(parameters)


def _docker_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    scalars = {key: value for key, value in sorted(metadata.items()) if isinstance(value, str | int | float)}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in scalars.items()}
    return {key: text for key, text in texts.items() if len(text) <= _MAX_DOCKER_VALUE}

"""The config blob of a model artifact: CNCF ModelPack written, ModelPack and Docker Model Runner's read.

The ModelPack schema is closed, so what it has no field for (exact precision, parameter count, context length) stands
in annotations of the manifest, under ``dev.stowage.*``. Source: model-spec v1, config.md; Docker model-spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import Malformed
from artifact.manifest import Manifest, canonical_json, load_json
from artifact.weights.precision import precision_word, size_label

MAX_CONFIG = 1024 * 1024
"""Largest config blob that is read, in bytes."""

_DOCKER_CONFIGS = (mediatypes.DOCKER_MODEL_CONFIG_V01, mediatypes.DOCKER_MODEL_CONFIG_V02)


@dataclass(frozen=True)
class ModelConfig:
    """What a model artifact says about itself.

    `format` is ``gguf`` or ``safetensors``; `precision` a label such as ``BF16`` or ``Q4_K_M``; `parameters` a count,
    0 if not stated; `architecture` the model's own architecture name (``llama``); `created` RFC 3339.
    """

    format: str
    precision: str
    parameters: int = 0
    architecture: str = ""
    name: str = ""
    family: str = ""
    context_length: int | None = None
    licenses: tuple[str, ...] = ()
    source_url: str = ""
    revision: str = ""
    created: str = "1970-01-01T00:00:00Z"
    input_types: tuple[str, ...] = ("text",)
    output_types: tuple[str, ...] = ("text",)

    def to_bytes(self, layers: Sequence[Descriptor]) -> bytes:
        """The ModelPack config of an artifact with these (uncompressed) layers."""
        descriptor: dict[str, Any] = {
            "createdAt": self.created, "family": self.family, "name": self.name, "sourceURL": self.source_url,
            "revision": self.revision, "licenses": list(self.licenses),
        }  # fmt: skip
        config: dict[str, Any] = {
            "architecture": "transformer",
            "format": self.format,
            "paramSize": size_label(self.parameters),
            "precision": precision_word(self.precision),
            "quantization": self.precision if self.format == "gguf" or not precision_word(self.precision) else None,
            "capabilities": {"inputTypes": list(self.input_types), "outputTypes": list(self.output_types)},
        }
        return canonical_json(
            {
                "descriptor": {key: value for key, value in descriptor.items() if value},
                "config": {key: value for key, value in config.items() if value},
                "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in layers]},
            }
        )

    def annotations(self) -> dict[str, str]:
        """The manifest annotations that carry what the config cannot."""
        values = {
            mediatypes.FORMAT: self.format,
            mediatypes.PRECISION: self.precision,
            mediatypes.PARAMETERS: str(self.parameters),
            mediatypes.ARCHITECTURE: self.architecture,
            mediatypes.CONTEXT_LENGTH: "" if self.context_length is None else str(self.context_length),
            mediatypes.CREATED: self.created,
            mediatypes.LICENSES: " AND ".join(self.licenses),
            mediatypes.SOURCE: self.source_url,
            mediatypes.REVISION: self.revision,
        }
        return {key: value for key, value in values.items() if value}

    @classmethod
    def read(cls, manifest: Manifest, raw: bytes) -> ModelConfig:
        """Read the config blob `raw` of `manifest`. Raises `Malformed` if it is no model, or contradicts itself."""
        media_type = manifest.config.media_type
        value = load_json(raw, "model config", MAX_CONFIG)
        if media_type == mediatypes.MODEL_CONFIG:
            fields = _modelpack(value, manifest)
        elif media_type in _DOCKER_CONFIGS:
            fields = _docker(value)
        else:
            raise Malformed(f"not a model artifact: its config is {media_type!r}")
        for key, field in ((mediatypes.FORMAT, "format"), (mediatypes.PRECISION, "precision")):
            stated = manifest.annotations.get(key)
            if stated and fields[field] and stated != fields[field]:
                raise Malformed(f"annotation {key} says {stated!r}, the config says {fields[field]!r}")
        annotations = manifest.annotations
        fields["precision"] = fields["precision"] or annotations.get(mediatypes.PRECISION, "")
        fields["parameters"] = _integer(annotations.get(mediatypes.PARAMETERS)) or 0
        fields["architecture"] = annotations.get(mediatypes.ARCHITECTURE, "") or fields.get("architecture", "")
        fields.setdefault("context_length", _integer(annotations.get(mediatypes.CONTEXT_LENGTH)))
        if fields["format"] not in ("gguf", "safetensors"):
            raise Malformed(f"model format must be gguf or safetensors, not {fields['format']!r}")
        return cls(**fields)


def _modelpack(value: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    config, descriptor = _object(value, "config"), _object(value, "descriptor")
    modelfs = _object(value, "modelfs")
    diff_ids = modelfs.get("diffIds", modelfs.get("diff_ids"))
    if diff_ids != [str(layer.digest) for layer in manifest.layers if _is_raw(layer)] and all(
        map(_is_raw, manifest.layers)
    ):
        raise Malformed("the config's diffIds are not the digests of the manifest's layers")
    licenses = descriptor.get("licenses") or []
    if not isinstance(licenses, list):
        raise Malformed("licenses must be a list")
    words = {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "fp16": "F16",
        "bf16": "BF16",
        "fp32": "F32",
    }
    word = _text(config, "precision")
    return {
        "format": _text(config, "format").lower(),
        "precision": _text(config, "quantization") or words.get(word.lower(), word),
        "name": _text(descriptor, "name"),
        "family": _text(descriptor, "family"),
        "licenses": tuple(str(item) for item in licenses),
        "source_url": _text(descriptor, "sourceURL"),
        "revision": _text(descriptor, "revision"),
        "created": _text(descriptor, "createdAt") or "1970-01-01T00:00:00Z",
    }


def _docker(value: dict[str, Any]) -> dict[str, Any]:
    config, descriptor = _object(value, "config"), _object(value, "descriptor")
    context = config.get("context_size")
    return {
        "format": _text(config, "format").lower(),
        "precision": _text(config, "quantization").removeprefix("MOSTLY_"),
        "architecture": _text(config, "architecture"),
        "context_length": context if isinstance(context, int) and not isinstance(context, bool) else None,
        "created": _text(descriptor, "created") or "1970-01-01T00:00:00Z",
    }


def _is_raw(layer: Descriptor) -> bool:
    return layer.media_type.endswith(".raw")


def _object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    if inner is not None and not isinstance(inner, dict):
        raise Malformed(f"model config: {key} must be an object")
    return inner or {}


def _text(value: Mapping[str, Any], key: str) -> str:
    inner = value.get(key)
    if inner is not None and not isinstance(inner, str):
        raise Malformed(f"model config: {key} must be a string")
    return inner or ""


def _integer(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not text.isdecimal() or len(text) > 18:
        raise Malformed(f"annotation must be a count, not {text[:40]!r}")
    return int(text)

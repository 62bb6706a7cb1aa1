"""The same model as Ollama reads it: a manifest of its own over the same GGUF blob, beside the artifact.

Source: Ollama's registry client and its `server/manifest`; `wire-formats`, section 3. Ollama does not read Jinja: its
template is written in Go's language, so it is taken from the table below for the families of templates that are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.manifest import Manifest, canonical_json
from artifact.weights.precision import Facts, size_label
from packager.checkpoint import PackFile
from packager.files import Kind, is_license, is_projector

SUFFIX = "-ollama"
"""Added to the artifact's tag, gives the tag of Ollama's manifest."""

MAX_LICENSE = 1024 * 1024
"""Largest licence that is shown, in bytes."""

_KNOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    (
        '{{ range .Messages }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}\n'
        "{{ .Content }}<end_of_turn>\n{{ end }}<start_of_turn>model\n",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    (
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
        ("<|end|>", "<|user|>", "<|assistant|>"),
    ),
)
"""A template in Go that lays a conversation out as Jinja templates with all these marks do, which are where to stop."""

_OTHERS = ("<|im_sep|>", "<|start|>", "<|message|>")
"""Marks of templates that lay a conversation out otherwise and share a family's marks: Phi 4, gpt-oss."""


@dataclass(frozen=True)
class Sibling:
    """Ollama's manifest, and the small blobs it names besides the weights. `templated` is whether it has a template."""

    manifest: Manifest
    blobs: tuple[tuple[Descriptor, bytes], ...]
    templated: bool


def check_layout(files: Sequence[PackFile], facts: Facts) -> None:
    """Raise `InvalidInput` if Ollama cannot load a model of these files."""
    weights = [file for file in files if file.kind is Kind.WEIGHT and not is_projector(file.path)]
    if facts.format != "gguf":
        raise InvalidInput("--ollama: Ollama loads GGUF only; add --format gguf")
    if len(weights) != 1:
        raise InvalidInput(f"--ollama: Ollama loads one GGUF file, this model has {len(weights)}: join them first")


def sibling(
    files: Sequence[PackFile],
    digests: Sequence[Digest],
    facts: Facts,
    metadata: Mapping[str, Any],
    template: str | None,
    licenses: Sequence[bytes],
) -> Sibling:
    """Ollama's manifest of the model in `files`, which have these digests; `metadata` is that of the GGUF header."""
    layers = [
        Descriptor(_weight_type(file), digest, file.size)
        for file, digest in zip(files, digests, strict=True)
        if file.kind is Kind.WEIGHT
    ]
    blobs = []
    go, stop = _template(template or "")
    if go:
        blobs.append(_blob(go.encode(), mediatypes.OLLAMA_TEMPLATE))
        blobs.append(_blob(canonical_json({"stop": list(stop)}), mediatypes.OLLAMA_PARAMS))
    blobs += [_blob(text, mediatypes.OLLAMA_LICENSE) for text in licenses]
    layers += [descriptor for descriptor, _ in blobs]
    family = str(metadata.get("general.architecture", ""))
    config = canonical_json(
        {
            "model_format": "gguf",
            "model_family": family,
            "model_families": [family],
            "model_type": size_label(facts.parameters),
            "file_type": facts.precision,
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    described = _blob(config, mediatypes.OLLAMA_CONFIG)
    manifest = Manifest(described[0], tuple(layers), media_type=mediatypes.DOCKER_MANIFEST)
    return Sibling(manifest, (*blobs, described), bool(go))


def is_text_license(file: PackFile) -> bool:
    """Whether the file is a licence's text, which Ollama shows."""
    return file.kind is Kind.DOC and is_license(file.path)


def _template(jinja: str) -> tuple[str, tuple[str, ...]]:
    if any(mark in jinja for mark in _OTHERS):
        return "", ()
    for go, marks in _KNOWN:
        if all(mark in jinja for mark in marks):
            return go, marks
    return "", ()


def _weight_type(file: PackFile) -> str:
    return mediatypes.OLLAMA_PROJECTOR if is_projector(file.path) else mediatypes.OLLAMA_MODEL


def _blob(data: bytes, media_type: str) -> tuple[Descriptor, bytes]:
    return Descriptor.of(data, media_type), data

"""What a model artifact consists of: a bill of materials as CycloneDX 1.6 JSON.

Source: cyclonedx.org/docs/1.6/json; the component type ``machine-learning-model`` and its ``modelCard``. What the
schema has no field for stands in properties, under the names of the manifest's annotations.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import Manifest, canonical_json
from artifact.modelconfig import ModelConfig
from artifact.version import __version__

MEDIA_TYPE = "application/vnd.cyclonedx+json"
FILE_NAME = "bom.cdx.json"
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"

QUANTIZATION = "dev.stowage.quantization"
"""Property of the model card: the precision again, where it is a quantised one."""

SIZE = "dev.stowage.size"
"""Property of a file: its size in bytes."""

_MODEL = "model"
_MAX_VERSION = 1024
_FLOATS = ("F64", "F32", "F16", "BF16")
_ALGORITHMS = {"sha256": "SHA-256", "sha512": "SHA-512"}
SPDX_IDS = frozenset({
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "ISC", "GPL-2.0-only",
    "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "AGPL-3.0-only", "AGPL-3.0-or-later", "LGPL-2.1-only",
    "LGPL-3.0-only", "LGPL-3.0-or-later", "MPL-2.0", "Unlicense", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0",
    "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "CC-BY-ND-4.0", "Artistic-2.0", "BSL-1.0", "WTFPL", "Zlib", "EUPL-1.1",
    "EUPL-1.2", "ECL-2.0", "OFL-1.1", "PDDL-1.0", "ODbL-1.0", "ODC-By-1.0", "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0", "CDLA-Sharing-1.0", "MS-PL", "EPL-1.0", "EPL-2.0", "AFL-3.0", "OSL-3.0", "NCSA",
    "PostgreSQL",
})  # fmt: skip
"""SPDX identifiers that are written as such; other licences are given by name, which the schema leaves free."""


@dataclass(frozen=True)
class Training:
    """What a model card states and an artifact's config has no field for: the task, and datasets by name."""

    task: str = ""
    datasets: Sequence[str] = ()


def bill_of_materials(
    subject: Digest, manifest: Manifest, config: ModelConfig, training: Training = Training(), *, timestamp: str = ""
) -> dict[str, Any]:
    """The bill of materials of the model artifact `subject`, from its manifest and config.

    It depends on the arguments and this program's version alone; two that differ have different serial numbers.
    `timestamp` (RFC 3339) is left out if empty.
    """
    files = [_file(number, layer) for number, layer in enumerate(manifest.layers, 1)]
    tool = {"type": "application", "name": "packager", "version": __version__}
    metadata: dict[str, Any] = {"timestamp": timestamp} if timestamp else {}
    metadata |= {
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [tool]},
        "component": _component(subject, config, training),
    }
    content: dict[str, Any] = {
        "metadata": metadata,
        "components": files,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [file["bom-ref"] for file in files]},
            *({"ref": file["bom-ref"]} for file in files),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"{SCHEMA}#{subject}#{Digest.of(canonical_json(content))}")
    head = {"$schema": SCHEMA, "bomFormat": "CycloneDX", "specVersion": "1.6"}
    return head | {"serialNumber": f"urn:uuid:{serial}", "version": 1} | content


def _component(subject: Digest, config: ModelConfig, training: Training) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": config.name or config.architecture or _MODEL,
        "version": config.revision[:_MAX_VERSION],
        "hashes": [_hash(subject)],
        "licenses": [{"license": _license(name)} for name in config.licenses],
        "externalReferences": [{"type": "distribution", "url": quote(config.source_url, safe="/:?=&%#@+~,;")}]
        if config.source_url
        else [],
        "modelCard": _model_card(config, training),
        "properties": _properties(
            {mediatypes.PARAMETERS: str(config.parameters or ""), mediatypes.CONTEXT_LENGTH: config.context_length}
        ),
    }
    return {key: value for key, value in component.items() if value}


def _model_card(config: ModelConfig, training: Training) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "task": training.task,
        "modelArchitecture": config.architecture,
        "datasets": [{"type": "dataset", "name": name} for name in training.datasets],
        "inputs": [{"format": kind} for kind in config.input_types],
        "outputs": [{"format": kind} for kind in config.output_types],
    }
    quantization = "" if config.precision in _FLOATS else config.precision
    stated = {
        mediatypes.FORMAT: config.format, mediatypes.PRECISION: config.precision, QUANTIZATION: quantization,
    }  # fmt: skip
    return {
        "modelParameters": {key: value for key, value in parameters.items() if value},
        "properties": _properties(stated),
    }


def _file(number: int, layer: Descriptor) -> dict[str, Any]:
    path = layer.annotations.get(mediatypes.FILEPATH) or layer.annotations.get(mediatypes.TITLE) or str(layer.digest)
    return {
        "type": "file",
        "bom-ref": f"file-{number}",
        "name": path,
        "hashes": [_hash(layer.digest)],
        "properties": _properties({SIZE: str(layer.size)}),
    }


def _hash(digest: Digest) -> dict[str, str]:
    return {"alg": _ALGORITHMS[digest.algorithm], "content": digest.hex}


def _license(name: str) -> dict[str, str]:
    return {"id": name} if name in SPDX_IDS else {"name": name}


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items() if value]

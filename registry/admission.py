"""What a model artifact must be before it is given a tag: a tag may not claim what the artifact says it is not.

The manifest's annotations and config are what is judged here. That they tell the truth about the bytes is checked where
the bytes are read, when the artifact is packed and again when it is run.
"""

from __future__ import annotations

from collections.abc import Sequence

from artifact import mediatypes
from artifact.errors import Malformed
from artifact.manifest import Manifest
from artifact.modelconfig import MAX_CONFIG, ModelConfig
from artifact.weights.precision import Facts, disagreement
from registry.blobs import Blobs
from registry.manifests import StoredManifest

_CONFIGS = (mediatypes.MODEL_CONFIG, mediatypes.DOCKER_MODEL_CONFIG_V01, mediatypes.DOCKER_MODEL_CONFIG_V02)


def admit(name: str, manifest: StoredManifest, tags: Sequence[str], blobs: Blobs) -> None:
    """Check a manifest that has passed `Manifests.check` against the tags it is to be given. Raises `Malformed`."""
    document = manifest.document
    if not isinstance(document, Manifest) or document.config.media_type not in _CONFIGS:
        return
    if document.config.size > MAX_CONFIG:
        raise Malformed(f"model config is larger than {MAX_CONFIG} bytes")
    raw = blobs.read(blobs.find(name, document.config.digest), MAX_CONFIG)
    try:
        config = ModelConfig.read(document, raw)
    except Malformed:
        if mediatypes.PRECISION in document.annotations or mediatypes.FORMAT in document.annotations:
            raise
        return  # a model in a format of someone else's, which makes no promise that could be broken
    facts = facts_stated(config)
    for tag in tags:
        problem = disagreement(tag, facts) if facts.precision else None
        if problem is not None:
            raise Malformed(problem)


def facts_stated(config: ModelConfig) -> Facts:
    """What a config says about the weights, in the form the bytes would say it."""
    return Facts(config.format, config.precision, config.parameters, ((config.precision, 1.0),))

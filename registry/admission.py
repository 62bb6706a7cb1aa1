"""What a model artifact must be before it is given a tag: a tag may not claim what the artifact says it is not.

The manifest's annotations and config are what is judged here. That they tell the truth about the bytes is checked where
the bytes are read, when the artifact is packed and again when it is run. Nothing is unpacked on the server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.filepath import checked_paths
from artifact.filetypes import is_code_name, is_unsafe_weight_name
from artifact.manifest import Index, Manifest
from artifact.modelconfig import MAX_CONFIG, ModelConfig
from artifact.weights.precision import Facts, disagreement, is_precision_tag
from registry.blobs import Blobs
from registry.config import sections
from registry.manifests import Manifests, StoredManifest
from registry.store.protocol import Missing
from supplychain.glob import matches

_CONFIGS = (mediatypes.MODEL_CONFIG, mediatypes.DOCKER_MODEL_CONFIG_V01, mediatypes.DOCKER_MODEL_CONFIG_V02)
_MODEL_CONFIGS = ("application/vnd.cncf.model.config.", "application/vnd.docker.ai.model.config.")
_LAYER = re.compile(
    r"application/vnd\.cncf\.model\.(weight|weight\.config|doc|code|dataset)\.v1\.(raw|tar|tar\+gzip|tar\+zstd)"
)
_DOCKER_LAYER = "application/vnd.docker.ai."
_WEIGHTS = ("application/vnd.cncf.model.weight.v1.", mediatypes.DOCKER_GGUF, mediatypes.DOCKER_SAFETENSORS)
_DOCKER_CONFIGS = (mediatypes.DOCKER_MODEL_CONFIG_V01, mediatypes.DOCKER_MODEL_CONFIG_V02)
_MODEL_LAYERS = ("application/vnd.cncf.model.", _DOCKER_LAYER)
_MAX_DEPTH = 6  # levels of indexes
_KINDS = {"code": is_code_name, "unsafe-weights": is_unsafe_weight_name}


def is_model(manifest: StoredManifest) -> bool:
    """Whether a manifest is, or says in any way it is, that of a model. Raises `Malformed` if it cannot be read."""
    document = manifest.document
    if not isinstance(document, Manifest):
        return document.artifact_type == mediatypes.MODEL_MANIFEST
    return (
        document.config.media_type.startswith(_MODEL_CONFIGS)
        or document.artifact_type == mediatypes.MODEL_MANIFEST
        or any(layer.media_type.startswith(_MODEL_LAYERS) for layer in document.layers)
    )


class Admission:
    """The checks of one registry."""

    def __init__(self, blobs: Blobs, manifests: Manifests, settings: sections.Admission | None = None) -> None:
        self._blobs = blobs
        self._manifests = manifests
        self._settings = settings or sections.Admission()

    def admit(self, name: str, manifest: StoredManifest, tags: Sequence[str]) -> None:
        """Check a manifest that has passed `Manifests.check` and the tags it is to be given. Raises `Malformed`."""
        document = manifest.document
        if not isinstance(document, Manifest):
            if any(map(is_precision_tag, tags)) and self._lists_models(name, manifest, document):
                raise Malformed("a tag that states the precision of a model points at its manifest, never at an index")
            return
        if not is_model(manifest):
            return
        if self._settings.layout:
            check_layout(document)
        check_files(document, self._settings.refuse, self._settings.refuse_kinds)
        config = self._config(name, document)
        facts = facts_stated(config) if config is not None else facts_annotated(document)
        for tag in tags:
            problem = disagreement(tag, facts) if facts is not None and facts.precision else None
            if problem is not None:
                raise Malformed(problem)

    def _lists_models(self, name: str, manifest: StoredManifest, index: Index) -> bool:
        """Whether an index is or lists a model, at any depth; each manifest is read once, however often it is listed.
        Raises `Malformed` where indexes are nested too deeply."""
        if is_model(manifest):
            return True
        level = seen = {item.digest for item in index.manifests}
        for _ in range(_MAX_DEPTH):
            below: set[Digest] = set()
            for digest in level:
                try:
                    listed = self._manifests.by_digest(name, digest)
                except Missing:
                    continue
                if is_model(listed):
                    return True
                if isinstance(listed.document, Index):
                    below.update(item.digest for item in listed.document.manifests)
            level = below - seen
            seen = seen | level
        if level:
            raise Malformed(f"indexes list one another more than {_MAX_DEPTH} levels deep")
        return False

    def _config(self, name: str, document: Manifest) -> ModelConfig | None:
        """The model's config; None for a model in a format of someone else's, which makes no promise that could be
        broken."""
        if document.config.media_type not in _CONFIGS:
            return None
        if document.config.size > MAX_CONFIG:
            raise Malformed(f"model config is larger than {MAX_CONFIG} bytes")
        raw = self._blobs.read(self._blobs.find(name, document.config.digest), MAX_CONFIG)
        try:
            return ModelConfig.read(document, raw)
        except Malformed:
            promised = mediatypes.PRECISION in document.annotations or mediatypes.FORMAT in document.annotations
            if promised or self._settings.layout:
                raise
            return None


def check_layout(document: Manifest) -> None:
    """That a model has the layout of ModelPack, or of Docker Model Runner: known layer types, one file a layer with a
    safe path of its own, weights among them. Source: model-spec v1, spec.md. Raises `Malformed`."""
    docker = document.config.media_type in _DOCKER_CONFIGS
    if not docker:
        if document.config.media_type != mediatypes.MODEL_CONFIG:
            raise Malformed(f"a model's config is {mediatypes.MODEL_CONFIG}, not {document.config.media_type[:100]!r}")
        if document.artifact_type != mediatypes.MODEL_MANIFEST:
            raise Malformed(f"a model's artifactType is {mediatypes.MODEL_MANIFEST}")
    for layer in document.layers:
        known = layer.media_type.startswith(_DOCKER_LAYER) if docker else _LAYER.fullmatch(layer.media_type)
        if not known:
            raise Malformed(f"layer {layer.digest.short} has a type that no model has: {layer.media_type[:100]!r}")
        if not docker and layer.media_type.endswith(".raw") and mediatypes.FILEPATH not in layer.annotations:
            raise Malformed(f"layer {layer.digest.short} has no annotation {mediatypes.FILEPATH}")
    if not any(layer.media_type.startswith(_WEIGHTS) for layer in document.layers):
        raise Malformed("a model without weights: no layer is a weight file")
    checked_paths([path for layer in document.layers for path in _paths(layer)[:1]])


def check_files(document: Manifest, refuse: Sequence[str], kinds: Sequence[str] = ()) -> None:
    """That no file has a name, or by its name a kind, that is refused. Raises `Malformed`, also for archives: what is
    in them is not seen."""
    if not refuse and not kinds:
        return
    for layer in document.layers:
        if ".tar" in layer.media_type:
            raise Malformed(f"layer {layer.digest.short} is an archive: file names in it cannot be checked, push files")
        for path in _paths(layer):
            for kind in kinds:
                if _KINDS[kind](path):
                    raise Malformed(f"file {path[:200]!r} is refused here: no {kind.replace('-', ' ')} in a model")
            folded = path.casefold()
            for pattern in refuse:
                if matches(pattern.casefold(), folded.rpartition("/")[2]) or matches(pattern.casefold(), folded):
                    raise Malformed(f"file {path[:200]!r} is refused here: no {pattern} in a model")


def _paths(layer: Descriptor) -> list[str]:
    keys = (mediatypes.FILEPATH, mediatypes.TITLE)
    return [layer.annotations[key] for key in keys if key in layer.annotations]


def facts_annotated(document: Manifest) -> Facts | None:
    """What annotations alone say about the weights; None if they do not state a format and a precision."""
    annotations = document.annotations
    stated = annotations.get(mediatypes.FORMAT, ""), annotations.get(mediatypes.PRECISION, "")
    parameters = annotations.get(mediatypes.PARAMETERS, "")
    count = int(parameters) if parameters.isdecimal() and len(parameters) <= 18 else 0
    return Facts(*stated, count, ((stated[1], 1.0),)) if all(stated) else None


def facts_stated(config: ModelConfig) -> Facts:
    """What a config says about the weights, in the form the bytes would say it."""
    return Facts(config.format, config.precision, config.parameters, ((config.precision, 1.0),))

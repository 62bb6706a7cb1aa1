"""Media types and annotation keys, each exactly as its specification spells it."""

from __future__ import annotations

# OCI image-spec 1.1
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"

# Docker distribution, schema 2
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFESTS = (IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST)
"""Every manifest type a client accepts, in order of preference."""

# CNCF ModelPack
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
MODEL_WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
MODEL_DOC = "application/vnd.cncf.model.doc.v1.raw"
MODEL_CODE = "application/vnd.cncf.model.code.v1.raw"
MODEL_DATASET = "application/vnd.cncf.model.dataset.v1.raw"

# Docker Model Runner
DOCKER_MODEL_CONFIG_V01 = "application/vnd.docker.ai.model.config.v0.1+json"
DOCKER_MODEL_CONFIG_V02 = "application/vnd.docker.ai.model.config.v0.2+json"
DOCKER_GGUF = "application/vnd.docker.ai.gguf.v3"
DOCKER_SAFETENSORS = "application/vnd.docker.ai.safetensors"
DOCKER_MMPROJ = "application/vnd.docker.ai.mmproj"
DOCKER_CHAT_TEMPLATE = "application/vnd.docker.ai.chat.template.jinja"
DOCKER_LICENSE = "application/vnd.docker.ai.license"
DOCKER_MODEL_FILE = "application/vnd.docker.ai.model.file"

# Ollama
OLLAMA_CONFIG = "application/vnd.docker.container.image.v1+json"
OLLAMA_MODEL = "application/vnd.ollama.image.model"
OLLAMA_PROJECTOR = "application/vnd.ollama.image.projector"
OLLAMA_TEMPLATE = "application/vnd.ollama.image.template"
OLLAMA_PARAMS = "application/vnd.ollama.image.params"
OLLAMA_LICENSE = "application/vnd.ollama.image.license"

# Signatures and attestations
SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
IN_TOTO = "application/vnd.in-toto+json"

# Annotations of others
FILEPATH = "org.cncf.model.filepath"
FILE_METADATA = "org.cncf.model.file.metadata+json"
FILE_UNTESTED = "org.cncf.model.file.mediatype.untested"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
REF_NAME = "org.opencontainers.image.ref.name"
LICENSES = "org.opencontainers.image.licenses"
SOURCE = "org.opencontainers.image.source"
REVISION = "org.opencontainers.image.revision"

# Annotations of ours, on the manifest: what the closed ModelPack config schema has no field for
FORMAT = "dev.stowage.format"
PRECISION = "dev.stowage.precision"
PARAMETERS = "dev.stowage.parameters"
TENSOR_TYPES = "dev.stowage.tensor-types"
"""Each tensor type's share of the parameters, largest first, of quantised weights: ``Q4_K 70.35%, Q6_K 29.65%``."""
IMATRIX = "dev.stowage.imatrix"
"""Digest of the importance matrix that the weights were quantised with."""
ARCHITECTURE = "dev.stowage.architecture"
CONTEXT_LENGTH = "dev.stowage.context-length"
BASE = "dev.stowage.base"
"""On an adapter: the digest of the manifest of the model it is for."""
OLLAMA = "dev.stowage.ollama"
"""The digest of the manifest of the same model in Ollama's layout, in the same repository."""

INDEX = "dev.stowage.index"
"""The digest of the tensor index, a blob of the same repository."""

# Ours, as content: the type of a tensor index, and the artifact type of the manifest that refers to it
TENSOR_INDEX = "application/vnd.dev.stowage.tensor-index.v1+json"

# Annotation of ours, in the index of a layout: the manifest this one refers to
SUBJECT = "dev.stowage.subject"

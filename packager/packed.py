"""An artifact that is packed already, read: what it holds and what it is, without fetching its weights."""

from __future__ import annotations

from dataclasses import dataclass

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.filepath import checked_paths
from artifact.locate import resolve
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.tensorindex import TensorIndex
from artifact.tensorindex.attach import read_index
from artifact.weights import gguf, safetensors
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE
from packager.files import is_projector

_UNNAMED = {
    mediatypes.DOCKER_GGUF: "model.gguf",
    mediatypes.DOCKER_MMPROJ: "mmproj.gguf",
    mediatypes.DOCKER_CHAT_TEMPLATE: CHAT_TEMPLATE,
    mediatypes.DOCKER_LICENSE: "LICENSE",
}
"""What the layers of Docker's earlier artifacts are, which have no paths."""


@dataclass(frozen=True)
class Packed:
    """An artifact: its manifest, its config, and its layers by the paths of their files."""

    repository: Repository
    reference: Reference
    descriptor: Descriptor
    manifest: Manifest
    config: ModelConfig
    layers: dict[str, Descriptor]

    @property
    def place(self) -> str:
        """The artifact as a user names it, without its digest."""
        return f"{self.reference.repository}" + (f":{self.reference.tag}" if self.reference.tag else "")

    def weights(self) -> dict[str, WeightFile]:
        """The headers of the weight files, by path, in order; projectors are none of the model's own."""
        return {path: self.header(path) for path in self.layers if is_weight(path)}

    def header(self, path: str) -> WeightFile:
        """The header of a weight file. Raises `Malformed`."""
        layer = self.layers[path]
        read = gguf.read_source if path.endswith(".gguf") else safetensors.read_source
        return read(self.repository.blob_source(layer), layer.size, path)

    def index(self) -> TensorIndex | None:
        """The tensor index; None if the artifact has none. Raises `NotFound` if the repository lost it, `Malformed`."""
        found = read_index(self.repository, self.manifest)
        return found[0] if found else None


def open_packed(repository: Repository, reference: Reference) -> Packed:
    """The artifact `reference` means. Raises `NotFound`, `DigestMismatch`, and `Malformed` if it is no model or
    contradicts itself."""
    descriptor, raw = repository.manifest(resolve(repository, reference).digest)
    manifest = Manifest.parse(raw, descriptor.media_type)
    config = ModelConfig.read(manifest, repository.read_blob(manifest.config))
    layers = dict(zip(checked_paths([_path(layer) for layer in manifest.layers]), manifest.layers, strict=True))
    return Packed(repository, reference, descriptor, manifest, config, layers)


def paths_of(repository: Repository, descriptor: Descriptor) -> dict[str, str]:
    """What the layers of a manifest are called, by digest; those of an index, or without a name, are not there."""
    manifest = _manifest(repository, descriptor)
    layers = manifest.layers if manifest else ()
    titles = {str(layer.digest): layer.annotations.get(mediatypes.TITLE, "") for layer in layers}
    return {digest: title for digest, title in titles.items() if title}


def sibling_of(repository: Repository, descriptor: Descriptor) -> Digest | None:
    """The manifest for Ollama that an artifact names, if it lies beside it."""
    manifest = _manifest(repository, descriptor)
    stated = manifest.annotations.get(mediatypes.OLLAMA) if manifest else None
    if stated is None:
        return None
    try:
        return repository.resolve(Digest.parse(stated)).digest
    except (InvalidInput, NotFound):
        return None


def _manifest(repository: Repository, descriptor: Descriptor) -> Manifest | None:
    if descriptor.media_type not in (mediatypes.IMAGE_MANIFEST, mediatypes.DOCKER_MANIFEST):
        return None
    return Manifest.parse(repository.manifest(descriptor.digest)[1], descriptor.media_type)


def is_weight(path: str) -> bool:
    """Whether the file holds tensors of the model itself."""
    return path.endswith((".gguf", ".safetensors")) and not is_projector(path)


def _path(layer: Descriptor) -> str:
    path = layer.annotations.get(mediatypes.FILEPATH) or layer.annotations.get(mediatypes.TITLE)
    path = path or _UNNAMED.get(layer.media_type)
    if path is None:
        raise Malformed(f"layer {layer.digest.short} ({layer.media_type}) has no file path")
    return path

"""What the runner knows about a model from its manifest and config alone, before a byte of its weights is fetched.

Reading is where an artifact is refused for what it is: no model, a file path that escapes, pickled weights, code.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, Refused
from artifact.filepath import checked_paths
from artifact.filetypes import is_code_name, is_source_name, is_unsafe_weight_name, suffix_of
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig

_RAW = ".v1.raw"
_DOCKER_NAMES = {
    mediatypes.DOCKER_GGUF: "model.gguf",
    mediatypes.DOCKER_SAFETENSORS: "model.safetensors",
    mediatypes.DOCKER_MMPROJ: "mmproj.gguf",
    mediatypes.DOCKER_CHAT_TEMPLATE: "template.jinja",
    mediatypes.DOCKER_LICENSE: "LICENSE",
}
_WEIGHT_TYPES = frozenset((mediatypes.MODEL_WEIGHT, mediatypes.DOCKER_GGUF, mediatypes.DOCKER_SAFETENSORS))


class CodeRefused(Refused):
    """The artifact carries code, or would make an engine run some (CVE-2026-5817)."""

    code = "code-in-artifact"


class PickleRefused(Refused):
    """The artifact carries weights in a format that runs code when it is loaded."""

    code = "pickle"


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: its checked path relative to the bundle, and the blob that is its content."""

    path: str
    blob: Descriptor

    @property
    def suffix(self) -> str:
        """The file name's extension in lower case, with its dot."""
        return suffix_of(self.path)


@dataclass(frozen=True)
class Model:
    """One model, named by the digest of its manifest."""

    digest: Digest
    manifest: Manifest
    config: ModelConfig
    files: Sequence[ModelFile]

    @classmethod
    def read(cls, descriptor: Descriptor, raw: bytes, config: bytes, source: Collection[str] | None = ()) -> Model:
        """Read a manifest and its config, both already checked against their digests. `source` is as in `model_files`.

        Raises `Malformed` if this is no model the runner can use, `CodeRefused` or `PickleRefused` (both `Refused`)
        for what it carries.
        """
        manifest = model_manifest(descriptor, raw)
        return cls(descriptor.digest, manifest, ModelConfig.read(manifest, config), model_files(manifest, source))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum({file.blob.digest: file.blob.size for file in self.files}.values())

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths of the weight files in the order of their names, projectors apart: the first of a sharded GGUF leads
        to the others."""
        return tuple(
            sorted(file.path for file in self.files if file.suffix == f".{self.config.format}" and not _is_mmproj(file))
        )

    @property
    def projector(self) -> str | None:
        """Path of the multimodal projector, if there is one."""
        return next((file.path for file in self.files if file.suffix == ".gguf" and _is_mmproj(file)), None)

    @property
    def chat_template(self) -> str | None:
        """Path of the chat template, if exactly one ``*.jinja`` lies at the top level."""
        found = [file.path for file in self.files if file.suffix == ".jinja" and "/" not in file.path]
        return found[0] if len(found) == 1 else None


def model_manifest(descriptor: Descriptor, raw: bytes) -> Manifest:
    """The manifest of a model. Raises `Malformed` for an index and for anything that is not a model."""
    if descriptor.media_type not in (mediatypes.IMAGE_MANIFEST, mediatypes.DOCKER_MANIFEST):
        raise Malformed(f"{descriptor.digest.short} is {descriptor.media_type}, not a model: a model is never an index")
    manifest = Manifest.parse(raw, descriptor.media_type)
    if not manifest.config.media_type.startswith(("application/vnd.cncf.model.config.", "application/vnd.docker.ai.")):
        kind = manifest.artifact_type or manifest.config.media_type
        raise Malformed(f"{descriptor.digest.short} is not a model: it is {kind!r}")
    return manifest


def model_files(manifest: Manifest, source: Collection[str] | None = ()) -> tuple[ModelFile, ...]:
    """The files of a model with their checked paths. `source` are the paths of Python source that it may carry; None
    leaves that to be decided later. Raises `Malformed`, `CodeRefused`, `PickleRefused`."""
    if not manifest.layers:
        raise Malformed("the model has no files: its manifest has no layers")
    names = [_stated_path(layer) for layer in manifest.layers]
    paths = checked_paths([name or _docker_path(manifest.layers, at) for at, name in enumerate(names)])
    files = tuple(ModelFile(path, layer) for path, layer in zip(paths, manifest.layers, strict=True))
    for file in files:
        _check_kind(file, source)
    return files


def _stated_path(layer: Descriptor) -> str | None:
    return layer.annotations.get(mediatypes.FILEPATH) or layer.annotations.get(mediatypes.TITLE)


def _docker_path(layers: Sequence[Descriptor], at: int) -> str:
    """A name for a layer that has none: Docker Model Runner tells files by their media type. Raises `Malformed`."""
    layer = layers[at]
    name = _DOCKER_NAMES.get(layer.media_type)
    if name is None:
        raise Malformed(f"layer {layer.digest.short} ({layer.media_type}) has no file path")
    same = [index for index, other in enumerate(layers) if other.media_type == layer.media_type]
    if len(same) == 1:
        return name
    path = PurePosixPath(name)
    if path.suffix in (".gguf", ".safetensors"):
        return f"{path.stem}-{same.index(at) + 1:05d}-of-{len(same):05d}{path.suffix}"
    return f"{path.stem}-{same.index(at) + 1}{path.suffix}"


def _check_kind(file: ModelFile, source: Collection[str] | None) -> None:
    media_type = file.blob.media_type
    if is_code_name(file.path) or media_type.startswith("application/vnd.cncf.model.code."):
        if not (is_source_name(file.path) and media_type == mediatypes.MODEL_CODE):
            raise CodeRefused(f"the model carries code that is no Python source in a layer for code: {file.path!r}")
        if source is not None and file.path not in source:
            raise CodeRefused(f"the model carries code, and no policy grants that it may run: {file.path!r}")
        return
    if is_unsafe_weight_name(file.path):
        raise PickleRefused(
            f"the model carries {file.path!r}, a format that can run code when loaded: use safetensors or GGUF"
        )
    if media_type.startswith("application/vnd.cncf.model.") and not media_type.endswith(_RAW):
        raise Malformed(f"{file.path!r} is packed as {media_type.rpartition('.')[2]}: only raw layers are read")
    is_weight_name = file.suffix in (".gguf", ".safetensors")
    if media_type in _WEIGHT_TYPES and not is_weight_name:
        raise PickleRefused(f"weights must be .safetensors or .gguf files, not {file.path!r}")
    if is_weight_name and media_type not in _WEIGHT_TYPES and not _is_mmproj(file):
        raise Malformed(f"{file.path!r} is named like a weight file, but its layer says {media_type}")


def _is_mmproj(file: ModelFile) -> bool:
    return file.blob.media_type == mediatypes.DOCKER_MMPROJ or "mmproj" in PurePosixPath(file.path).name.lower()

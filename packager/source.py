"""What a user may name as SOURCE: a checkpoint folder, a GGUF file, or a model on a Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifact.errors import InvalidInput, Malformed, NotFound
from packager.checkpoint import Checkpoint
from packager.files import is_pickle_name
from packager.gguffile import open_gguf
from packager.hub import SCHEME, HubModel, snapshot
from packager.huggingface import open_folder


def is_source(text: str) -> bool:
    """Whether `text` names something to pack rather than an artifact: a hub model, or a path that exists."""
    return text.startswith(SCHEME) or Path(text).exists()


def open_source(text: str, globs: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint `text` names; a hub model is downloaded into the hub client's cache.

    `globs` are those of ``--file-filter``. Raises `NotFound`, `Malformed`, `InvalidInput`, `Unreachable`.
    """
    if not text.startswith(SCHEME):
        return open_path(Path(text), globs)
    model = HubModel.parse(text)
    found = snapshot(model, globs)
    place = f"{SCHEME}{model.repository}@{found.commit}"
    checkpoint = open_folder(found.folder, place, found.globs)
    return checkpoint.with_origin(place, found.url, found.commit, model.repository.rpartition("/")[2])


def open_path(path: Path, globs: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint at a path. Raises `NotFound`, `Malformed`, `InvalidInput`."""
    if path.is_dir():
        return open_folder(path, str(path), globs)
    if not path.exists():
        raise NotFound(f"{path}: no such file or folder (a model on a hub is {SCHEME}ORG/NAME@REV)")
    if not path.is_file():
        raise Malformed(f"{path}: not a regular file")
    if path.suffix.lower() == ".gguf":
        if globs:
            raise InvalidInput("--file-filter applies to folders, not to a GGUF file")
        return open_gguf(path, str(path))
    if is_pickle_name(path.name):
        raise Malformed(f"{path}: a pickle runs code when it is loaded and is never packed; use safetensors weights")
    if path.suffix.lower() == ".safetensors":
        raise Malformed(f"{path}: weights alone are no checkpoint; give the folder with its config.json")
    raise Malformed(f"{path}: not a checkpoint: want a folder with config.json and safetensors, or a .gguf file")

"""Which files of a checkpoint are packed, and as what. Pure rules on names: no file is opened here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

from artifact.errors import InvalidInput
from artifact.filetypes import is_source_name


class Kind(StrEnum):
    """What a file is to a model; the value is the word in ModelPack's media type."""

    WEIGHT = "weight"
    CONFIG = "weight.config"
    CODE = "code"
    DOC = "doc"


ORDER = (Kind.WEIGHT, Kind.CONFIG, Kind.CODE, Kind.DOC)
"""The order of layers: by kind, then by path."""

PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
"""How a pickle of protocol 2 and later begins."""

_WEIGHTS = (".safetensors", ".gguf")
_CONFIGS = (".json", ".txt", ".model", ".jinja", ".yaml", ".yml", ".tiktoken", ".vocab", ".merges")
_DOCS = re.compile(
    r"(?:readme|licen[cs]e|notice|copying|use_policy|model_card|copyright)(?:[._-].*)?|.*\.md", re.IGNORECASE
)
_LICENSE = re.compile(r"(?:licen[cs]e|copying)(?:[._-].*)?", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.safetensors|\.gguf)")


def kind_of(path: str) -> Kind | None:
    """What the file is; None for one that is not packed (hidden files, pickles, images, other frameworks' weights)."""
    name = path.rpartition("/")[2]
    lower = name.lower()
    if name.startswith("."):
        return None
    if lower.endswith(_WEIGHTS):
        return Kind.WEIGHT
    if is_source_name(name):
        return Kind.CODE
    if _DOCS.fullmatch(name):
        return Kind.DOC
    return Kind.CONFIG if lower.endswith(_CONFIGS) else None


def is_license(path: str) -> bool:
    """Whether the file is a licence text."""
    return _LICENSE.fullmatch(path.rpartition("/")[2]) is not None


def is_projector(path: str) -> bool:
    """Whether the name is one under which llama.cpp keeps a projector (what turns images or sound into embeddings)."""
    return path.endswith(".gguf") and "mmproj" in path.rpartition("/")[2].lower()


def is_gguf_folder(paths: Collection[str]) -> bool:
    """Whether these files are a model in GGUF: one beside safetensors is a copy of what they hold."""
    top = [path for path in paths if "/" not in path]
    return any(path.endswith(".gguf") for path in top) and not any(path.endswith(".safetensors") for path in top)


def misspelt(paths: Iterable[str]) -> str | None:
    """The first of these files whose name is that of GGUF weights but for capitals: no engine finds it under that."""
    return next((path for path in paths if path.lower().endswith(".gguf") and not path.endswith(".gguf")), None)


def shards_of(name: str) -> tuple[str, ...] | None:
    """All file names of the sharded set `name` belongs to, in order; None if it is no shard.

    Raises `InvalidInput` on numbers that make no set.
    """
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise InvalidInput(f"{name}: there is no shard {number} of {count}")
    return tuple(f"{match['stem']}-{n:05d}-of-{count:05d}{match['suffix']}" for n in range(1, count + 1))


def is_filtered_out(path: str, globs: Sequence[str]) -> bool:
    """Whether `--file-filter` leaves the file out: a glob takes in, one after ``!`` leaves out, the last match counts.

    With only ``!`` globs everything else is in; with none everything is.
    """
    kept = all(glob.startswith("!") for glob in globs)
    for glob in globs:
        if fnmatchcase(path, glob.removeprefix("!")):
            kept = not glob.startswith("!")
    return not kept

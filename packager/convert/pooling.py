"""How an embedding model makes one vector of a text's, as sentence-transformers records it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from artifact.errors import Malformed
from packager.convert.documents import MAX_CONFIG, Fields, read_bytes, read_object
from packager.convert.errors import Unsupported
from packager.jsonfile import load_lenient

_KINDS = {"mean": 1, "cls": 2, "lasttoken": 3}
"""llama.h, enum llama_pooling_type."""

_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}


def pooling_of(folder: Path) -> int | None:
    """The pooling type, if the folder has one: no ``modules.json``, no pooling. Raises `Malformed` for a broken file,
    `Unsupported` for a way that llama.cpp does not have."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    inside = b'{"modules":%s}' % read_bytes(path, MAX_CONFIG - 32)  # a list on its own, unlike every other document
    document = Fields(path.name, load_lenient(inside, str(path), MAX_CONFIG))
    modules = [document.nested("module", entry) for entry in document.items("modules")]
    kinds = [_kind(folder, module) for module in modules if module.text("type", "").endswith("Pooling")]
    if len(kinds) > 1:
        raise Unsupported(f"{path}: {len(kinds)} modules that pool, llama.cpp has one")
    return _KINDS[kinds[0]] if kinds else None


def _kind(folder: Path, module: Fields) -> str:
    place = PurePosixPath(module.text("path"))
    if len(place.parts) != 1 or place.parts[0] in ("..", "/"):
        raise Malformed(f"{module.where}: not a folder beside it: {str(place)!r:.80}")
    settings = read_object(folder / place / "config.json")
    stated = [kind for flag, kind in _FLAGS.items() if settings.flag(flag, False)] or [
        settings.text("pooling_mode", "")
    ]
    if len(stated) != 1 or stated[0] not in _KINDS:
        raise Unsupported(f"{settings.where} of {place}: only pooling by mean, CLS or last token is converted")
    return stated[0]

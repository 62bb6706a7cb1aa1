"""What a checkpoint's README.md says about the model, as GGUF's general keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.convert.documents import Fields, read_bytes
from packager.convert.gguf_header import Metadata
from packager.description import from_checkpoint, front_matter

_MAX_CARD = 1024 * 1024


def describe_card(metadata: Metadata, folder: Path, config: Fields) -> None:
    """Write name, licence, languages and tags as far as they are stated. Never the folder's name, so that a copy of
    the folder converts to the same bytes. Raises `Malformed` for a card of more than 1 MiB."""
    path = folder / "README.md"
    readme = read_bytes(path, _MAX_CARD).decode("utf-8", "replace") if path.is_file() else ""
    card = front_matter(readme)
    for key, text in (
        ("name", from_checkpoint(config.values, readme).name),
        ("license", card.get("license")),
        ("license.name", card.get("license_name")),
        ("license.link", card.get("license_link")),
    ):
        if isinstance(text, str) and text:
            metadata.string(f"general.{key}", text)
    if tags := _texts(card.get("tags")) + _texts(card.get("pipeline_tag")):
        metadata.strings("general.tags", tags)
    if languages := _texts(card.get("language")):
        metadata.strings("general.languages", languages)


def _texts(value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)]

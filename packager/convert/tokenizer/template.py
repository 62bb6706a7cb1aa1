"""Chat templates: where checkpoints keep them, and GGUF's keys for them. Never rendered here."""

from __future__ import annotations

import re
from pathlib import Path

from packager.convert.documents import Fields, read_object_if_any, read_text
from packager.convert.gguf_header import Metadata
from packager.template import MAX_TEMPLATE, chosen, named_templates

_DEFAULT = "default"


def chat_templates(folder: Path, settings: Fields) -> dict[str, str]:
    """The templates by name; empty if there is none.

    A file of its own (``chat_template.jinja``, the older ``chat_template.json``) goes before tokenizer_config.json,
    as it does in transformers.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {_DEFAULT: read_text(file, 4 * MAX_TEMPLATE)}
    named = named_templates(read_object_if_any(folder / "chat_template.json").values) or named_templates(
        settings.values
    )
    default = chosen(named)
    return named if default is None else {**named, _DEFAULT: default}


def describe_templates(metadata: Metadata, templates: dict[str, str]) -> None:
    """Write the default template, and any others under their names."""
    others = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in templates.items() if name != _DEFAULT}
    if others:
        metadata.strings("tokenizer.chat_templates", list(others))
    for name, text in others.items():
        metadata.string(f"tokenizer.chat_template.{name}", text)
    if _DEFAULT in templates:
        metadata.string("tokenizer.chat_template", templates[_DEFAULT])

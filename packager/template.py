"""Chat templates: found where a checkpoint keeps them, and looked through for what a template must not do.

The template is data to the packager: it is never rendered here. Engines render it in a sandbox; the patterns below
are what escapes from sandboxes are built of (CVE-2024-34359).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from packager.findings import Finding

MAX_TEMPLATE = 1024 * 1024
"""Longest chat template that is accepted, in characters."""

_BLOCK = re.compile(r"\{\{.*?(?:\}\}|\Z)|\{%.*?(?:%\}|\Z)|\{#.*?(?:#\}|\Z)", re.DOTALL)
_UNSAFE = (
    (re.compile(r"__\w*|\\x5f|\\u005f|\\137", re.IGNORECASE), "uses double-underscore names"),
    (re.compile(r"\|\s*attr\b|\bgetattr\b|\bfilter\s+attr\b"), "uses the attr filter"),
    (re.compile(r"\|\s*(?:map|select|reject)\s*\(\s*['\"]attr['\"]"), "uses the attr filter through another"),
    (re.compile(r"\{%[-+]?\s*(?:import|from|include|extends)\b"), "imports or includes other templates"),
    (re.compile(r"\.\s*(?:mro|format_map|[fgi]+_frame|f_globals|f_back|func_globals)\b"), "reaches into Python"),
)  # fmt: skip


def unsafe_uses(template: str) -> list[str]:
    """What the template does that no chat template needs, in words; empty if nothing.

    Only the code in it is looked at: text and comments around it do nothing.
    """
    blocks = [block for block in _BLOCK.findall(template) if not block.startswith("{#")]
    return [what for pattern, what in _UNSAFE if any(pattern.search(block) for block in blocks)]


def template_findings(template: str, path: str) -> list[Finding]:
    """The findings about a template that stands in the file `path`."""
    if len(template) > MAX_TEMPLATE:
        return [Finding("template-unsafe", f"the chat template is longer than {MAX_TEMPLATE} characters", path)]
    return [Finding("template-unsafe", f"the chat template {what}", path) for what in unsafe_uses(template)]


def chosen(named: Mapping[str, str]) -> str | None:
    """Of named templates the one an engine uses unless told otherwise: the only one, or ``default``."""
    if len(named) == 1:
        return next(iter(named.values()))
    return named.get("default")


def named_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """All chat templates in a parsed tokenizer_config.json or chat_template.json, by name; an unnamed one is
    ``default``."""
    value = config.get("chat_template")
    if isinstance(value, str):
        return {"default": value} if value else {}
    if isinstance(value, dict):
        return {str(name): text for name, text in value.items() if isinstance(text, str)}
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str):
            # Of two with one name an engine may take either: keep both in sight.
            name = item["name"] if item["name"] not in named else f"{item['name']} ({len(named)})"
            named[name] = item["template"]
    return named

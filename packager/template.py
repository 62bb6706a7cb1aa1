"""Chat templates: found where a checkpoint keeps them, and looked through for what a template must not do.

The template is data to the packager: it is never rendered here. Engines render it in a sandbox; the patterns below
are what escapes from sandboxes are built of (CVE-2024-34359).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from packager.findings import Finding

MAX_TEMPLATE = 1024 * 1024
"""Longest chat template that is accepted, in characters."""

_BEGIN = re.compile(r"\{[{%#]")
_RAW = re.compile(r"\{%[-+]?\s*raw\b")
_PARTS = re.compile(r"""'(?:[^'\\]++|\\.|\\\Z)*+'?|"(?:[^"\\]++|\\.|\\\Z)*+"?|[^'"%(){}\[\]]++|.""", re.DOTALL)
"""What code in a template is made of: strings, of which the last may have no end, single marks, and all between them.
Each part begins where the last one ended and none is tried twice, so that looking takes no more steps than characters.
"""
_UNSAFE = (
    (re.compile(r"__\w*|\\x5f|\\u005f|\\137", re.IGNORECASE), "uses double-underscore names"),
    (re.compile(r"\|\s*attr\b|\bgetattr\b|\bfilter\s+attr\b"), "uses the attr filter"),
    (re.compile(r"\|\s*(?:map|select|reject)\s*\(\s*['\"]attr['\"]"), "uses the attr filter through another"),
    (re.compile(r"\{%[-+]?\s*(?:import|from|include|extends)\b"), "imports or includes other templates"),
    (re.compile(r"\.\s*(?:mro|format_map|[fgi]+_frame|f_globals|f_back|func_globals)\b"), "reaches into Python"),
)  # fmt: skip


def unsafe_uses(template: str) -> list[str]:
    """What the template does that no chat template needs, in words; empty if nothing.

    Only the code in it is looked at: text and comments around it do nothing. A hint, no barrier: what puts its names
    together while it runs is not seen.
    """
    # Where raw text ends only its own mark says: what looks like a comment in there hides nothing.
    blocks = [template] if _RAW.search(template) else list(_code(template))
    return [what for pattern, what in _UNSAFE if any(pattern.search(block) for block in blocks)]


def _code(template: str) -> Iterator[str]:
    """The statements and expressions, ended where Jinja ends them (jinja2, lexer.py): by a mark that is in no string
    and in no brackets. One without an end goes on to the end of the template."""
    position = 0
    while begin := _BEGIN.search(template, position):
        if begin[0] == "{#":
            end = template.find("#}", begin.end())
            position = end + 2 if end >= 0 else len(template)
            continue
        position = _end(template, begin.end(), "%" if begin[0] == "{%" else "}")
        yield template[begin.start() : position]


def _end(template: str, position: int, mark: str) -> int:
    """Where the code ends whose end is `mark` and a brace."""
    depth, before = 0, ""
    for part in _PARTS.finditer(template, position):
        text = part[0]
        if text == "}" and before == mark:
            return part.end()
        if text in ("(", "[", "{"):
            depth += 1
        elif text in (")", "]", "}") and depth:
            depth, text = depth - 1, ""  # closes a bracket, and is no half of an end
        before = text if not depth else ""
    return len(template)


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

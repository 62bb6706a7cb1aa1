"""What a model says about itself: name, architecture, licence, context length. Pure functions on parsed metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#[ \t]+(\S.{0,79}?)[ \t]*$", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_MAX_FRONT_MATTER = 64 * 1024
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "model_max_length")
_MAX_CONTEXT = 10**12
_MAX_NAMES = 256

SPDX = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause",
    "isc": "ISC", "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only", "agpl-3.0": "AGPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only", "mpl-2.0": "MPL-2.0", "unlicense": "Unlicense", "cc0-1.0": "CC0-1.0",
    "cc-by-3.0": "CC-BY-3.0", "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0", "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0", "bigscience-bloom-rail-1.0": "LicenseRef-bigscience-bloom-rail-1.0",
    "openrail": "LicenseRef-openrail", "bigcode-openrail-m": "LicenseRef-bigcode-openrail-m",
    "artistic-2.0": "Artistic-2.0", "bsl-1.0": "BSL-1.0", "wtfpl": "WTFPL", "zlib": "Zlib", "eupl-1.1": "EUPL-1.1",
}  # fmt: skip
"""Hugging Face's licence identifiers to SPDX's."""


@dataclass(frozen=True)
class Description:
    """What the metadata states; empty where it states nothing. `context_length` is in tokens; `task` is a word such
    as ``text-generation``, `inputs` what it reads (``text``, ``image``, ``audio``), `datasets` are names of what the
    model was trained on."""

    name: str = ""
    architecture: str = ""
    context_length: int | None = None
    licenses: tuple[str, ...] = ()
    source_url: str = ""
    revision: str = ""
    task: str = ""
    inputs: tuple[str, ...] = ("text",)
    datasets: tuple[str, ...] = ()


def from_checkpoint(config: Mapping[str, Any], readme: str) -> Description:
    """The description in a config.json and a model card."""
    card = front_matter(readme)
    heading = _HEADING.search(_FRONT_MATTER.sub("", readme))
    recorded = str(config.get("_name_or_path") or "").rpartition("/")[2]
    name = _text(card, "model_name") or (heading[1] if heading else "")
    return Description(
        name=_clean(name) or (recorded if _PLAIN.fullmatch(recorded) else ""),
        architecture=_clean(_text(config, "model_type")),
        context_length=_context(config) or _context(_mapping(config.get("text_config"))),
        licenses=licenses_of(card),
        task=_clean(_text(card, "pipeline_tag")),
        datasets=_names(card.get("datasets")),
    )


def from_gguf(metadata: Mapping[str, Any]) -> Description:
    """The description in GGUF metadata (ggml's docs/gguf.md, "Standardized key-value pairs")."""
    architecture = _text(metadata, "general.architecture")
    license_ = _text(metadata, "general.license")
    context = metadata.get(f"{architecture}.context_length")
    return Description(
        name=_clean(_text(metadata, "general.name") or _text(metadata, "general.basename")),
        architecture=_clean(architecture),
        context_length=context if _is_context(context) else None,
        licenses=(spdx(license_),) if license_ and len(license_) <= 100 else (),
        datasets=_names(metadata.get("general.datasets")),
    )


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML block a model card begins with; empty if there is none that can be read."""
    match = _FRONT_MATTER.match(readme)
    if match is None or len(match[1]) > _MAX_FRONT_MATTER:
        return {}
    import yaml  # takes a while to load, and a push needs none

    try:
        value = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError):
        return {}  # a value that is not of the type its tag names fails as it happens to: `!!bool foo`
    return value if isinstance(value, dict) else {}


def licenses_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The licences a model card's front matter states, as SPDX identifiers where they have one."""
    value = card.get("license")
    stated = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item]
    if stated == ["other"] and _text(card, "license_name"):
        stated = [_text(card, "license_name")]
    return tuple(dict.fromkeys(spdx(item) for item in stated if item not in ("other", "unknown")))


def spdx(identifier: str) -> str:
    """The SPDX spelling of a licence identifier; ``LicenseRef-…`` for one SPDX does not list."""
    known = SPDX.get(identifier.lower())
    if known or identifier in SPDX.values():
        return known or identifier
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", identifier.removeprefix("LicenseRef-")).strip("-")[:80]


def slug(name: str) -> str:
    """A name as the stem of a file name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")[:80] or "model"


def _context(config: Mapping[str, Any]) -> int | None:
    return next((int(config[key]) for key in _CONTEXT_KEYS if _is_context(config.get(key))), None)


def _is_context(value: Any) -> bool:
    return type(value) is int and 0 < value < _MAX_CONTEXT


def _text(value: Mapping[str, Any], key: str) -> str:
    inner = value.get(key)
    return inner if isinstance(inner, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _names(value: Any) -> tuple[str, ...]:
    """The names in a list, or the one that stands there alone; what is no name is passed over."""
    items = value if isinstance(value, list | tuple) else [value]
    names = (_clean(item) for item in items[:_MAX_NAMES] if isinstance(item, str))
    return tuple(dict.fromkeys(name for name in names if name))


def _clean(text: str) -> str:
    return "".join(char for char in text if char.isprintable()).strip()[:100]

"""JSON files of a checkpoint, as Python's own writer makes them: with NaN and Infinity, which JSON does not have.

Nothing written here has them. They are let through where a file is merely looked at; who takes a number out of one
checks that it is one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from artifact.errors import Malformed

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def load_lenient(raw: bytes, what: str, limit: int) -> dict[str, Any]:
    """Parse a JSON object of bounded size with no key given twice, and text that is text; NaN, Infinity and -Infinity
    are numbers. `what` names it in errors. Raises `Malformed`."""
    if len(raw) > limit:
        raise Malformed(f"{what} is larger than {limit} bytes")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if _HALF.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Malformed(f"{what} has half a character in it, which is no text (\\ud800 to \\udfff alone)") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value

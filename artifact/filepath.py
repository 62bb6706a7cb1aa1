"""File paths that come out of an artifact.

An annotation is untrusted text: it becomes a path only after it is shown to be relative, normalised and inside.
"""

from __future__ import annotations

import unicodedata

from artifact.errors import Malformed

MAX_PATH = 1024
"""Longest file path an artifact may give, in UTF-8 bytes."""


def checked_path(text: str) -> str:
    """`text` if it is a safe relative POSIX path, spelled the one canonical way. Raises `Malformed`.

    Refused: absolute paths, ``.`` and ``..`` and empty components, backslashes, control characters, a leading tilde
    or dash (a path must not read as a home folder or an option), non-NFC spellings, and overlong ones.
    """
    parts = text.split("/")
    if (
        not text
        or len(text.encode("utf-8", "replace")) > MAX_PATH
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts)
        or any(part.startswith(("~", "-")) for part in parts)
        or any(char == "\\" or unicodedata.category(char).startswith("C") for char in text)
        or unicodedata.normalize("NFC", text) != text
    ):
        raise Malformed(f"unsafe file path in artifact: {text[:120]!r}")
    return text


def checked_paths(texts: list[str]) -> list[str]:
    """All of `texts` checked, and no two the same or one inside another. Raises `Malformed`."""
    seen: set[str] = set()
    for text in texts:
        folded = checked_path(text).casefold()  # two files must stay two files on any file system
        if folded in seen:
            raise Malformed(f"two files of the artifact have the path {text!r}")
        seen.add(folded)
    for folded in seen:
        parent = folded.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise Malformed(f"file path {parent!r} is both a file and a folder")
            parent = parent.rpartition("/")[0]
    return texts

"""What was noted when a model came into a store: under each of its names, from where, and what was verified then.

One file for each digest. It is for people, no decision rests on it; its time says when the model was used last.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifact.digest import Digest
from artifact.layout.files import write_atomically
from artifact.reference import Reference


def record_path(root: Path, digest: Digest) -> Path:
    """Where the store at `root` keeps what it knows of a model."""
    return root / "records" / digest.algorithm / f"{digest.hex}.json"


def recorded_name(reference: Reference) -> str:
    """The name that a reference stands for in records: without digest."""
    return f"{reference.repository}:{reference.tag}" if reference.tag else reference.repository


def read_records(root: Path, digest: Digest) -> dict[str, dict[str, Any]]:
    """What the store at `root` noted of a model by its names, the latest last; empty if nothing that can be read."""
    value = None
    with suppress(OSError, ValueError):
        value = json.loads(record_path(root, digest).read_bytes())
    if not isinstance(value, dict):
        return {}
    rows = value.get("names")
    if rows is None and isinstance(value.get("name"), str):
        rows = {value["name"]: value}  # there was one for all names once
    if not isinstance(rows, dict):
        return {}
    return {name: {**row, "name": name} for name, row in rows.items() if isinstance(row, dict)}


def write_records(root: Path, digest: Digest, rows: dict[str, dict[str, Any]]) -> None:
    """Replace what is noted of a model."""
    path = record_path(root, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"digest": str(digest), "names": rows}, indent=2).encode())

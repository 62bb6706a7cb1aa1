"""Watching a log: that what it says today begins with what it said before."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import InvalidInput, Malformed, Refused
from registry.log.remote import NotProven, RemoteLog
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.evidence import consistent
from supplychain.tlog.proofs import Tree

_MAX_STATE = 1024 * 1024


class Rewritten(Refused):
    """A log has shrunk, forked, or cannot be shown to have grown from what it was."""

    code = "log-rewritten"


@dataclass(frozen=True)
class Watched:
    """`before` is None where the log was seen for the first time."""

    before: Checkpoint | None
    now: Checkpoint

    def to_json(self) -> dict[str, object]:
        return {
            "origin": self.now.origin,
            "before": self.before.size if self.before else None,
            "size": self.now.size,
            "root": self.now.root.hex(),
        }


def watch(log: RemoteLog, file: Path) -> Watched:
    """Compare a log with the checkpoint kept in `file`, and keep the new one there. Raises `Rewritten`: then `file` is
    as it was, and the checkpoint that contradicts it is kept beside it; both are signed by the log."""
    kept = _read(file)
    before = None
    if kept is not None:
        try:
            before = Checkpoint.open(kept, log.key)
        except (Malformed, Refused) as error:
            raise InvalidInput(f"{file} is no checkpoint of {log.key.name}: {error}") from None
    note, now = log.checkpoint()
    problem = _problem(log, before, now)
    if problem is not None:
        evidence = file.with_name(f"{file.name}.conflict-{now.size}-{now.root.hex()[:8]}")
        _write(evidence, note)
        raise Rewritten(f"{log.key.name} {problem}; what it said before is in {file}, what it says now in {evidence}")
    if kept != note:
        _write(file, note)
    return Watched(before, now)


def _problem(log: RemoteLog, before: Checkpoint | None, now: Checkpoint) -> str | None:
    """Why a log cannot have come from `before` to `now`, in words; None if it has."""
    if before is not None and now.size < before.size:
        return f"has shrunk from {before.size} entries to {now.size}"
    if before is not None and now.size == before.size:
        return None if now.root == before.root else f"has two histories of {now.size} entries"
    tree = Tree(now.size, log.read)
    try:
        if before is None or before.size == 0:
            return None if tree.root() == now.root else "has tiles that are not those of the tree it signed"
        consistent(before, now, tree.consistency_proof(before.size))
    except (Malformed, NotProven) as error:
        size = 0 if before is None else before.size
        return f"cannot be shown to have grown from {size} entries to {now.size} ({error})"
    return None


def _read(file: Path) -> bytes | None:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_STATE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with temporary.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)

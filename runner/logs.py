"""What engines write: one file per model, bounded, with the file before it kept as ``.1``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT = 16 * 1024 * 1024
"""Bytes a log may have before it is put aside."""

_PIECE = 64 * 1024


def rotate(path: Path, limit: int = LIMIT) -> bool:
    """Put a log aside if it is larger than `limit`, and say whether it was. The engine goes on writing to the file it
    has open: its content is copied and cut off, so what arrives between the two is lost."""
    try:
        if path.stat().st_size <= limit:
            return False
        aside = path.with_name(f"{path.name}.1")
        with path.open("r+b") as log, aside.open("wb") as kept:
            log.seek(-limit, os.SEEK_END)
            while piece := log.read(_PIECE):
                kept.write(piece)
            log.truncate(0)
    except OSError:
        return False
    return True


def tail(path: Path, lines: int) -> bytes:
    """The last `lines` lines of a log."""
    kept: list[bytes] = []
    for file in (path, path.with_name(f"{path.name}.1")):
        try:
            kept = [*file.read_bytes().splitlines(keepends=True), *kept]
        except FileNotFoundError:
            continue
        if len(kept) >= lines:
            break
    return b"".join(kept[-lines:]) if lines else b""


def follow(path: Path, alive: Callable[[], bool], pause: float = 0.2) -> Iterator[bytes]:
    """What is written to a log from now on, until `alive` says no and nothing is left to read. Outlives rotation."""
    at = path.stat().st_size if path.exists() else 0
    while True:
        going_on = alive()
        size = path.stat().st_size if path.exists() else 0
        at = 0 if size < at else at
        if size > at:
            with path.open("rb") as log:
                log.seek(at)
                while piece := log.read(_PIECE):
                    at += len(piece)
                    yield piece
        elif not going_on:
            return
        time.sleep(pause)

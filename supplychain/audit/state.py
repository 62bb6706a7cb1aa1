"""What an audit remembers: the content it has read, which never changes, and what it has seen on this walk.

Everything named by a digest (manifests, bundles, signed payloads) is kept and never asked for again. Tags and lists of
referrers can change, so they are asked for on every walk; on the rest of a walk that was broken off, not again.
Decisions are not kept: they are made anew each time from what is kept, so another policy needs nothing fetched.

One SQLite file, which is whole whenever the program dies. Safe for several threads; one process at a time.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput, StorageFull

RESUME_WITHIN = 24 * 60 * 60
"""How old a walk that was broken off may be to be gone on with, in seconds. An older one is begun again."""

MAX_CONTENT = 1024 * 1024
"""Largest content that is kept, in bytes. Larger content is read anew each time."""

_MAX_KEPT = 4 * 1024**3
_APPLICATION = 0x53545741
_VERSION = 1
_COMMIT_EVERY = 1.0
_READ = "SELECT type, data, run, walk FROM content WHERE place=? AND kind=? AND digest=?"
_MARK = "UPDATE content SET walk=? WHERE place=? AND kind=? AND digest=?"
_SCHEMA = """
CREATE TABLE walk(number INTEGER, complete INTEGER, started REAL, scope TEXT, run INTEGER, kept INTEGER);
CREATE TABLE content(place TEXT, kind TEXT, digest TEXT, type TEXT, data BLOB, run INTEGER, walk INTEGER,
  PRIMARY KEY(place, kind, digest));
CREATE TABLE tag(place TEXT, tag TEXT, descriptor TEXT, walk INTEGER, PRIMARY KEY(place, tag)) WITHOUT ROWID;
CREATE TABLE referrers(place TEXT, subject TEXT, listing BLOB, walk INTEGER, PRIMARY KEY(place, subject))
  WITHOUT ROWID;
"""


class StateUnusable(InvalidInput):
    """The file is something else, damaged, or in use."""


class Kind(StrEnum):
    """What a digest was read as. The same bytes read as the other are something else."""

    MANIFEST = "manifest"
    BLOB = "blob"


class State:
    """What audits of `scope` remember, in the file `path`, or for this run only where there is none.

    `resumed` says whether this goes on with a walk that was broken off. Raises `StateUnusable` if the file is something
    else, or another audit is using it.
    """

    def __init__(self, path: Path | None, scope: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._committed = time.monotonic()
        with self._errors():
            self._database = sqlite3.connect(path or "", check_same_thread=False, isolation_level=None, timeout=1)
            self._prepare()
            self.resumed = self._begin(scope)

    def _prepare(self) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode=EXCLUSIVE")
        run("BEGIN IMMEDIATE")
        application, version = (run(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if not version and not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA.split(";"):
                run(statement)
            run("INSERT INTO walk VALUES(0, 1, 0, '', 0, 0)")
            run(f"PRAGMA application_id={_APPLICATION}")
            run(f"PRAGMA user_version={_VERSION}")
        elif application != _APPLICATION:
            raise sqlite3.DatabaseError("not an audit's")
        elif version != _VERSION:
            raise StateUnusable(f"{self._path} was written by another version: remove it, and everything is read again")

    def _begin(self, scope: str) -> bool:
        number, complete, started, known, run, kept = self._database.execute("SELECT * FROM walk").fetchone()
        resumed = not complete and known == scope and 0 <= time.time() - started < RESUME_WITHIN
        if not resumed:
            number, started = number + 1, time.time()
        self._walk, self._run, self._kept = number, run + 1, kept
        self._database.execute("UPDATE walk SET number=?, complete=0, started=?, scope=?, run=?",
                               (number, started, scope, run + 1))  # fmt: skip
        self._commit()
        return resumed

    def content(self, place: str, kind: Kind, digest: Digest) -> tuple[str, bytes, bool] | None:
        """Media type and bytes of what is kept, checked, and whether an earlier run kept it; None if it is not."""
        key = (place, kind, str(digest))
        with self._work() as run:
            row = run(_READ, key).fetchone()
            if row is None:
                return None
            if row[3] != self._walk:
                run(_MARK, (self._walk, *key))
        try:
            data = zlib.decompress(row[1])
        except zlib.error:
            return None
        return (row[0], data, row[2] < self._run) if digest.matches(data) else None

    def keep(self, place: str, kind: Kind, descriptor: Descriptor, data: bytes) -> None:
        """Keep the bytes of a digest, unless they are many."""
        if len(data) > MAX_CONTENT or self._kept > _MAX_KEPT:
            return
        packed = zlib.compress(data, 1)
        row = (place, kind, str(descriptor.digest), descriptor.media_type, packed, self._run, self._walk)
        with self._work() as run:
            self._kept += len(packed)
            run("INSERT OR REPLACE INTO content VALUES(?, ?, ?, ?, ?, ?, ?)", row)

    def tag(self, place: str, tag: str) -> tuple[Descriptor, bool] | None:
        """What a tag pointed at when it was last looked at, and whether that was on this walk."""
        with self._work() as run:
            row = run("SELECT descriptor, walk FROM tag WHERE place=? AND tag=?", (place, tag)).fetchone()
        return None if row is None else (Descriptor.from_json(json.loads(row[0])), row[1] == self._walk)

    def saw_tag(self, place: str, tag: str, descriptor: Descriptor) -> None:
        """Keep what a tag points at."""
        text = json.dumps(descriptor.to_json())
        with self._work() as run:
            run("INSERT OR REPLACE INTO tag VALUES(?, ?, ?, ?)", (place, tag, text, self._walk))

    def referrers(self, place: str, subject: Digest) -> list[Descriptor] | None:
        """The referrers of a manifest, if they have been listed on this walk."""
        query = "SELECT listing FROM referrers WHERE place=? AND subject=? AND walk=?"
        with self._work() as run:
            row = run(query, (place, str(subject), self._walk)).fetchone()
        return None if row is None else [Descriptor.from_json(item) for item in json.loads(zlib.decompress(row[0]))]

    def saw_referrers(self, place: str, subject: Digest, listing: Sequence[Descriptor]) -> None:
        """Keep a list of referrers."""
        packed = zlib.compress(json.dumps([item.to_json() for item in listing]).encode(), 1)
        with self._work() as run:
            run("INSERT OR REPLACE INTO referrers VALUES(?, ?, ?, ?)", (place, str(subject), packed, self._walk))

    def forget(self, place: str, subject: Digest, *tags: str) -> None:
        """Have the referrers of a manifest, and some tags, asked for again: they have been changed."""
        with self._work() as run:
            run("DELETE FROM referrers WHERE place=? AND subject=?", (place, str(subject)))
            for tag in tags:
                run("DELETE FROM tag WHERE place=? AND tag=?", (place, tag))

    def finish(self, *, drop: bool) -> None:
        """The walk has come to its end: the next one begins anew. `drop` what this one did not come across."""
        with self._work() as run:
            for table in ("content", "tag", "referrers") if drop else ():
                run(f"DELETE FROM {table} WHERE walk<>?", (self._walk,))  # noqa: S608  names of ours
            self._kept = run("SELECT coalesce(sum(length(data)), 0) FROM content").fetchone()[0]
            run("UPDATE walk SET complete=1")

    def close(self) -> None:
        """Make everything last, and let others have the file."""
        with self._lock, self._errors():
            self._commit()
            self._database.execute("COMMIT")
            self._database.close()

    @contextmanager
    def _work(self) -> Iterator[Any]:
        with self._lock, self._errors():
            yield self._database.execute
            if time.monotonic() - self._committed > _COMMIT_EVERY:
                self._commit()

    def _commit(self) -> None:
        self._database.execute("UPDATE walk SET kept=?", (self._kept,))
        self._database.execute("COMMIT")
        self._database.execute("BEGIN IMMEDIATE")
        self._committed = time.monotonic()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StateUnusable(f"{self._path} is in use by another audit: wait for it, or name another") from None
            if "full" in str(error):
                raise StorageFull(f"no room for {self._path or 'the temporary file'}: {error}") from None
            raise StateUnusable(f"cannot use {self._path} to remember the audit: {error}") from None
        except sqlite3.DatabaseError:
            raise StateUnusable(
                f"{self._path} is not the state of an audit, or damaged: name another, or remove it"
            ) from None

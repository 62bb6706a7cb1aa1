"""The entries of a registry's log, and what follows from them.

An entry is canonical JSON: keys in order, no spaces, UTF-8. Each has 128 random bits in ``id``, so that the hashes in
the tiles tell nobody which repositories there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.reference import is_name, is_tag

ACTIONS = ("push", "tag", "untag", "delete")
"""A manifest came; a tag was given or moved; a tag was removed; a manifest was removed."""

MAX_PRINCIPAL = 512
"""Most characters of a principal's name that an entry has."""

_ID = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_FIELDS = ("action", "adopted", "digest", "id", "previous", "principal", "repository", "tag", "time", "version")


@dataclass(frozen=True)
class Entry:
    """One thing that happened to a repository. `previous` is what a tag pointed at before, None where it was not there.
    `adopted` says that the registry found the tag so when the log began, or was switched on again."""

    action: str
    repository: str
    time: str
    id: str
    digest: Digest | None = None
    tag: str | None = None
    previous: Digest | None = None
    principal: str | None = None
    adopted: bool = False

    def to_bytes(self) -> bytes:
        """The entry as it is in the log."""
        value: dict[str, Any] = {
            "action": self.action,
            "adopted": self.adopted or None,
            "digest": str(self.digest) if self.digest else None,
            "id": self.id,
            "previous": str(self.previous) if self.previous else None,
            "principal": self.principal[:MAX_PRINCIPAL] if self.principal is not None else None,
            "repository": self.repository,
            "tag": self.tag,
            "time": self.time,
            "version": 1,
        }
        present = {name: item for name, item in value.items() if item is not None}
        return json.dumps(present, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def parse(cls, raw: bytes) -> Entry:
        """Read an entry, which has one spelling only. Raises `Malformed`."""
        try:
            value = json.loads(raw)
            entry = cls._of(value)
        except (ValueError, TypeError, KeyError, InvalidInput, RecursionError):
            entry = None
        if entry is None or entry.to_bytes() != raw:
            raise Malformed(f"not an entry of a registry's log: {raw[:80]!r}")
        return entry

    @classmethod
    def _of(cls, value: Any) -> Entry | None:
        if not isinstance(value, dict) or not set(value) <= set(_FIELDS) or value["version"] != 1:
            return None
        entry = cls(
            action=value["action"],
            repository=value["repository"],
            time=value["time"],
            id=value["id"],
            digest=Digest.parse(value["digest"]) if "digest" in value else None,
            tag=value.get("tag"),
            previous=Digest.parse(value["previous"]) if "previous" in value else None,
            principal=value.get("principal"),
            adopted=value.get("adopted", False),
        )
        shaped = entry.action in ACTIONS and bool(_ID.fullmatch(entry.id)) and bool(_TIME.fullmatch(entry.time))
        named = is_name(entry.repository) and isinstance(entry.principal, str | None)
        about_tag = entry.action in ("tag", "untag")
        tagged = about_tag == (entry.tag is not None) and (entry.tag is None or is_tag(entry.tag))
        return entry if shaped and named and tagged and (entry.digest is None) == (entry.action == "untag") else None


def moment(seconds: float) -> str:
    """A time in seconds since the epoch, as entries write it: RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


TagName = tuple[str, str]
"""A repository and a tag."""


@dataclass
class Replay:
    """What follows from the entries of a log, taken one after the other. `tags` are those that are there, with the
    number of the entry that put them so; `gone` those that were removed; `problems` entries that do not follow from
    those before them, in words."""

    size: int = 0
    tags: dict[TagName, tuple[Digest, int]] = field(default_factory=dict)
    gone: dict[TagName, int] = field(default_factory=dict)
    pushed: set[tuple[str, Digest]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def take(self, entries: Iterable[bytes]) -> None:
        """Go on with the entries that follow. Raises `Malformed` for one that is none."""
        for raw in entries:
            self._step(Entry.parse(raw))
            self.size += 1

    def _step(self, entry: Entry) -> None:
        if entry.digest is not None and entry.action == "push":
            self.pushed.add((entry.repository, entry.digest))
        if entry.tag is None:
            return
        name = entry.repository, entry.tag
        before = self.tags.pop(name, None)
        if entry.previous != (before[0] if before else None) and not entry.adopted:
            was = before[0].short if before else "not there"
            self.problems.append(f"entry {self.size}: {':'.join(name)} was {was}, not what the entry says")
        if entry.digest is not None:
            self.tags[name] = entry.digest, self.size
            self.gone.pop(name, None)
        else:
            self.gone[name] = self.size

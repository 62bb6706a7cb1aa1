"""``models.lock``: what every model of a Compose file was when somebody last looked, for others to run the same.

The file is TOML with its entries in the order of their names, so that the same state is the same bytes.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, NotFound, Refused, Unreachable
from artifact.layout.files import write_atomically
from artifact.locate import open_repository, resolve
from artifact.reference import Reference
from artifact.terminal import note
from runner.compose.project import ComposeModel
from runner.plan import Plan
from runner.pull import Found
from runner.store import Store

LOCK_FILE = "models.lock"
VERSION = 1
_MAX_BYTES = 1024 * 1024


class Locked(Refused):
    """What would run is not what the lock file says."""

    code = "locked"


@dataclass(frozen=True)
class Entry:
    """One locked model: the reference as the Compose file has it, and what it meant."""

    reference: str
    digest: Digest
    engine: str
    engine_version: str
    signers: Sequence[str] = ()

    @classmethod
    def of(cls, model: ComposeModel, found: Found, plan: Plan) -> Entry:
        """The entry for a model as it was found and would run now."""
        signers = sorted(signer.name for signer in found.decision.signers) if found.decision else []
        return cls(model.written, found.model.digest, plan.command.engine, plan.command.version, tuple(signers))


@dataclass(frozen=True)
class Lock:
    """A lock file at `path`, with its entries by the models' keys."""

    path: Path
    entries: dict[str, Entry]

    @classmethod
    def load(cls, path: Path) -> Lock | None:
        """Read a lock file; None if there is none. Raises `InvalidInput`."""
        try:
            with path.open("rb") as stream:
                raw = stream.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
        try:
            if len(raw) > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES} bytes")
            value = tomllib.loads(raw.decode("utf-8"))
            if value.get("version") != VERSION:
                raise ValueError(f"version must be {VERSION}")
            return cls(path, {key: _entry(item) for key, item in value.get("models", {}).items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidInput) as error:
            raise InvalidInput(f"{path} is not a lock file: {error}: write it anew with runner lock") from None

    def to_bytes(self) -> bytes:
        """The file's content."""
        lines = ["# The exact models of this project. Written by runner lock.", f"version = {VERSION}"]
        for key, entry in sorted(self.entries.items()):
            lines += [
                "",
                f"[models.{_quoted(key)}]",
                f"reference = {_quoted(entry.reference)}",
                f"digest = {_quoted(str(entry.digest))}",
                f"signers = [{', '.join(map(_quoted, entry.signers))}]",
                f"engine = {_quoted(entry.engine)}",
                f"engine_version = {_quoted(entry.engine_version)}",
            ]
        return "\n".join([*lines, ""]).encode()

    def save(self) -> None:
        """Write the file."""
        write_atomically(self.path, self.to_bytes())

    def pinned(self, model: ComposeModel, *, plain_http: bool) -> Reference:
        """The reference of `model` with the digest it is locked to. Where its tag can be looked up, it must still be
        there. Raises `Locked`."""
        entry = self.entries.get(model.key)
        if entry is None:
            raise Locked(
                f"{model.where.source}:{model.where.line}: the model {model.key!r} is not in {self.path.name}: "
                "add it with runner lock, or start without the lock with --no-lock"
            )
        if entry.reference != model.written:
            raise Locked(
                f"{model.where.source}:{model.where.line}: the model {model.key!r} is {model.written} here and "
                f"{entry.reference} in {self.path.name}: lock it anew with runner lock"
            )
        if model.reference.digest not in (None, entry.digest):
            raise Locked(f"{model.key}: {model.written} is locked to {entry.digest} in {self.path.name}")
        reference = model.reference.with_digest(entry.digest)
        if reference.tag is not None and not reference.is_local:
            self._check_tag(model, reference, entry, plain_http)
        return reference

    def _check_tag(self, model: ComposeModel, reference: Reference, entry: Entry, plain_http: bool) -> None:
        try:
            now = resolve(open_repository(reference, plain_http=plain_http), replace(reference, digest=None)).digest
        except (Unreachable, NotFound) as error:
            note(f"note: whether {model.written} is still what {self.path.name} says could not be asked: {error}")
            return
        if now != entry.digest:
            raise Locked(
                f"{model.key}: {model.written} is {now} now, {self.path.name} says {entry.digest}: the tag has moved; "
                "accept it with runner lock"
            )

    def check_engine(self, model: ComposeModel, plan: Plan) -> None:
        """The engine must be the locked one too. Raises `Locked`."""
        entry, command = self.entries[model.key], plan.command
        if (entry.engine, entry.engine_version) != (command.engine, command.version):
            raise Locked(
                f"{model.key}: {self.path.name} says {entry.engine} {entry.engine_version}, this host has "
                f"{command.engine} {command.version}: install that one, or lock anew with runner lock"
            )


def find_stored(reference: Reference, store: Store) -> bool:
    """Whether the store may answer for a pinned reference: not if its tag there is another digest's."""
    try:
        return store.find(reference) is not None
    except DigestMismatch:
        return False


def _entry(value: dict[str, Any]) -> Entry:
    texts = [value[key] for key in ("reference", "engine", "engine_version")]
    signers = value["signers"]
    if not all(isinstance(text, str) for text in (*texts, *signers)):
        raise ValueError("an entry holds something else than text")
    return Entry(texts[0], Digest.parse(value["digest"]), texts[1], texts[2], tuple(signers))


def _quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's too, except for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")

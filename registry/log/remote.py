"""A registry's log over HTTP, as anybody who holds its verifier key may check it."""

from __future__ import annotations

from artifact.errors import NotFound, StowageError
from artifact.remote.transport import Transport
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.note import MAX_BYTES, VerifierKey
from supplychain.tlog.tiles import MAX_BUNDLE, WIDTH, Tile, entries_of

_SCOPE = "registry:catalog:*"
_PREFIX = "/transparency/"


class NotProven(StowageError):
    """The registry gives no tile or bundle where its checkpoint says that there is one."""

    code = "not-proven"


class RemoteLog:
    """The log of the registry that `transport` leads to. Safe for several threads."""

    def __init__(self, transport: Transport, key: VerifierKey) -> None:
        self._transport = transport
        self.key = key

    def checkpoint(self) -> tuple[bytes, Checkpoint]:
        """The signed note of the log's head, and what it says. Raises `Malformed`, `note.Unsigned`, and what the
        transport raises."""
        note = self._get("checkpoint", "transparency log")[:MAX_BYTES]
        return note, Checkpoint.open(note, self.key)

    def read(self, tile: Tile) -> bytes:
        """A tile or entry bundle, which nothing has proven yet. Raises `NotProven` if it is not there."""
        try:
            return self._get(tile.path, tile.path)
        except NotFound:
            if tile.width == WIDTH:
                raise NotProven(f"{self._transport.host} has no {tile.path}, which its checkpoint speaks of") from None
            return self.read(tile.whole)

    def entries(self, tile: Tile) -> list[bytes]:
        """The entries of a bundle. Raises `NotProven`, and `Malformed` if it is none."""
        return entries_of(self.read(tile), tile.width)

    def _get(self, path: str, what: str) -> bytes:
        response = self._transport.request("GET", _PREFIX + path, scope=_SCOPE, expect=(200,), what=what)
        return response.data[: MAX_BUNDLE + 1]

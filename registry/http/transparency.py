"""The transparency log over HTTP. Source: c2sp.org/tlog-tiles.

Checkpoints and tiles are for everybody who reaches the registry: hashes tell nothing, since every entry has a nonce.
Entries name repositories: they are for whoever may list the catalog and pull from every repository, unless the
configuration makes them public.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from artifact.errors import InvalidInput, StowageError
from registry.http.errors import RegistryError, storage_failed, translated
from registry.http.gate import Gate
from registry.http.observed import observation_of
from registry.log.sequencer import Sequencer
from registry.log.state import LogDamaged
from registry.log.tiles import LogTiles
from registry.store.protocol import Missing
from supplychain.tlog.tiles import Tile

_FOREVER = "public, max-age=31536000, immutable"
_MINE_FOREVER = "private, max-age=31536000, immutable"
_NOW = "no-cache"
_BYTES = "application/octet-stream"
_log = logging.getLogger("registry.transparency")


class TransparencyEndpoints:
    """Everything below ``/transparency/``; `public` is whether entries are for everybody, `limit` counts requests."""

    def __init__(self, log: Sequencer, gate: Gate, public: bool, limit: Callable[[Request], None]) -> None:
        self._log = log
        self._tiles = LogTiles(log.store, log.read)
        self._gate = gate
        self._public = public
        self._limit = limit

    async def answer(self, request: Request) -> Response:
        """GET and HEAD."""
        observation_of(request.scope).route = "transparency"
        try:
            return await self._respond(request)
        except StowageError as error:
            found = translated(error)
            if found.status >= 500:
                _log.error("%s: %s", request.url.path, error)
            return found.response()
        except OSError as error:
            _log.error("%s: %s", request.url.path, error)
            return storage_failed(error).response()

    async def _respond(self, request: Request) -> Response:
        path = request.path_params["path"]
        if path == "checkpoint":
            self._limit(request)
            try:
                note = await asyncio.to_thread(self._log.checkpoint)
            except LogDamaged as error:  # no patience of the client's will mend that
                _log.error("%s", error)
                raise RegistryError(500, "UNKNOWN", str(error)) from None
            return Response(note, 200, {"Cache-Control": _NOW}, "text/plain; charset=utf-8")
        try:
            tile = Tile.parse(path)
        except InvalidInput:
            raise _nothing(path) from None
        if tile.level is None and not self._public:
            await self._gate.admit_to_everything(request)
        self._limit(request)
        try:
            data = await asyncio.to_thread(self._tiles.read, tile)
        except InvalidInput as error:
            raise RegistryError(404, "UNSUPPORTED", str(error)) from None
        except Missing as error:
            _log.error("%s", error)
            raise RegistryError(404, "UNSUPPORTED", str(error)) from None
        private = tile.level is None and not self._public
        return Response(data, 200, {"Cache-Control": _MINE_FOREVER if private else _FOREVER}, _BYTES)


def _nothing(path: str) -> RegistryError:
    return RegistryError(404, "UNSUPPORTED", f"the log has nothing at {path[:120]!r}: checkpoint, tile/<L>/<N>[.p/<W>]")

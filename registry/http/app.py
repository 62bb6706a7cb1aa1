"""The application: which endpoint answers, and what becomes of an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from artifact.errors import StowageError
from artifact.reference import is_name
from registry.blobs import Blobs
from registry.http.blobs import BlobEndpoints, Redirects
from registry.http.errors import RegistryError, error_response, translated, unavailable
from registry.http.listings import ListingEndpoints
from registry.http.manifests import ManifestEndpoints
from registry.http.routing import match
from registry.http.uploads import UploadEndpoints
from registry.manifests import Manifests
from registry.referrers import Referrers
from registry.store.protocol import ObjectStore
from registry.tags import Tags
from registry.uploads import Uploads

Endpoint = Callable[[Request, str, str], Awaitable[Response]]

_THREADS = 64
_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
_log = logging.getLogger("registry")


class Distribution:
    """Everything below ``/v2/``."""

    def __init__(self, store: ObjectStore, redirects: Redirects) -> None:
        blobs = Blobs(store)
        tags = Tags(store)
        manifests = Manifests(store, blobs, tags)
        referrers = Referrers(store, manifests)
        blob = BlobEndpoints(store, blobs, redirects)
        upload = UploadEndpoints(blobs, Uploads(store, blobs))
        manifest = ManifestEndpoints(blobs, manifests, tags, referrers)
        listing = ListingEndpoints(store, tags, referrers)
        self._endpoints: dict[str, dict[str, Endpoint]] = {
            "base": {"GET": _base},
            "catalog": {"GET": listing.repositories},
            "tags": {"GET": listing.tags},
            "referrers": {"GET": listing.referrers},
            "blob": {"GET": blob.get, "HEAD": blob.get, "DELETE": blob.delete},
            "manifest": {"GET": manifest.get, "HEAD": manifest.get, "PUT": manifest.put, "DELETE": manifest.delete},
            "uploads": {"POST": upload.begin},
            "upload": {"GET": upload.status, "PATCH": upload.append, "PUT": upload.close, "DELETE": upload.cancel},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except StowageError as error:
            response = translated(error).response()
            if response.status_code >= 500:
                _log.error("%s %s: %s", request.method, request.url.path, error)
        except OSError as error:  # a full or failing disk
            _log.error("%s %s: %s", request.method, request.url.path, error)
            response = unavailable(f"storage failed: {error.strerror}").response()
        except Exception:
            _log.exception("%s %s", request.method, request.url.path)
            response = error_response(500, "UNKNOWN", "internal error")
        response.headers.append(*_VERSION)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        route = match(request.scope["path"].removeprefix("/v2").removeprefix("/"))
        if route is None:
            raise RegistryError(404, "UNSUPPORTED", "no such endpoint")
        if route.name and not is_name(route.name):
            raise RegistryError(400, "NAME_INVALID", f"not a repository name: {route.name[:80]!r}")
        methods = self._endpoints[route.endpoint]
        endpoint = methods.get(request.method)
        if endpoint is None:
            raise RegistryError(405, "UNSUPPORTED", "method not allowed here", {"Allow": ", ".join(methods)})
        return await endpoint(request, route.name, route.rest)


async def _base(request: Request, name: str, rest: str) -> Response:
    return JSONResponse({})


def create_app(store: ObjectStore, redirects: Redirects | None = None) -> Starlette:
    """The registry over a store."""

    async def alive(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        try:
            await asyncio.to_thread(store.list, "blobs/", limit=1)
        except (StowageError, OSError) as error:
            return PlainTextResponse(f"object store: {error}\n", 503)
        return PlainTextResponse("ok\n")

    @asynccontextmanager
    async def threads(app: Starlette) -> AsyncIterator[None]:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="store") as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            yield

    distribution = Distribution(store, redirects or Redirects())
    return Starlette(
        routes=[
            HttpRoute("/healthz", alive),
            HttpRoute("/readyz", ready),
            HttpRoute("/v2", distribution),
            HttpRoute("/v2/{rest:path}", distribution),
        ],
        lifespan=threads,
    )

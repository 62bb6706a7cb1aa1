"""The application: which endpoint answers, and what becomes of an error."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from artifact.errors import StowageError
from artifact.reference import is_name
from registry.access.identity import identities
from registry.admission import Admission
from registry.blobs import Blobs
from registry.config.sections import Config
from registry.fallback import TaggedReferrers
from registry.http import connection
from registry.http.blobs import BlobEndpoints, Redirects
from registry.http.body import Body
from registry.http.certificate import Certificates
from registry.http.errors import RegistryError, error_response, storage_failed, translated
from registry.http.gate import Gate
from registry.http.listings import ListingEndpoints
from registry.http.manifests import ManifestEndpoints
from registry.http.observed import Observed, observation_of
from registry.http.operation import Operation, networks
from registry.http.routing import match
from registry.http.token import TokenEndpoint
from registry.http.transparency import TransparencyEndpoints
from registry.http.uploads import UploadEndpoints
from registry.inside import StoredRepository
from registry.limits import LoginLimits
from registry.log.key import LogKey
from registry.log.sequencer import Sequencer
from registry.log.tags import LoggedTags
from registry.manifests import Manifests
from registry.metrics import STORE_ERRORS
from registry.proxy.mirror import Mirror
from registry.proxy.proxy import Proxy
from registry.quarantine import Quarantines
from registry.referrers import Referrers
from registry.store.protocol import ObjectStore, StoreUnavailable
from registry.tagrules import TagRules
from registry.tags import Tags
from registry.uploads import Uploads

Endpoint = Callable[[Request, str, str], Awaitable[Response]]

_THREADS = 64
_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
_log = logging.getLogger("registry")


class Distribution:
    """Everything below ``/v2/``."""

    def __init__(
        self,
        store: ObjectStore,
        redirects: Redirects,
        config: Config,
        gate: Gate,
        operation: Operation,
        log: Sequencer | None,
        stopping: threading.Event,
    ) -> None:
        self._gate = gate
        self._operation = operation
        blobs = Blobs(store)
        settings = config.transparency
        tags = LoggedTags(log, settings.principals) if log is not None and settings is not None else Tags(store)
        manifests = Manifests(store, blobs, tags)
        tagged = config.referrers.fallback_tags
        referrers = TaggedReferrers(store, manifests, tags) if tagged else Referrers(store, manifests)
        uploads = Uploads(store, blobs)
        self._proxy = None
        if config.proxy is not None:
            mirror = Mirror(store, blobs, manifests, tags, referrers, config.proxy.serve_stale)
            self._proxy = Proxy(config.proxy, mirror, uploads, stopping, urlsplit(config.server.public_url).netloc)
        blob = BlobEndpoints(store, blobs, redirects, self._proxy)
        upload = UploadEndpoints(blobs, uploads, store.chunk)
        inside = partial(StoredRepository, store, blobs, manifests, tags, referrers)
        manifest = ManifestEndpoints(
            manifests,
            tags,
            referrers,
            Admission(blobs, manifests, config.admission),
            TagRules(manifests, tags, config.immutable),
            Quarantines(config.admission.quarantine, inside, config.server.public_url),
            store.remote,
            operation.notice,
            self._proxy,
        )
        listing = ListingEndpoints(store, tags, referrers, self._proxy)
        self._endpoints: dict[str, dict[str, Endpoint]] = {
            "base": {"GET": _base, "HEAD": _base},
            "catalog": {"GET": listing.repositories, "HEAD": listing.repositories},
            "tags": {"GET": listing.tags, "HEAD": listing.tags},
            "referrers": {"GET": listing.referrers, "HEAD": listing.referrers},
            "blob": {"GET": blob.get, "HEAD": blob.get, "DELETE": blob.delete},
            "manifest": {"GET": manifest.get, "HEAD": manifest.get, "PUT": manifest.put, "DELETE": manifest.delete},
            "uploads": {"POST": upload.begin},
            "upload": {
                "GET": upload.status,
                "HEAD": upload.status,
                "PATCH": upload.append,
                "PUT": upload.close,
                "DELETE": upload.cancel,
            },
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(receive)
        request = Request(scope, body)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            connection.hang_up(scope)
            return
        except StowageError as error:
            if isinstance(error, StoreUnavailable):
                self._operation.metrics.add(STORE_ERRORS)
            response = translated(error).response()
            if response.status_code >= 500:
                _log.error("%s %s: %s", request.method, request.url.path, error)
        except OSError as error:  # a full or failing disk
            self._operation.metrics.add(STORE_ERRORS)
            _log.error("%s %s: %s", request.method, request.url.path, error)
            response = storage_failed(error).response()
        except Exception:
            _log.exception("%s %s", request.method, request.url.path)
            response = error_response(500, "UNKNOWN", "internal error")
        response.headers.append(*_VERSION)
        if response.status_code >= 400:
            await body.skip(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        route = match(request.scope["path"].removeprefix("/v2").removeprefix("/"))
        if route is None:
            raise RegistryError(404, "UNSUPPORTED", "no such endpoint")
        if self._proxy is not None:
            route = self._proxy.localized(route, request.query_params.get("ns"))
        observation_of(request.scope).route = route.endpoint
        if route.name and not is_name(route.name):
            raise RegistryError(400, "NAME_INVALID", f"not a repository name: {route.name[:80]!r}")
        methods = self._endpoints[route.endpoint]
        endpoint = methods.get(request.method)
        if endpoint is None:
            raise RegistryError(405, "UNSUPPORTED", "method not allowed here", {"Allow": ", ".join(methods)})
        try:
            await self._gate.admit(request, route)
        except RegistryError as error:
            if error.status == 429:
                self._operation.limited()
            else:
                self._operation.limit_address(request)
            raise
        self._operation.limit(request)
        if self._proxy is not None:
            self._proxy.check(request, route)
        return await endpoint(request, route.name, route.rest)


async def _base(request: Request, name: str, rest: str) -> Response:
    return JSONResponse({})


@dataclass(frozen=True)
class Serving:
    """What follows from one configuration, ready to serve."""

    config: Config
    distribution: Distribution
    token: TokenEndpoint | None
    transparency: TransparencyEndpoints | None


class Registry(Starlette):
    """The application over one store. The distribution API, which is all that is asked for often, goes past the
    routing. Configured again while it runs, requests that have begun end as they began."""

    def __init__(self, store: ObjectStore, config: Config, operation: Operation) -> None:
        self._stopping = threading.Event()

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="store") as pool:
                asyncio.get_running_loop().set_default_executor(pool)
                async with operation.running():
                    with self._log.watching() if self._log is not None else nullcontext():
                        yield
                        self._stopping.set()

        token = HttpRoute("/token", self._answer_token, methods=["GET", "POST"])
        transparency = HttpRoute("/transparency/{path:path}", self._answer_transparency)
        super().__init__(routes=[*operation.routes(), token, transparency], lifespan=lifespan)
        settings = config.transparency
        self._log = Sequencer(store, LogKey.load(settings.key, settings.origin)) if settings is not None else None
        self._store = store
        self._operation = operation
        self.take_up(self.prepare(config))

    def prepare(self, config: Config) -> Serving:
        """Read everything a configuration names. Changes nothing. Raises `InvalidInput`. Slow."""
        self._operation.check(config)
        certificates = Certificates(config.server.forwarded_certificate, networks(config))
        limits = LoginLimits(config.limits.failed_logins, self._operation.buckets)
        known = identities(config, self._store, limits) if config.restricted else None
        gate = Gate(known, config.server.deletes, config.server.public_url, certificates)
        redirects = Redirects(enabled=config.server.redirect)
        token = None
        if known is not None and known.tokens is not None:
            token = TokenEndpoint(known, known.tokens, certificates, self._operation)
        transparency = None
        if self._log is not None and config.transparency is not None:
            limit = self._operation.limit
            transparency = TransparencyEndpoints(self._log, gate, config.transparency.public, limit)
        distribution = Distribution(self._store, redirects, config, gate, self._operation, self._log, self._stopping)
        return Serving(config, distribution, token, transparency)

    def take_up(self, serving: Serving) -> None:
        """Serve by another configuration from now on. To be called where requests are answered."""
        operation = self._operation
        operation.configure(serving.config)
        self.config = serving.config
        self._token = serving.token
        self._transparency = serving.transparency
        self._distribution = Observed(serving.distribution, operation.metrics, operation.log, operation.trusted)
        self._others = Observed(super().__call__, operation.metrics, operation.log, operation.trusted)

    async def _answer_token(self, request: Request) -> Response:
        if self._token is None:
            return PlainTextResponse("Not Found", 404)
        return await self._token.answer(request)

    async def _answer_transparency(self, request: Request) -> Response:
        if self._transparency is None:
            return PlainTextResponse("Not Found", 404)
        return await self._transparency.answer(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith("/v2/") or path == "/v2":
            await self._distribution(scope, receive, send)
        elif path == "/token" or path.startswith("/transparency/"):
            await self._others(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(store: ObjectStore, config: Config | None = None, operation: Operation | None = None) -> Registry:
    """The registry over a store, as `config` wants it: without one, everyone may do everything. Raises
    `InvalidInput`."""
    return Registry(store, config or Config(), operation or Operation(store, log=False))

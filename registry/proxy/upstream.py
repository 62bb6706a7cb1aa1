"""The registries that copies are made of: which repository is whose, who logs in there, and whether they answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from artifact.errors import DigestMismatch, Malformed, ServerError, StowageError, Unauthorized, Unreachable
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from artifact.remote.transport import Transport
from registry.config import sections
from registry.config.proxy import password_of

AWAY = 10.0
"""For how many seconds an upstream that did not answer is not asked for what is held."""

_ATTEMPTS = 2  # of a request: somebody waits, and may be served what is held


class Upstream:
    """One registry. Its tokens come from itself or from the hosts that the configuration names, its login goes to
    those alone, and no login of whoever runs this server is used. Safe for several threads."""

    def __init__(self, settings: sections.Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(settings.url)
        self.host = parts.netloc
        self.prefix, self.namespaces = settings.prefix, settings.namespaces
        self.tag_ttl = settings.tag_ttl
        self.url = settings.url
        self._path = parts.path.removeprefix("/")
        self._plain = parts.scheme == "http"
        login = {"username": settings.username, "password": password_of(settings)}
        known = dict.fromkeys((self.host, *settings.token_hosts), login) if settings.username else {}
        self._transport = Transport(
            self.host,
            plain_http=self._plain,
            credentials=Credentials(Path("registry.toml"), {"auths": known}),
            token_hosts=frozenset(settings.token_hosts),
            attempts=_ATTEMPTS,
        )
        self._clock = clock
        self._away_until = 0.0

    def repository(self, name: str) -> RemoteRepository:
        """The original of a repository of this registry."""
        rest = name.removeprefix(f"{self.prefix}/")
        original = f"{self._path}/{rest}" if self._path else rest
        return RemoteRepository(self.host, original, plain_http=self._plain, transport=self._transport)

    @property
    def is_away(self) -> bool:
        """Whether it did not answer a moment ago."""
        return self._clock() < self._away_until

    def answered(self) -> None:
        """It answers."""
        self._away_until = 0.0

    def failed(self, error: StowageError) -> None:
        """It did not answer, or not as it should."""
        if isinstance(error, Unreachable):
            self._away_until = self._clock() + AWAY


SILENCE = (Unreachable, ServerError)
"""What an upstream does that is as if it were away."""

FAILURES = (*SILENCE, Unauthorized, DigestMismatch, Malformed)
"""What an upstream does that keeps an answer from being made."""


class Upstreams:
    """All of them."""

    def __init__(self, settings: Sequence[sections.Upstream]) -> None:
        self._all = sorted(map(Upstream, settings), key=lambda upstream: -len(upstream.prefix))

    def of(self, name: str) -> Upstream | None:
        """The upstream that a repository is a copy of; None if it is one of this registry's own."""
        return next((upstream for upstream in self._all if name.startswith(f"{upstream.prefix}/")), None)

    def of_namespace(self, namespace: str) -> Upstream | None:
        """The upstream that a host stands for."""
        return next((upstream for upstream in self._all if namespace.lower() in upstream.namespaces), None)

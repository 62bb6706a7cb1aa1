"""One request on its way through the gateway: who asks, under which id, and which model answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

_PLACE = "stowage.call"


@dataclass
class Call:
    """What is known about a request. `route` and `digest` are filled in on the way and end up in
    metrics; `told` once the first byte has been counted."""

    id: str
    scopes: frozenset[str] = field(default_factory=frozenset)
    key: str = ""
    route: str = "other"
    digest: str = ""
    told: bool = False

    @classmethod
    def of(cls, request: Request | Scope) -> Call:
        """The call a request belongs to."""
        found = (request.scope if isinstance(request, Request) else request)[_PLACE]
        assert isinstance(found, cls)
        return found

    def begin(self, scope: Scope) -> None:
        """Belong to a request from now on."""
        scope[_PLACE] = self

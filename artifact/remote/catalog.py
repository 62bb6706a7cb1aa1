"""Which repositories a registry has. Source: distribution's API specification, "Catalog"; it is not in the OCI one."""

from __future__ import annotations

from collections.abc import Iterator

from artifact.errors import NotFound, ServerError
from artifact.manifest import load_json
from artifact.reference import is_name
from artifact.remote.repository import next_page
from artifact.remote.transport import Transport

_MAX_PAGES = 10_000
_PAGE = 1000
_MAX_NAMES = 1_000_000
_MAX_BARREN = 8  # pages one after the other with nothing new on them: a registry that turns in a circle


def listed(transport: Transport) -> Iterator[str]:
    """The names of all repositories the login may see, as the pages come, each once. Raises `Unauthorized`,
    `Unreachable`, and `ServerError` where the registry lists none, or lists without an end."""
    host, found, barren = transport.host, set[str](), 0
    url = f"/v2/_catalog?n={_PAGE}"
    for _ in range(_MAX_PAGES):
        try:
            response = transport.request("GET", url, scope="registry:catalog:*", expect=(200,), what="catalog")
        except NotFound:
            raise ServerError(f"{host} lists no repositories: name them one by one, as {host}/NAME") from None
        names = load_json(response.data, "catalog").get("repositories") or []
        if not isinstance(names, list):
            raise ServerError(f"{host}: the catalog is no list")
        new = dict.fromkeys(name for name in names if isinstance(name, str) and is_name(name) and name not in found)
        found.update(new)
        yield from new
        following = next_page(response, url)
        if following is None:
            return
        barren = 0 if new else barren + 1
        if barren > _MAX_BARREN or len(found) > _MAX_NAMES:
            raise ServerError(f"{host}: the catalog has no end: page after page after {len(found)} repositories")
        url = following
    raise ServerError(f"{host}: the catalog has more than {_MAX_PAGES} pages")


def repositories(host: str, *, plain_http: bool = False) -> list[str]:
    """The names of all repositories the login may see, sorted. Raises as `listed` does."""
    return sorted(listed(Transport(host, plain_http=plain_http)))

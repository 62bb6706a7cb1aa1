"""Which endpoint a path means. Repository names contain slashes, so a path is read from its end."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERNS = (
    ("uploads", re.compile(r"(?P<name>.+)/blobs/uploads/?")),
    ("upload", re.compile(r"(?P<name>.+)/blobs/uploads/(?P<rest>[^/]+)")),
    ("blob", re.compile(r"(?P<name>.+)/blobs/(?P<rest>[^/]+)")),
    ("manifest", re.compile(r"(?P<name>.+)/manifests/(?P<rest>[^/]+)")),
    ("tags", re.compile(r"(?P<name>.+)/tags/list")),
    ("referrers", re.compile(r"(?P<name>.+)/referrers/(?P<rest>[^/]+)")),
)


@dataclass(frozen=True)
class Route:
    """An endpoint, the text in place of the repository name, and the last component where the endpoint has one.
    Neither text has been checked."""

    endpoint: str
    name: str = ""
    rest: str = ""


def match(path: str) -> Route | None:
    """The endpoint of a decoded path below ``/v2/``; None if it is none."""
    if path == "":
        return Route("base")
    if path == "_catalog":
        return Route("catalog")
    for endpoint, pattern in _PATTERNS:
        found = pattern.fullmatch(path)
        if found:
            return Route(endpoint, found["name"], found.groupdict().get("rest", ""))
    return None

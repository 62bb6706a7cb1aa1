"""URLs that a server names, taken apart without trust. Source: RFC 3986."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit

from artifact.errors import ServerError

_DEFAULT_PORTS = {"http": 80, "https": 443}


def split_url(url: str, origin: str) -> SplitResult:
    """The parts of `url`, its port readable. Raises `ServerError` that says `origin` named it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is looked at here only
    except ValueError:
        raise ServerError(f"{origin} names something that is no URL: {url[:100]!r}") from None
    return parts


def join_url(base: str, url: str, origin: str) -> str:
    """`url` as seen from `base`. Raises `ServerError` that says `origin` named it."""
    split_url(url, origin)
    return urljoin(base, url)


def authority(parts: SplitResult) -> str:
    """Host and port in lower case, without a port that goes without saying."""
    netloc = parts.netloc.lower()
    return netloc.removesuffix(f":{parts.port}") if parts.port == _DEFAULT_PORTS.get(parts.scheme) else netloc


def path_and_query(parts: SplitResult) -> str:
    """What is asked of a host. Never begins with two slashes, which would name another host."""
    return "/" + parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")

"""Reading ``[proxy]``."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from artifact.errors import InvalidInput
from artifact.reference import is_host, is_name
from artifact.remote.hosts import is_loopback
from registry.config.access import web_url
from registry.config.document import Node
from registry.config.sections import Proxy, Upstream

_MAX_TTL = 365 * 86400
_MAX_PASSWORD = 64 * 1024


def read_proxy(node: Node) -> Proxy:
    """``[proxy]`` with its ``[[proxy.upstreams]]``."""
    known = node.table("upstreams", "tag-ttl", "serve-stale", "spool")
    ttl = known["tag-ttl"].duration(1, _MAX_TTL) if "tag-ttl" in known else Proxy.tag_ttl
    items = node.required(known, "upstreams").items()
    upstreams = tuple(_upstream(item, ttl) for item in items)
    for number, item in enumerate(items):
        earlier = upstreams[:number]
        if upstreams[number].prefix in [other.prefix for other in earlier]:
            item.fail("an upstream with this prefix is there already")
        if set(upstreams[number].namespaces) & {name for other in earlier for name in other.namespaces}:
            item.fail("an upstream for one of these namespaces is there already")
    spool = known["spool"].file() if "spool" in known else None
    if spool is not None and not spool.is_dir():
        known["spool"].fail(f"there is no folder {spool}")
    stale = known["serve-stale"].boolean() if "serve-stale" in known else Proxy.serve_stale
    return Proxy(upstreams, ttl, stale, spool)


def _upstream(node: Node, ttl: float) -> Upstream:
    known = node.table(
        "prefix", "url", "namespaces", "username", "password-file", "password-env", "token-hosts", "tag-ttl"
    )
    prefix = node.required(known, "prefix")
    if not is_name(prefix.text()):
        prefix.fail("must be the beginning of repository names, without a slash at its end")
    hosts = {
        key: tuple(map(_host, known[key].items())) if key in known else () for key in ("namespaces", "token-hosts")
    }
    if "username" in known and ("password-file" in known) == ("password-env" in known):
        known["username"].fail("needs one of password-file and password-env")
    for key in ("password-file", "password-env"):
        if key in known and "username" not in known:
            known[key].fail("says nothing without username")
    return Upstream(
        prefix=prefix.text(),
        url=_url(node.required(known, "url")),
        namespaces=hosts["namespaces"],
        username=known["username"].text() if "username" in known else "",
        password_file=known["password-file"].file() if "password-file" in known else None,
        password_env=known["password-env"].text() if "password-env" in known else "",
        token_hosts=hosts["token-hosts"],
        tag_ttl=known["tag-ttl"].duration(1, _MAX_TTL) if "tag-ttl" in known else ttl,
    )


def _url(node: Node) -> str:
    url = web_url(node).rstrip("/")
    parts = urlsplit(url)
    if parts.query:
        node.fail("must be a URL without a query")
    if parts.scheme == "https" and is_loopback(parts.netloc):
        node.fail("registries of this machine are spoken to by http://")
    if parts.path and not is_name(parts.path.removeprefix("/")):
        node.fail("the path of the URL must be the beginning of repository names there")
    return url


def _host(node: Node) -> str:
    if not is_host(node.text()):
        node.fail("must be HOST or HOST:PORT")
    return node.text().lower()


def password_of(upstream: Upstream) -> str:
    """The password for an upstream; empty if there is no login. Raises `InvalidInput`."""
    if not upstream.username:
        return ""
    if upstream.password_env:
        password = os.environ.get(upstream.password_env, "")
        source = f"the environment variable {upstream.password_env}"
    else:
        assert upstream.password_file is not None
        password, source = _read(upstream.password_file), str(upstream.password_file)
    if not password:
        raise InvalidInput(f"proxy.upstreams: {source} holds no password for {upstream.url}")
    return password


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_PASSWORD)
        return raw.decode("utf-8").strip("\r\n")
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is not UTF-8 text") from None

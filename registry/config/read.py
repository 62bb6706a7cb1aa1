"""Reading ``registry.toml``. Unknown settings are errors, and every error says on which line."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from artifact.errors import InvalidInput
from registry.config import document
from registry.config.access import read_access, read_auth, read_oidc, tag_patterns, web_url
from registry.config.document import Node
from registry.config.proxy import read_proxy
from registry.config.sections import (
    Admission,
    Config,
    ForwardedCertificate,
    Gc,
    Immutable,
    Limits,
    Log,
    Metrics,
    Quarantine,
    Referrers,
    Server,
    Tls,
    Transparency,
    Webhook,
)
from registry.listen import listen_address
from supplychain.tlog.note import is_key_name

EVENTS = ("push", "delete", "tag")
"""What a webhook may ask to be told: a manifest pushed, something deleted, a tag given or moved."""

KINDS = ("code", "unsafe-weights")
"""Kinds of files that admission knows by their names."""

_YEAR = 365 * 86400
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_TAKEN = ("authorization", "host", "content-type", "content-length", "x-forwarded-for", "x-request-id")


def load(path: Path | str) -> Config:
    """Read a configuration file. Raises `InvalidInput`, whose message names the line."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(document.MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None
    return parse(raw, str(file))


def parse(raw: bytes, source: str) -> Config:
    """Read a configuration; `source` is its path, for messages and for the paths in it. Raises `InvalidInput`."""
    root = document.parse(raw, source)
    fields = root.table(
        "server", "auth", "oidc", "access", "immutable", "admission", "limits", "webhooks", "log", "metrics", "gc",
        "referrers", "proxy", "transparency",
    )  # fmt: skip
    server = _server(fields["server"]) if "server" in fields else Server()
    auth = read_auth(fields["auth"], server) if "auth" in fields else Config().auth
    oidc = read_oidc(fields["oidc"]) if "oidc" in fields else ()
    access = read_access(fields["access"]) if "access" in fields else ()
    for section in ("auth", "oidc"):
        if section in fields and not access:
            fields[section].fail("without [[access]] rules nobody may do anything: add the rules")
    return Config(
        server=server,
        auth=auth,
        oidc=oidc,
        access=access,
        immutable=_immutable(fields["immutable"]) if "immutable" in fields else Immutable(),
        admission=_admission(fields["admission"]) if "admission" in fields else Admission(),
        proxy=read_proxy(fields["proxy"]) if "proxy" in fields else None,
        referrers=_referrers(fields["referrers"]) if "referrers" in fields else Referrers(),
        limits=_limits(fields["limits"]) if "limits" in fields else Limits(),
        webhooks=tuple(map(_webhook, fields["webhooks"].items())) if "webhooks" in fields else (),
        log=_log(fields["log"]) if "log" in fields else Log(),
        metrics=_metrics(fields["metrics"]) if "metrics" in fields else Metrics(),
        gc=_gc(fields["gc"]) if "gc" in fields else Gc(),
        transparency=_transparency(fields["transparency"]) if "transparency" in fields else None,
    )


def _server(node: Node) -> Server:
    known = node.table(
        "storage", "listen", "workers", "redirect", "public-url", "deletes", "tls", "trusted-proxies",
        "forwarded-certificate",
    )  # fmt: skip
    default = Server()
    proxies = tuple(map(_network, known["trusted-proxies"].items())) if "trusted-proxies" in known else ()
    listen = known["listen"].text() if "listen" in known else default.listen
    try:
        listen_address(listen)
    except InvalidInput as error:
        known["listen"].fail(str(error))
    return Server(
        storage=known["storage"].text() if "storage" in known else default.storage,
        listen=listen,
        workers=known["workers"].integer(1, 256) if "workers" in known else default.workers,
        redirect=known["redirect"].boolean() if "redirect" in known else default.redirect,
        public_url=_public_url(known["public-url"]) if "public-url" in known else "",
        deletes=known["deletes"].boolean() if "deletes" in known else True,
        tls=_tls(known["tls"]) if "tls" in known else None,
        trusted_proxies=proxies,
        forwarded_certificate=_forwarded(known["forwarded-certificate"], proxies)
        if "forwarded-certificate" in known
        else None,
    )


def _network(node: Node) -> str:
    try:
        return str(ipaddress.ip_network(node.text()))
    except ValueError:
        node.fail("must be an IP address or a network, for example 10.0.0.0/8")


def _public_url(node: Node) -> str:
    url = web_url(node).rstrip("/")
    if urlsplit(url).path:
        node.fail("must be a URL without a path: clients look for the registry at /v2/ of a host")
    return url


def _tls(node: Node) -> Tls:
    known = node.table("certificate", "key", "client-ca")
    return Tls(
        existing(node.required(known, "certificate")),
        existing(node.required(known, "key")),
        existing(known["client-ca"]) if "client-ca" in known else None,
    )


def _forwarded(node: Node, proxies: tuple[str, ...]) -> ForwardedCertificate:
    known = node.table("header", "client-ca")
    header = node.required(known, "header")
    if not _HEADER.fullmatch(header.text()) or header.value.lower() in _TAKEN:
        header.fail("must be the name of a header that nothing else uses, for example X-Client-Cert or Client-Cert")
    if not proxies:
        node.fail("server.trusted-proxies is missing: a certificate is believed of no other")
    return ForwardedCertificate(header.value.lower(), existing(node.required(known, "client-ca")))


def existing(node: Node) -> Path:
    """A path to a file that is there."""
    path = node.file()
    if not path.is_file():
        node.fail(f"there is no file {path}")
    return path


def _immutable(node: Node) -> Immutable:
    known = node.table("precision-tags", "tags", "except", "keep")
    return Immutable(
        precision_tags=known["precision-tags"].boolean() if "precision-tags" in known else True,
        tags=tag_patterns(known["tags"]) if "tags" in known else (),
        exceptions=tag_patterns(known["except"]) if "except" in known else (),
        keep=known["keep"].boolean() if "keep" in known else False,
    )


def _admission(node: Node) -> Admission:
    known = node.table("layout", "refuse", "refuse-kinds", "quarantine")
    kinds = known["refuse-kinds"].items() if "refuse-kinds" in known else ()
    return Admission(
        layout=known["layout"].boolean() if "layout" in known else False,
        refuse=known["refuse"].texts() if "refuse" in known else (),
        refuse_kinds=tuple(kind.choice(*KINDS) for kind in kinds),
        quarantine=tuple(map(_quarantine, known["quarantine"].items())) if "quarantine" in known else (),
    )


def _quarantine(node: Node) -> Quarantine:
    known = node.table("tags", "policy")
    return Quarantine(tag_patterns(node.required(known, "tags")), existing(node.required(known, "policy")))


def _referrers(node: Node) -> Referrers:
    known = node.table("fallback-tags")
    return Referrers(known["fallback-tags"].boolean() if "fallback-tags" in known else False)


def _limits(node: Node) -> Limits:
    known = node.table("requests-per-second", "burst", "failed-logins")
    rate = known["requests-per-second"].number(0, 1e6) if "requests-per-second" in known else 0.0
    if "burst" in known and not rate:
        known["burst"].fail("says nothing without requests-per-second")
    burst = known["burst"].integer(1, 1_000_000) if "burst" in known else max(1, round(2 * rate))
    failed = known["failed-logins"].integer(0, 100_000) if "failed-logins" in known else Limits.failed_logins
    return Limits(rate, burst, failed)


def _webhook(node: Node) -> Webhook:
    known = node.table("url", "events", "secret-file", "repositories", "keep")
    events = known["events"].items() if "events" in known else ()
    return Webhook(
        url=web_url(node.required(known, "url")),
        events=tuple(event.choice(*EVENTS) for event in events) or EVENTS,
        secret_file=existing(known["secret-file"]) if "secret-file" in known else None,
        repositories=known["repositories"].texts() if "repositories" in known else ("**",),
        keep=known["keep"].duration(60, 30 * 86400) if "keep" in known else Webhook.keep,
    )


def _log(node: Node) -> Log:
    known = node.table("format")
    return Log(known["format"].choice("text", "json", "none") if "format" in known else "text")


def _metrics(node: Node) -> Metrics:
    known = node.table("enabled")
    return Metrics(known["enabled"].boolean() if "enabled" in known else True)


def _gc(node: Node) -> Gc:
    known = node.table("interval", "grace")
    return Gc(
        interval=known["interval"].duration(60, _YEAR) if "interval" in known else 0,
        grace=known["grace"].duration(60, _YEAR) if "grace" in known else Gc().grace,
    )


def _transparency(node: Node) -> Transparency:
    known = node.table("key", "origin", "public", "principals")
    origin = node.required(known, "origin")
    if not is_key_name(origin.text()):
        origin.fail("must be a name without spaces and plus signs, for example registry.example.org/log")
    return Transparency(
        key=existing(node.required(known, "key")),
        origin=origin.value,
        public=known["public"].boolean() if "public" in known else False,
        principals=known["principals"].boolean() if "principals" in known else False,
    )

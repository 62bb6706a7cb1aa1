"""Which hosts are this machine, and what that allows."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def host_only(host: str) -> str:
    """A host without its port and brackets, in lower case."""
    return (urlsplit(f"//{host}").hostname or "").lower()


def is_loopback(host: str) -> bool:
    """Whether `host` (``HOST[:PORT]``) is this machine's own loopback."""
    name = host_only(host)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def is_internal(host: str) -> bool:
    """Whether `host` is written as an address that only this machine or its own network can reach."""
    try:
        return not ipaddress.ip_address(host_only(host)).is_global
    except ValueError:
        return is_loopback(host)


def scheme_of(host: str, plain_http: bool) -> str:
    """``http`` for loopback hosts and where the user says so, else ``https``."""
    return "http" if plain_http or is_loopback(host) else "https"

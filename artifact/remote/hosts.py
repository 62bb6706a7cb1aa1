"""Which hosts are this machine, and what that allows."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def host_only(host: str) -> str:
    """A host without its port and brackets, in lower case."""
    return (urlsplit(f"//{host}").hostname or "").lower()


def is_loopback(host: str) -> bool:
    """Whether `host` (``HOST[:PORT]``) is this machine's own loopback."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    name = host_only(host).rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def is_internal(host: str) -> bool:
    """Whether `host` is written as an address that only this machine or its own network can reach."""
    address = _address(host)
    return is_loopback(host) if address is None else not address.is_global


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is written as, also in the ways that only resolvers read: ``127.1``, ``0x7f000001``."""
    name = host_only(host)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name.rstrip(".")))
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address


def scheme_of(host: str, plain_http: bool) -> str:
    """``http`` for loopback hosts and where the user says so, else ``https``."""
    return "http" if plain_http or is_loopback(host) else "https"

"""Addresses to listen on."""

from __future__ import annotations

import ipaddress

from artifact.errors import InvalidInput
from artifact.reference import is_host


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises `InvalidInput`."""
    host, colon, port = text.rpartition(":")
    valid = colon and port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536
    if not valid or not is_host(host):
        raise InvalidInput(f"not an address to listen on: {text[:80]!r} (want HOST:PORT, for example 127.0.0.1:5000)")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

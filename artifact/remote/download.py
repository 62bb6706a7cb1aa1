"""Reading blobs from a registry. Source: distribution-spec, "Pulling blobs"; RFC 9110 section 14."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, ServerError, Unreachable
from artifact.remote.transport import Response, Transport
from artifact.source import Reader

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/(?:[0-9]+|\*)")
_SKIP = 1024 * 1024


class _BlobReader:
    """A response's body from one offset of a blob to its end. The bytes are not checked here, their number is."""

    def __init__(self, response: Response, left: int, what: str) -> None:
        self._response = response
        self._left = left
        self._what = what

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`. Raises `Unreachable` if the server stops before the blob's end."""
        if not self._left or not buffer:
            return 0
        try:
            data = self._response.read(min(len(buffer), self._left))
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{self._what}: the connection broke: {type(error).__name__}") from None
        if not data:
            raise Unreachable(f"{self._what}: the server stopped {self._left:,} bytes before the end")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


@contextmanager
def open_remote_blob(transport: Transport, name: str, descriptor: Descriptor, offset: int) -> Iterator[Reader]:
    """The bytes of a blob from `offset`, by a range request where the registry has them, else by reading past the
    beginning. Raises `NotFound`, and `DigestMismatch` if the registry announces another size."""
    what = f"blob {descriptor.digest.short} of {name}"
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-{descriptor.size - 1}"
    response = transport.request(
        "GET",
        f"/v2/{name}/blobs/{descriptor.digest}",
        scope=f"repository:{name}:pull",
        expect=(200, 206) if offset else (200,),
        headers=headers,
        stream=True,
        what=what,
    )
    try:
        start = _start(response, offset, what, transport.host)
        _check_length(response, descriptor.size - start, what)
        reader = _BlobReader(response, descriptor.size - start, what)
        _skip(reader, offset - start)
        yield reader
        if reader._left:
            response.close()  # the rest is not wanted: the connection cannot be used again
    except BaseException:
        response.close()
        raise
    finally:
        response.release_conn()


def _start(response: Response, offset: int, what: str, host: str) -> int:
    if response.status == 200:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != offset:
        raise ServerError(f"{host} answers a range of {what} with another range")
    return offset


def _check_length(response: Response, expected: int, what: str) -> None:
    stated = response.headers.get("Content-Length")
    if stated is not None and stated.isdecimal() and int(stated) != expected:
        raise DigestMismatch(f"{what}: the registry sends {stated} bytes where the manifest says {expected}")


def _skip(reader: _BlobReader, count: int) -> None:
    buffer = memoryview(bytearray(min(_SKIP, count))) if count else memoryview(b"")
    while count:
        count -= reader.readinto(buffer[: min(len(buffer), count)])

"""Reading blobs from a registry. Source: distribution-spec, "Pulling blobs"; RFC 9110 section 14."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, Unreachable
from artifact.remote.answer import Response, number
from artifact.remote.transport import Transport
from artifact.source import NoRanges, Reader

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:[0-9]+|\*)")
_SKIP = 1024 * 1024

_EXPIRED = (400, 403, 404, 410)
"""What object stores answer to a URL whose time is over."""


class RemoteBlob:
    """The blob `descriptor` of the repository `name`: its bytes from an offset on, or a range of them, to any number
    of threads. The bytes are not checked here, their number is.

    Where the registry redirects (to an object store, with a URL that holds for minutes), it is asked once; and again
    when that URL has expired.
    """

    def __init__(self, transport: Transport, name: str, descriptor: Descriptor) -> None:
        self._transport = transport
        self._name, self._descriptor = name, descriptor
        self._what = f"blob {descriptor.digest.short} of {name}"
        self._location: str | None = None

    @contextmanager
    def __call__(self, offset: int) -> Iterator[Reader]:
        """The bytes from `offset` to the end, by a range request where the registry has them, else by reading past
        the beginning. Raises `NotFound`, and `DigestMismatch` if the registry announces another size."""
        size = self._descriptor.size
        response = self._get(f"bytes={offset}-{size - 1}" if offset else None)
        if response.status == 206 and not _is_range(response, offset, size - offset):
            with _finishing(response):
                response.close()
            response = self._get(None)
        with _finishing(response):
            start = offset if response.status == 206 else 0
            reader = self._reader(response, size - start)
            _skip(reader, offset - start)
            yield reader
            if reader.left:
                response.close()  # the rest is not wanted: the connection cannot be used again

    @contextmanager
    def range(self, start: int, length: int) -> Iterator[Reader]:
        """The `length` bytes from `start`. Raises `NoRanges` if the registry sends the whole blob instead, or another
        range."""
        response = self._get(f"bytes={start}-{start + length - 1}")
        with _finishing(response):
            if response.status == 200:
                raise NoRanges(f"{self._transport.host} does not do ranges")
            if not _is_range(response, start, length):
                raise NoRanges(f"{self._transport.host} answers a range of {self._what} with another range")
            reader = self._reader(response, length)
            yield reader
            if reader.left:
                response.close()

    def _get(self, wanted: str | None) -> Response:
        headers = {"Accept-Encoding": "identity", **({"Range": wanted} if wanted else {})}
        expect = (200, 206) if wanted else (200,)
        location = self._location
        if location is not None:
            response = self._request(location, (*expect, *_EXPIRED), headers)
            if response.status in expect:
                return response
            response.close()
            self._location = None
        return self._request(f"/v2/{self._name}/blobs/{self._descriptor.digest}", expect, headers)

    def _request(self, url: str, expect: tuple[int, ...], headers: dict[str, str]) -> Response:
        return self._transport.request(
            "GET", url, scope=f"repository:{self._name}:pull", expect=expect, headers=headers, stream=True,
            what=self._what, landed=self._landed,
        )  # fmt: skip

    def _landed(self, url: str) -> None:
        self._location = url

    def _reader(self, response: Response, expected: int) -> _BlobReader:
        stated = response.headers.get("Content-Length")
        if stated is not None and stated.isdecimal() and number(stated) != expected:
            stated = stated[:20]
            raise DigestMismatch(f"{self._what}: the registry sends {stated} bytes where the manifest says {expected}")
        return _BlobReader(response, expected, self._what)


def _is_range(response: Response, start: int, length: int) -> bool:
    """Whether an answer says that it is the `length` bytes from `start`."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    stated = response.headers.get("Content-Length", str(length))
    return match is not None and (int(match[1]), int(match[2]) - start + 1) == (start, length) and stated == str(length)


class _BlobReader:
    """A response's body of `left` bytes."""

    def __init__(self, response: Response, left: int, what: str) -> None:
        self._response = response
        self._left = left
        self._what = what
        inner = getattr(response, "_fp", None)
        # urllib3 reads into bytes of its own, to be copied again; the response it wraps reads into ours.
        self._direct = inner if isinstance(inner, http.client.HTTPResponse) else None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`. Raises `Unreachable` if the server stops before the blob's end."""
        if not self._left or not buffer:
            return 0
        try:
            count = self._read(buffer[: self._left])
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise Unreachable(f"{self._what}: the connection broke: {type(error).__name__}") from None
        if not count:
            raise Unreachable(f"{self._what}: the server stopped {self._left:,} bytes before the end")
        self._left -= count
        return count

    def _read(self, buffer: memoryview) -> int:
        if self._direct is not None:
            return self._direct.readinto(buffer)
        data = self._response.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return self._left


@contextmanager
def _finishing(response: Response) -> Iterator[None]:
    """Give the connection back, closed if reading broke off."""
    try:
        yield
    except BaseException:
        response.close()
        raise
    finally:
        response.release_conn()


def _skip(reader: _BlobReader, count: int) -> None:
    buffer = memoryview(bytearray(min(_SKIP, count))) if count else memoryview(b"")
    while count:
        count -= reader.readinto(buffer[: min(len(buffer), count)])

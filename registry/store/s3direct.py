"""GET requests to S3 past the SDK, which takes 2 ms of the processor for each and copies what it reads several times.

Only the plain case is dealt with: the object is there, or it is not. Everything else, from a broken connection to a
redirect or credentials that have expired, is `Unusual`: whoever asked then asks the SDK, which knows how to go on and
what each error is called.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.exceptions import BotoCoreError
from botocore.utils import get_environ_proxies

from registry.store.protocol import Missing, Object
from registry.store.sigv4 import Credentials, request_bytes

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
_IDLE = 64  # connections kept for the next requests
_IDLE_SECONDS = 30.0  # after which a connection may have been forgotten by what lies between
_REST = 30.0  # seconds for which the SDK is asked at once after an answer that was not the plain one
_MAX_HEAD = 64 * 1024
_MAX_ERROR = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})(?: .*)?")


class Unusual(Exception):
    """There was no plain answer: ask the SDK."""


@dataclass(frozen=True)
class Target:
    """Where objects are. `path` comes before a key, `region` is part of each signature."""

    host: str
    port: int
    netloc: str
    path: str
    region: str
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    @classmethod
    def of(cls, client: S3Client, bucket: str, prefix: str, authorities: str) -> Target:
        """Where the SDK would go for what is under a prefix: what it says in a presigned URL. `authorities` is a file
        of those trusted over TLS. Raises `Unusual` if the SDK would go by a proxy, or sign in another way."""
        try:
            url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{prefix}k"}))
        except BotoCoreError:
            raise Unusual from None
        query = parse_qs(url.query)
        scope = query.get("X-Amz-Credential", [""])[0].rsplit("/", 4)
        if query.get("X-Amz-Algorithm") != ["AWS4-HMAC-SHA256"] or scope[-2:] != ["s3", "aws4_request"]:
            raise Unusual
        origin = f"{url.scheme}://{url.netloc}"
        if get_environ_proxies(origin).get(url.scheme) or url.hostname is None or not url.path.endswith("/k"):
            raise Unusual
        tls = ssl.create_default_context(cafile=authorities) if url.scheme == "https" else None
        port = url.port or (443 if tls else 80)
        return cls(url.hostname, port, url.netloc, unquote(url.path[:-1]), scope[-3], tls)


class Connection:
    """One connection: a request, the head of its answer, then its body, and again."""

    def __init__(self, target: Target) -> None:
        plain = socket.create_connection((target.host, target.port), CONNECT_SECONDS)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(READ_SECONDS)
            self._socket = plain if target.tls is None else target.tls.wrap_socket(plain, server_hostname=target.host)
        except BaseException:
            plain.close()
            raise
        self._early = memoryview(b"")  # what of the body came with the head
        self._keep = True
        self.left = 0

    def idle(self) -> bool:
        """Whether the next request can be made: the server has neither closed the connection nor said anything."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return self._keep and not self.left and not poll.poll(0)

    def ask(self, request: bytes) -> tuple[int, dict[bytes, bytes]]:
        """Status and headers of the answer; `left` is then the length of its body. Raises `OSError` and `Unusual`."""
        self._socket.sendall(request)
        raw = bytearray()
        while (end := raw.find(b"\r\n\r\n")) < 0:
            part = self._socket.recv(_MAX_HEAD)
            if not part or len(raw) > _MAX_HEAD:
                raise Unusual
            raw += part
        first, *lines = bytes(raw[:end]).split(b"\r\n")
        status = _STATUS.fullmatch(first)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            headers[name.lower()] = value.strip()
            if not colon:
                raise Unusual
        length = headers.get(b"content-length", b"")
        if status is None or not length.isdigit() or b"transfer-encoding" in headers:
            raise Unusual
        self._keep = headers.get(b"connection", b"").lower() != b"close"
        self._early = memoryview(bytes(raw[end + 4 :]))
        self.left = int(length)
        if len(self._early) > self.left:
            raise Unusual
        return int(status[1]), headers

    def readinto(self, view: memoryview) -> int:
        """Some of the rest of the body; nothing at its end. Raises `OSError`, also if the connection ends before."""
        view = view[: self.left]
        if self._early:
            count = min(len(view), len(self._early))
            view[:count], self._early = self._early[:count], self._early[count:]
        else:
            count = self._socket.recv_into(view) if view else 0
            if view and not count:
                raise ConnectionResetError("the connection ended before the answer did")
        self.left -= count
        return count

    def rest(self) -> bytes:
        """The rest of the body. Raises `OSError`."""
        data = bytearray(self.left)
        view = memoryview(data)
        while view:
            view = view[self.readinto(view) :]
        return bytes(data)

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._socket.close()


class Body:
    """The body of one answer."""

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self._connection: Connection | None = connection
        self._release = release

    def readinto(self, view: memoryview) -> int:
        """As `Connection.readinto`."""
        if self._connection is None:
            return 0
        count = self._connection.readinto(view)
        if not self._connection.left:
            self.close()
        return count

    def close(self) -> None:
        """Give the connection back, or end it if there is more to come."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._release(connection)


class DirectReads:
    """Objects of one bucket. `credentials` are asked for anew for each request: they may be lent for a time. Safe for
    several threads."""

    def __init__(self, target: Callable[[], Target], credentials: Callable[[], Credentials | None]) -> None:
        self._find_target = target
        self._credentials = credentials
        self._target: Target | None = None
        self._resting_until = 0.0
        self._idle: list[tuple[float, Connection]] = []
        self._lock = threading.Lock()

    def get(self, key: str) -> Object:
        """A small object. Raises `Missing` and `Unusual`."""
        connection, status, answer = self._ask(key, {})
        try:
            etag = answer.get(b"etag")
            if status != 200 or etag is None:
                raise self._refused(key, connection, status)
            return Object(connection.rest(), etag.decode("latin-1"))
        except OSError:
            raise Unusual from None
        finally:
            self._release(connection)

    def open(self, key: str, offset: int, length: int) -> Body:
        """A range of an object, of at least one byte. Raises `Missing` and `Unusual`."""
        last = offset + length - 1
        connection, status, answer = self._ask(key, {"range": f"bytes={offset}-{last}"})
        begins = answer.get(b"content-range", b"").startswith(f"bytes {offset}-".encode())
        if status == 206 and begins and connection.left <= length:
            return Body(connection, self._release)
        try:
            raise self._refused(key, connection, status)
        except OSError:
            raise Unusual from None
        finally:
            self._release(connection)

    def _ask(self, key: str, headers: dict[str, str]) -> tuple[Connection, int, dict[bytes, bytes]]:
        if time.monotonic() < self._resting_until:
            raise Unusual
        try:
            if self._target is None:
                self._target = self._find_target()
            target, credentials = self._target, self._credentials()
        except (Unusual, BotoCoreError, OSError):
            credentials = None
        if credentials is None:
            raise self._rest()
        request = request_bytes(
            "GET", target.netloc, target.path + key, headers, credentials, target.region, time.time()
        )  # fmt: skip
        kept = self._take()
        if kept is not None:
            with suppress(OSError, Unusual):  # it may be given up at this very moment: a new one will do
                return kept, *_ask_on(kept, request)
        try:
            connection = Connection(target)
            return connection, *_ask_on(connection, request)
        except OSError:
            raise Unusual from None

    def _refused(self, key: str, connection: Connection, status: int) -> Exception:
        """What to raise for an answer that is not the object."""
        if connection.left <= _MAX_ERROR:
            text = connection.rest()
            if status == 404 and b"<Code>NoSuchKey</Code>" in text:
                return Missing(f"no object {key}")
        return Unusual() if status >= 500 or status in (404, 416) else self._rest()

    def _rest(self) -> Unusual:
        """This way does not lead there now: a redirect, a clock that is wrong, credentials that are no longer good."""
        self._resting_until = time.monotonic() + _REST
        return Unusual()

    def _take(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            if time.monotonic() - since < _IDLE_SECONDS and connection.idle():
                return connection
            connection.close()

    def _release(self, connection: Connection) -> None:
        if connection.idle():
            with self._lock:
                if len(self._idle) < _IDLE:
                    self._idle.append((time.monotonic(), connection))
                    return
        connection.close()


def _ask_on(connection: Connection, request: bytes) -> tuple[int, dict[bytes, bytes]]:
    try:
        return connection.ask(request)
    except BaseException:
        connection.close()
        raise

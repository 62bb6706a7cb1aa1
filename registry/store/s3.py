"""The S3 driver, on boto3. Endpoint, region and credentials come from the standard AWS variables and files.

Asks of the service: conditional PutObject (If-None-Match, If-Match) and conditional DeleteObject. Whether they are
atomic is probed at start, see `registry.store.probe`. Conditional CompleteMultipartUpload is not used: services differ.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from urllib3.exceptions import HTTPError

from artifact.version import USER_AGENT
from registry.store import s3direct
from registry.store.protocol import (
    Conflict,
    Entry,
    Missing,
    Object,
    StoreUnavailable,
    Stream,
    Unfinished,
    Writer,
    checked_key,
)
from registry.store.s3direct import DirectReads, Target, Unusual
from registry.store.s3stream import Body, S3Stream, SdkBody, ViewBody
from registry.store.s3writer import LEAST_PART, S3Writer
from registry.store.sigv4 import Credentials

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_CONDITION = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


def s3_client(session: botocore.session.Session, connections: int = 64) -> S3Client:
    """The SDK, with path-style addresses and v4 signatures. Checksums only where the service demands them: the registry
    hashes every byte itself."""
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=connections,
        connect_timeout=s3direct.CONNECT_SECONDS,
        read_timeout=s3direct.READ_SECONDS,
        retries={"mode": "standard", "max_attempts": 4},
        user_agent_extra=USER_AGENT,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return boto3.session.Session(botocore_session=session).client("s3", region_name=region, config=config)


def _credentials(session: botocore.session.Session) -> Credentials | None:
    """Those the SDK has now; it renews them in time."""
    found = session.get_credentials()
    frozen = found.get_frozen_credentials() if found is not None else None
    if frozen is None or frozen.access_key is None or frozen.secret_key is None:
        return None
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


class S3Store:
    """Objects under a prefix of one bucket."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        session = botocore.session.Session()
        self._client = client = s3_client(session)
        # As the SDK itself finds them.
        named = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        authorities = str(named or get_cert_path(True))
        self._direct = DirectReads(
            lambda: Target.of(client, bucket, self._prefix, authorities), lambda: _credentials(session)
        )
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="s3-part")

    @property
    def place(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def remote(self) -> bool:
        return True

    @property
    def chunk(self) -> int:
        return LEAST_PART

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def get(self, key: str) -> Object:
        try:
            return self._direct.get(checked_key(key))
        except Unusual:
            pass
        with _errors(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            return Object(answer["Body"].read(), answer["ETag"])

    def head(self, key: str) -> Entry:
        with _errors(key):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            return Entry(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def put(
        self, key: str, data: bytes | memoryview, *, if_match: str | None = None, if_none_match: bool = False
    ) -> str:
        condition: dict[str, Any] = {}
        if if_match is not None:
            condition["IfMatch"] = if_match
        if if_none_match:
            condition["IfNoneMatch"] = "*"
        try:
            with _errors(key):
                body = io.BufferedReader(ViewBody(data)) if isinstance(data, memoryview) else data
                # A service may take a request whose body never came for one of nothing, if no hash says otherwise:
                # SeaweedFS stores an empty object when a process is killed between head and body.
                md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._key(key), Body=body, ContentMD5=md5, **condition
                )
        except Missing:  # If-Match on an object that is gone
            raise Conflict(f"object {key} is no longer the one that was read") from None
        return answer["ETag"]

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        condition: dict[str, Any] = {} if if_match is None else {"IfMatch": if_match}
        try:
            with _errors(key):
                self._client.delete_object(Bucket=self._bucket, Key=self._key(key), **condition)
        except Missing:
            if if_match is not None:
                raise Conflict(f"object {key} is no longer the one that was read") from None

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Entry]:
        entries: list[Entry] = []
        options: dict[str, Any] = {"StartAfter": self._prefix + start_after} if start_after else {}
        while len(entries) < limit:
            with _errors(prefix):
                answer = self._client.list_objects_v2(
                    Bucket=self._bucket,
                    Prefix=self._prefix + prefix,
                    MaxKeys=min(1000, limit - len(entries)),
                    **options,
                )
            for item in answer.get("Contents", []):
                key = item["Key"].removeprefix(self._prefix)
                entries.append(Entry(key, item["Size"], item["LastModified"].timestamp()))
            if not answer.get("IsTruncated"):
                break
            options = {"ContinuationToken": answer["NextContinuationToken"]}
        return entries

    def read(self, key: str, offset: int, length: int) -> Stream:
        return S3Stream(lambda start, count: self._open(key, start, count), offset, length)

    def _open(self, key: str, offset: int, length: int) -> Body:
        if length == 0:
            self.head(key)
            return SdkBody(io.BytesIO())
        try:
            return self._direct.open(checked_key(key), offset, length)
        except Unusual:
            pass
        with _errors(key):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._key(key), Range=f"bytes={offset}-{offset + length - 1}"
            )
        if not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
            answer["Body"].close()
            raise StoreUnavailable("object store: answered with other bytes than the range that was asked for")
        return SdkBody(answer["Body"])

    def writer(
        self,
        key: str,
        *,
        scratch: str,
        offset: int = 0,
        state: dict[str, Any] | None = None,
        expected: int | None = None,
    ) -> Writer:
        return S3Writer(self, key, scratch, state or {}, expected)

    def unfinished(self) -> Sequence[Unfinished]:
        found: list[Unfinished] = []
        options: dict[str, Any] = {}
        while True:
            with _errors("uploads"):
                answer = self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=f"{self._prefix}data/", **options
                )
            for item in answer.get("Uploads", []):
                key = item["Key"].removeprefix(self._prefix)
                found.append(Unfinished(key, item["UploadId"], item["Initiated"].timestamp()))
            if not answer.get("IsTruncated"):
                return found
            options = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def drop_unfinished(self, item: Unfinished) -> None:
        self.abort_parts(item.key, item.id)

    def presign(self, key: str, seconds: int) -> str | None:
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": self._key(key)}, ExpiresIn=seconds
        )

    # What the writer needs.

    def begin_parts(self, key: str) -> str:
        with _errors(key):
            return self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key(key))["UploadId"]

    def put_part(self, key: str, upload: str, number: int, data: bytearray) -> str:
        with _errors(key):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key(key),
                UploadId=upload,
                PartNumber=number,
                Body=data,  # type: ignore[arg-type]
            )
        return answer["ETag"]

    def copy_part(self, key: str, upload: str, number: int, source: str, offset: int, length: int) -> str:
        try:
            with _errors(source):
                answer = self._client.upload_part_copy(
                    Bucket=self._bucket,
                    Key=self._key(key),
                    UploadId=upload,
                    PartNumber=number,
                    CopySource={"Bucket": self._bucket, "Key": self._key(source)},
                    CopySourceRange=f"bytes={offset}-{offset + length - 1}",
                )
            return answer["CopyPartResult"]["ETag"]
        except StoreUnavailable:  # a service that does not do this, or not for this object: the bytes take the long way
            data = bytearray(length)
            stream, filled = self.read(source, offset, length), 0
            try:
                while count := stream.readinto(memoryview(data)[filled:]):
                    filled += count
            finally:
                stream.close()
            if filled != length:
                raise Missing(f"object {source} is shorter than it should be") from None
            return self.put_part(key, upload, number, data)

    def complete_parts(self, key: str, upload: str, etags: Sequence[str]) -> None:
        parts: list[CompletedPartTypeDef] = [{"PartNumber": i, "ETag": etag} for i, etag in enumerate(etags, 1)]
        with _errors(key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key(key), UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def abort_parts(self, key: str, upload: str) -> None:
        try:
            with _errors(key):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key(key), UploadId=upload)
        except Missing:
            return

    def background(self, function: Callable[[], str]) -> Future[str]:
        return self._pool.submit(function)


@contextmanager
def _errors(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            raise Missing(f"no object {key}") from None
        if code in _CONDITION:
            raise Conflict(f"object {key} exists, or is no longer the one that was read") from None
        raise StoreUnavailable(f"object store: {error}") from None
    except (BotoCoreError, HTTPError) as error:
        raise StoreUnavailable(f"object store: {error}") from None

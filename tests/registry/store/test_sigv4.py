"""Signatures, against those of the SDK."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest import mock

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.version import USER_AGENT
from registry.store.sigv4 import Credentials, request_bytes

KEYS = st.text("abz019._:+=~@-/", min_size=1, max_size=40).filter(lambda key: "//" not in key and "." not in key[:1])
NOW = datetime(2026, 3, 9, 1, 2, 3, tzinfo=UTC)


@settings(deadline=None)
@given(
    key=KEYS,
    region=st.sampled_from(["us-east-1", "auto", "eu-central-2"]),
    host=st.sampled_from(["127.0.0.1:8333", "s3.eu-central-2.amazonaws.com", "[::1]:9000"]),
    token=st.sampled_from([None, "FwoGZXIvYXdzE+/=="]),
    headers=st.dictionaries(
        st.sampled_from(["range", "if-none-match"]), st.sampled_from(["bytes=0-1", '"a-7"']), max_size=2
    ),
    secret=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
)
def test_as_the_sdk_signs(
    key: str, region: str, host: str, token: str | None, headers: dict[str, str], secret: str
) -> None:
    path = f"/bucket/p/{key}"
    raw = request_bytes("GET", host, path, headers, Credentials("AK/ID", secret, token), region, NOW.timestamp())
    first, *lines = raw.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    mine = dict(line.split(": ", 1) for line in lines)

    encoded = first.split(" ")[1]
    theirs = AWSRequest("GET", f"http://{host}{encoded}", headers={**headers, "Host": host})
    signer = S3SigV4Auth(SdkCredentials("AK/ID", secret, token), "s3", region)
    with mock.patch("botocore.auth.get_current_datetime", lambda *_, **__: NOW.replace(tzinfo=None)):
        signer.add_auth(theirs)
    assert mine.pop("user-agent") == USER_AGENT  # not part of what is signed, as it is not in the SDK
    assert mine.pop("authorization") == theirs.headers["Authorization"]
    assert mine == {name.lower(): value for name, value in theirs.headers.items() if name != "Authorization"}

"""Digests parse strictly and print canonically."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.errors import InvalidInput


@given(st.binary())
def test_of_is_sha256_and_matches_only_its_bytes(data: bytes) -> None:
    digest = Digest.of(data)
    assert str(digest) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert digest.matches(data)
    assert not digest.matches(data + b"\0")


@given(st.binary())
def test_sha512_is_accepted(data: bytes) -> None:
    digest = Digest.parse("sha512:" + hashlib.sha512(data).hexdigest())
    assert digest.matches(data)


@given(st.text())
def test_arbitrary_text_is_refused_or_round_trips(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidInput:
        return
    assert str(digest) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "a" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 63 + "\n",
        "md5:" + "a" * 32,
        "sha512:" + "a" * 64,
        "sha256:../../../etc/passwd",
        "sha256:" + "٣" * 64,
        " sha256:" + "a" * 64,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest.parse(text)

"""References: the grammar users write, and nothing beyond it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.reference import NAME, TAG, Reference, is_host, shown_tags

DIGEST = Digest.of(b"x")
names = st.from_regex(NAME, fullmatch=True).filter(lambda text: len(text) < 120)
tags = st.from_regex(TAG, fullmatch=True)
hosts = st.sampled_from(
    ["localhost", "localhost:5000", "registry.example.org", "a.b:65535", "127.0.0.1:5000", "[::1]:5000", "h:1"]
)


@given(st.none() | hosts, names, st.none() | tags, st.sampled_from([None, DIGEST]))
def test_parse_is_the_inverse_of_str(host: str | None, name: str, tag: str | None, digest: Digest | None) -> None:
    first = name.split("/")[0]
    if host is None and "/" in name and ("." in first or first == "localhost"):
        return  # such a name reads as a host: nothing can be written that means it
    reference = Reference(name=name, host=host, tag=tag, digest=digest)
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=300))
def test_arbitrary_text_is_refused_or_round_trips(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "host", "name", "tag"),
    [
        ("qwen3:4B-Q4_K_M", None, "qwen3", "4B-Q4_K_M"),
        ("ai/smollm2", None, "ai/smollm2", None),
        ("localhost/x", "localhost", "x", None),
        ("localhost:5000/a/b__c:t", "localhost:5000", "a/b__c", "t"),
        ("example.org/a-b/c.d:latest", "example.org", "a-b/c.d", "latest"),
        ("[::1]:5000/x:y", "[::1]:5000", "x", "y"),
    ],
)
def test_parts(text: str, host: str | None, name: str, tag: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.name, reference.tag) == (host, name, tag)
    assert reference.is_local == (host is None)


def test_tags_in_an_error_begin_like_the_one_asked_for() -> None:
    tags = [*(f"{size}B-{kind}" for size in (1, 4, 8) for kind in ("BF16", "Q4_K_M", "Q8_0")), f"sha256-{'0' * 64}.sig"]
    assert shown_tags(tags, "4B-q4_K_S", 3) == " (it has 4B-Q4_K_M, 4B-Q8_0, 4B-BF16, …)"
    assert shown_tags(tags, limit=2) == " (it has 1B-BF16, 1B-Q4_K_M, …)"
    assert shown_tags(tags[-1:], "x") == ""


def test_tag_and_digest_together() -> None:
    reference = Reference.parse(f"h:1/x:t@{DIGEST}")
    assert (reference.tag, reference.digest) == ("t", DIGEST)
    assert reference.with_tag("u") == Reference.parse("h:1/x:u")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "x:",
        "x@",
        "x@sha256:abc",
        "UPPER",
        "localhost:5000/Upper",
        "localhost:0/x",
        "localhost:65536/x",
        "localhost:/x",
        "-bad.example/x",
        "[::1/x",
        "[zz::]:5000/x",
        "a//b",
        "a/../b",
        "../a",
        "a/b/",
        "/a",
        "x:" + "t" * 129,
        "x:.hidden",
        "x:a b",
        "x y",
        "x\n",
        "http://localhost:5000/x",
        "user@localhost:5000/x",
        "a__-b",
        "h:1/" + "a" * 300,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="bad reference"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("oci:/tmp/models:4B-F16", "/tmp/models", "4B-F16"),
        ("oci:relative/folder", "relative/folder", None),
        ("oci:/tmp/with:colon/x:t", "/tmp/with:colon/x", "t"),
        ("oci:/tmp/a@b:t", "/tmp/a@b", "t"),
    ],
)
def test_layouts(text: str, path: str, tag: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.layout, reference.tag, reference.host) == (path, tag, None)
    assert str(reference) == text
    pinned = Reference.parse(f"{text}@{DIGEST}")
    assert (pinned.layout, pinned.tag, pinned.digest) == (path, tag, DIGEST)


@pytest.mark.parametrize("text", ["oci:", "oci::t", "oci:/x:", "oci:/x:bad tag", "oci:/x:t@sha256:12"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


@given(st.text(max_size=40))
def test_a_host_never_smuggles_url_syntax(text: str) -> None:
    if is_host(text):
        assert not set(text) & set("/@?#\\ \t\r\n%")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from artifact.reference import Reference
from supplychain.glob import Glob, Target, matches


def target(text: str) -> Target:
    return Target.of(Reference.parse(text))


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("**", "ghcr.io/acme/model:v1"),
        ("**", "model"),
        ("**", "oci:/srv/models/m:v1"),
        ("ghcr.io/acme/*", "ghcr.io/acme/model:v1"),
        ("ghcr.io/**", "ghcr.io/acme/team/model"),
        ("ghcr.io/acme/model:v*", "ghcr.io/acme/model:v1"),
        ("*.example.com/**", "eu.example.com/a/b"),
        ("localhost:5000/**", "localhost:5000/a/b:v1"),
        ("localhost:5000/a:v1", "localhost:5000/a:v1"),
        ("acme/*", "acme/model:v1"),
        ("oci:/srv/**", "oci:/srv/models/m:v1"),
        ("oci:**:prod", "oci:/srv/models/m:prod"),
        ("[::1]:5000/**", "[0:0:0:0:0:0:0:1]:5000/m"),
        # other spellings of the host
        ("ghcr.io/acme/*", "GHCR.io/acme/model"),
        ("ghcr.io/acme/*", "ghcr.io:443/acme/model"),
        ("GHCR.IO:443/acme/*", "ghcr.io/acme/model"),
        ("docker.io/library/*", "docker.io/llama"),
        ("docker.io/*", "index.docker.io/library/llama"),
    ],
)
def test_matches(pattern: str, reference: str) -> None:
    assert Glob(pattern).may_match(target(reference))
    assert Glob(pattern).surely_matches(target(reference)) or target(reference).tag is None


@pytest.mark.parametrize(
    ("pattern", "reference"),
    [
        ("ghcr.io/acme/*", "ghcr.io/acme/team/model"),
        ("ghcr.io/acme/*", "ghcr.io/acme"),
        ("ghcr.io/*", "ghcr.io.evil.example/acme"),
        ("ghcr.io/acme/model", "ghcr.io/acme/model-b"),
        ("ghcr.io/acme/model:v1", "ghcr.io/acme/model:v10"),
        ("*/acme", "ghcr.io/x/acme"),
        ("acme/*", "ghcr.io/acme/model"),
        ("**/model", "oci:/srv/model"),
        ("*", "oci:model"),
        ("oci:**", "ghcr.io/acme/model"),
        ("localhost:5000/**", "localhost:5001/a"),
        ("ghcr.io/acme", "ghcrxio/acme"),
    ],
)
def test_does_not_match(pattern: str, reference: str) -> None:
    assert not Glob(pattern).may_match(target(reference))


def test_a_reference_without_a_tag_may_be_any_tag() -> None:
    by_digest = target(f"ghcr.io/acme/model@sha256:{'0' * 64}")
    assert Glob("ghcr.io/acme/model:prod-*").may_match(by_digest)
    assert not Glob("ghcr.io/acme/model:prod-*").surely_matches(by_digest)
    assert Glob("ghcr.io/acme/model:*").surely_matches(by_digest)
    assert Glob("ghcr.io/acme/model").surely_matches(by_digest)


@pytest.mark.parametrize(
    "pattern",
    ["", "a b", "ghcr.io/acme@sha256:0", "a***b", "oci:relative/**", "oci:", "ghcr.io/a:", "a?", "{a,b}", ":v1"],
)
def test_unusable_patterns(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        Glob(pattern)


def test_no_pattern_takes_long() -> None:
    """Any way that tries what it has tried before would take hours for these."""
    assert not Glob("**a" * 150 + "b").may_match(Target("a" * 255))
    assert not Glob("*a" * 200 + "b").may_match(Target("a" * 255))
    assert not matches("*a" * 200 + "b", "a" * 4096)
    assert matches("*a" * 200, "a" * 4096)
    assert matches("*/*a", "b/a" + "a" * 9) and not matches("*a", "b/a")


@given(st.text(max_size=30), st.text(max_size=30))
def test_arbitrary_patterns(pattern: str, place: str) -> None:
    try:
        glob = Glob(pattern)
    except InvalidInput:
        return
    assert glob.may_match(Target(place)) in (True, False)


@given(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}){0,2}", fullmatch=True))
def test_a_name_matches_itself_and_everything(name: str) -> None:
    assert Glob(name).may_match(Target(name))
    assert Glob("**").may_match(Target(name))
    assert Glob("*").may_match(Target(name)) == ("/" not in name)

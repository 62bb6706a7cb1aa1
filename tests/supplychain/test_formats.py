"""The parsers of what anyone may have written: each accepts what it writes, and refuses everything else in one way."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.digest import Digest
from artifact.errors import Malformed
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.simplesigning import SimpleSigning
from supplychain.statement import Statement

DIGEST = Digest("sha256", "ab" * 32)
PARSERS: list[Callable[[bytes], object]] = [Bundle.parse, Statement.parse, SimpleSigning.parse]
BUNDLE = Bundle(Envelope(b"payload", "application/x", (b"signature",)), hint="hint")
VALID = [BUNDLE.to_bytes(), Statement.about(DIGEST, "t").to_bytes(), SimpleSigning(DIGEST, "host/name").to_bytes()]

KEYS = [
    *("mediaType", "verificationMaterial", "publicKey", "hint", "dsseEnvelope", "payload", "payloadType", "signatures"),
    *("sig", "_type", "subject", "digest", "sha256", "predicateType", "predicate", "critical", "image", "identity"),
    *("type", "docker-reference", "docker-manifest-digest", "tlogEntries", "certificate", "rawBytes"),
]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just(str(DIGEST)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=12,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every place in a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [here, *(path for key in keys for path in paths(value[key], (*here, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def parses_or_is_malformed(raw: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(raw)
        except Malformed as error:
            str(error).encode()


@given(st.binary(max_size=200))
def test_arbitrary_bytes(raw: bytes) -> None:
    parses_or_is_malformed(raw)


@given(JSON)
def test_arbitrary_json(value: Any) -> None:
    parses_or_is_malformed(json.dumps(value).encode())


@given(st.sampled_from(VALID), st.data())
def test_documents_with_one_thing_wrong(raw: bytes, data: st.DataObject) -> None:
    value = json.loads(raw)
    path = data.draw(st.sampled_from(paths(value)))
    parses_or_is_malformed(json.dumps(replaced(value, path, data.draw(JSON))).encode())


@pytest.mark.parametrize(("parse", "raw"), list(zip(PARSERS, VALID, strict=True)))
def test_a_truncated_document_is_malformed(parse: Callable[[bytes], object], raw: bytes) -> None:
    parse(raw)
    for length in range(len(raw)):
        with pytest.raises(Malformed):
            parse(raw[:length])


@given(st.binary(max_size=60), st.from_regex(r"[!-~]{1,40}", fullmatch=True), st.binary(min_size=1, max_size=80))
def test_a_bundle_is_read_as_it_was_written(payload: bytes, kind: str, signature: bytes) -> None:
    written = Bundle(Envelope(payload, kind, (signature,)), hint="h")
    assert Bundle.parse(written.to_bytes()) == written


def test_pae_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_either_base64_alphabet_is_read() -> None:
    value = {"payload": "-_8=", "payloadType": "t", "signatures": [{"sig": "+/8="}]}
    envelope = Envelope.from_json(value)
    assert envelope.payload == envelope.signatures[0] == b"\xfb\xff"


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"},
        {"unknown": 1},
        {"messageSignature": {}},
        {"dsseEnvelope": None},
        {"verificationMaterial": {}},
        {"verificationMaterial": {"publicKey": {"hint": "h"}, "certificate": {"rawBytes": ""}}},
        {"verificationMaterial": {"publicKey": {"hint": "h"}, "tlogEntries": [{}] * 33}},
        {"verificationMaterial": {"publicKey": {"hint": "h" * 257}}},
        {"dsseEnvelope": {"payload": "", "payloadType": "t", "signatures": [{"sig": "AA=="}] * 17}},
        {"dsseEnvelope": {"payload": "", "payloadType": "t", "signatures": [{"sig": ""}]}},
        {"dsseEnvelope": {"payload": "*", "payloadType": "t", "signatures": []}},
    ],
    ids=str,
)
def test_bundles_that_are_not_read(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Bundle.parse(json.dumps(json.loads(BUNDLE.to_bytes()) | change).encode())


def test_a_duplicate_key_is_malformed() -> None:
    raw = BUNDLE.to_bytes().replace(b'"payloadType":', b'"payloadType":"a","payloadType":')
    with pytest.raises(Malformed):
        Bundle.parse(raw)


def test_a_keyless_bundle_is_read() -> None:
    value = json.loads(BUNDLE.to_bytes())
    certificate = {"rawBytes": base64.b64encode(b"der").decode()}
    value["verificationMaterial"] = {"certificate": certificate, "tlogEntries": [{"logIndex": "1"}]}
    bundle = Bundle.parse(json.dumps(value).encode())
    assert bundle.certificate == b"der"
    assert bundle.log_entries == ({"logIndex": "1"},)

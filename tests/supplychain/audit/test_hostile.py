"""Registries that do not answer as they should: an audit is bounded, and says what it could not see."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import EMPTY_CONFIG, Index, Manifest
from artifact.mediatypes import IN_TOTO
from artifact.remote import RemoteRepository
from supplychain.audit.examine import MAX_MEMBERS
from supplychain.bundle import Bundle
from supplychain.dsse import Envelope, pae
from supplychain.keys import PrivateKey
from supplychain.predicate import PROVENANCE
from supplychain.statement import Statement
from tests.artifact.conftest import Exchange
from tests.registry.servers import RunningRegistry
from tests.supplychain.audit.conftest import Audit
from tests.supplychain.audit.zoo import push, refer

Serve = Callable[[Callable[[Exchange], None]], Any]

RAW = Manifest(Descriptor.of(EMPTY_CONFIG, mediatypes.MODEL_CONFIG), ()).to_bytes()
DIGEST = Digest.of(RAW)
JSON = {"Content_Type": "application/json"}


def answer(exchange: Exchange) -> None:
    """A registry with one repository and one unsigned artifact in it."""
    path = urlsplit(exchange.path).path
    if path == "/v2/_catalog":
        exchange.answer(200, b'{"repositories": ["team/model"]}', **JSON)
    elif path.endswith("/tags/list"):
        exchange.answer(200, b'{"tags": ["v1"]}', **JSON)
    elif path.endswith(("/manifests/v1", f"/manifests/{DIGEST}")):
        exchange.answer(200, RAW, Content_Type=mediatypes.IMAGE_MANIFEST, Docker_Content_Digest=str(DIGEST))
    elif "/referrers/" in path:
        exchange.answer(200, Index(()).to_bytes(), Content_Type=mediatypes.IMAGE_INDEX)
    else:
        exchange.answer(404)


def test_a_registry_that_behaves(serve: Serve, audit: Audit) -> None:
    """What the others are measured against: what is asked for is there, with a signature tag nobody lists left out."""
    server = serve(answer)
    (record,) = audit(server.host).records
    assert (record["status"], record["digest"]) == ("unsigned", str(DIGEST))
    assert len(server.seen) == 4


@pytest.mark.parametrize("where", ["_catalog", "tags/list"])
def test_a_listing_that_turns_in_a_circle(serve: Serve, audit: Audit, where: str) -> None:
    def script(exchange: Exchange) -> None:
        if where not in exchange.path:
            answer(exchange)
            return
        body = b'{"repositories": ["team/model"], "tags": ["v1"]}'
        exchange.answer(200, body, Link=f'<{urlsplit(exchange.path).path}?last=a>; rel="next"', **JSON)

    server = serve(script)
    ran = audit(server.host, status=1)
    assert len(server.seen) < 20
    said = ran.err if where == "_catalog" else ran.records[0]["reason"]
    assert "no end" in said


def test_a_catalog_without_an_end(serve: Serve, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """New names on every page, for ever."""
    monkeypatch.setattr("artifact.remote.catalog._MAX_NAMES", 50)
    numbers = count()

    def script(exchange: Exchange) -> None:
        if "_catalog" in exchange.path:
            names = json.dumps({"repositories": [f"team/model-{next(numbers)}" for _ in range(10)]})
            exchange.answer(200, names.encode(), Link='</v2/_catalog?last=x>; rel="next"', **JSON)
        else:
            answer(exchange)

    assert "no end" in audit(serve(script).host, status=1).err


@pytest.mark.parametrize("where", ["_catalog", "/tags/list", "/manifests/", "/referrers/"])
def test_answers_without_an_end(serve: Serve, audit: Audit, where: str) -> None:
    sent = 0

    def script(exchange: Exchange) -> None:
        nonlocal sent
        if where not in exchange.path:
            answer(exchange)
            return
        exchange.handler.send_response(200)
        exchange.handler.send_header("Content-Type", mediatypes.IMAGE_INDEX)
        exchange.handler.send_header("Transfer-Encoding", "chunked")
        exchange.handler.end_headers()
        for _ in range(1000):
            exchange.handler.wfile.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
            sent += 1

    ran = audit(serve(script).host, status=1)
    assert "more than 8388608 bytes" in ran.err + "".join(record["reason"] for record in ran.records)
    assert sent < 100, "MiB that had to be taken"


def test_a_realm_elsewhere_is_told_no_login(serve: Serve, audit: Audit, tmp_path: Any) -> None:
    other = serve(lambda exchange: exchange.answer(200, b'{"token": "abc"}', **JSON))

    def script(exchange: Exchange) -> None:
        if exchange.headers.get("authorization") == "Bearer abc":
            answer(exchange)
        else:
            exchange.answer(401, WWW_Authenticate=f'Bearer realm="http://{other.host}/token",service="x"')

    server = serve(script)
    (tmp_path / ".docker").mkdir()
    login = {"auths": {server.host.replace("127.0.0.1", "localhost"): {"auth": "dXNlcjpzZWNyZXQ="}}}
    (tmp_path / ".docker" / "config.json").write_text(json.dumps(login))
    host = server.host.replace("127.0.0.1", "localhost")
    assert audit(host).records[0]["status"] == "unsigned"
    assert other.seen and not any("authorization" in exchange.headers for exchange in other.seen)
    scopes = {parse_qs(urlsplit(exchange.path).query)["scope"][0] for exchange in other.seen}
    assert scopes == {"registry:catalog:*", "repository:team/model:pull"}


def test_patience_is_kept_by_all(serve: Serve, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    refused = count()

    def script(exchange: Exchange) -> None:
        if exchange.path.endswith("/tags/list") and next(refused) < 2:
            exchange.answer(429, Retry_After="7")
        else:
            answer(exchange)

    assert audit(serve(script).host).records[0]["status"] == "unsigned"
    assert slept.count(7.0) == 2
    assert any(0 < seconds < 7 for seconds in slept), "and whoever asks next waits as well"


def test_a_rate_is_kept(serve: Serve, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, slept=[])

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr("artifact.remote.pace.time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    server = serve(answer)
    audit(server.host, "--rate", "4", "--concurrency", "1")
    assert (len(server.seen), clock.slept) == (4, [0.25, 0.25, 0.25])


def test_who_may_not_look_is_told(serve: Serve, audit: Audit) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path.startswith("/v2/_catalog"):
            exchange.answer(200, b'{"repositories": ["closed/model", "team/model"]}', **JSON)
        elif "closed" in exchange.path:
            exchange.answer(403)
        else:
            answer(exchange)

    ran = audit(serve(script).host, status=1)
    assert {record["repository"]: (record["status"], record["code"]) for record in ran.records} == {
        "closed/model": ("broken", "unauthorized"), "team/model": ("unsigned", "unsigned"),
    }  # fmt: skip
    assert "not everything could be looked at" in ran.err


def test_no_catalog(serve: Serve, audit: Audit) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer(404) if "_catalog" in exchange.path else answer(exchange)

    server = serve(script)
    assert "name them one by one" in audit(server.host, status=1).err
    assert audit(f"{server.host}/team/model").records[0]["status"] == "unsigned"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "malformed"),
        (b'{"schemaVersion":2,"layers":[],"manifests":[]}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b" " * (4 * 1024 * 1024 + 1), "malformed"),
    ],
)
def test_manifests_that_are_none(serve: Serve, audit: Audit, raw: bytes, code: str) -> None:
    def script(exchange: Exchange) -> None:
        if "/manifests/" in exchange.path:
            digest = str(Digest.of(raw))
            exchange.answer(200, raw, Content_Type=mediatypes.IMAGE_MANIFEST, Docker_Content_Digest=digest)
        else:
            answer(exchange)

    (record,) = audit(serve(script).host).records
    assert (record["status"], record["code"]) == ("broken", code)


def test_a_referrers_list_without_an_end(serve: Serve, audit: Audit) -> None:
    """More referrers than are read: what lies beyond is told of."""
    entries = [
        Descriptor(
            mediatypes.IMAGE_MANIFEST, Digest.of(str(number).encode()), 2, artifact_type=mediatypes.SIGSTORE_BUNDLE
        )
        for number in range(300)
    ]

    def script(exchange: Exchange) -> None:
        if "/referrers/" in exchange.path:
            exchange.answer(200, Index(entries).to_bytes(), Content_Type=mediatypes.IMAGE_INDEX)
        else:
            answer(exchange)

    server = serve(script)
    (record,) = audit(server.host).records
    assert (record["status"], record["code"]) == ("invalid", "too-many-signatures")
    assert record["referrers"] == {mediatypes.SIGSTORE_BUNDLE: 300}
    assert len(server.seen) < 140


def test_an_index_that_leads_to_itself_and_to_many(serve: Serve, audit: Audit) -> None:
    """Members are looked at a few levels deep, each once."""
    indexes: dict[str, bytes] = {}
    below: tuple[Descriptor, ...] = (Descriptor(mediatypes.IMAGE_MANIFEST, DIGEST, len(RAW)),)
    for _ in range(20):
        raw = Index(below).to_bytes()
        descriptor = Descriptor.of(raw, mediatypes.IMAGE_INDEX)
        indexes[str(descriptor.digest)] = raw
        below = (descriptor,)
    top = below[0].digest

    def script(exchange: Exchange) -> None:
        wanted = exchange.path.rpartition("/manifests/")[2].replace("v1", str(top))
        if wanted in indexes:
            exchange.answer(200, indexes[wanted], Content_Type=mediatypes.IMAGE_INDEX, Docker_Content_Digest=wanted)
        else:
            answer(exchange)

    *looked_at, told = audit(serve(script).host, status=1).records
    assert len({record["digest"] for record in looked_at}) == len(looked_at) == 5
    assert told["incomplete"] and "not looked at: 1 without a tag" in told["reason"]


def test_members_that_are_too_many_to_look_at_are_told(serve: Serve, audit: Audit) -> None:
    """Nothing can hide behind others and leave the audit whole."""
    members = [Descriptor(mediatypes.IMAGE_MANIFEST, Digest.of(b"%d" % number), 7) for number in range(MAX_MEMBERS + 1)]
    raw = Index(members).to_bytes()
    digest = str(Digest.of(raw))

    def script(exchange: Exchange) -> None:
        if exchange.path.endswith(("/manifests/v1", f"/manifests/{digest}")):
            exchange.answer(200, raw, Content_Type=mediatypes.IMAGE_INDEX, Docker_Content_Digest=digest)
        else:
            answer(exchange)

    (record,) = audit(serve(script).host, status=1).records
    assert record["incomplete"] and f"{MAX_MEMBERS + 1} members" in record["reason"]


def test_text_that_utf8_cannot_say_is_written(
    kept: RunningRegistry, audit: Audit, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    """Whoever may push a referrer writes into what an audit reports of it."""
    repository = RemoteRepository(kept.host, "surrogates")
    subject = push(repository, b"weights", "v1")
    payload = Statement.about(subject.digest, PROVENANCE, {}).to_bytes().replace(b"slsa.dev", rb"\\ud800")
    envelope = Envelope(payload, IN_TOTO, (keys["stranger"].sign(pae(IN_TOTO, payload)),))
    bundle = Bundle(envelope, hint=keys["stranger"].public.hint).to_bytes()
    refer(repository, subject, bundle, mediatypes.SIGSTORE_BUNDLE)
    out = tmp_path / "out.jsonl"
    audit(f"{kept.host}/surrogates", "--output", f"sarif={tmp_path / 'out.sarif'}", output=f"jsonl={out}")
    (record,) = map(json.loads, out.read_text().splitlines())
    assert record["status"] == "unsigned"
    assert (tmp_path / "out.sarif").exists()

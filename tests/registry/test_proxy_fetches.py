"""The pull-through cache in front of servers that are slow, break off, lie, or send it elsewhere."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.registry.originals import Blob, Original, original
from tests.registry.proxying import eventually, is_stored, proxied
from tests.registry.pushing import error_code, sha256
from tests.registry.secured import PASSWORDS
from tests.registry.servers import S3, RunningRegistry, StartRegistry

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def odd() -> Iterator[Original]:
    """An original that does as it is told."""
    with original() as server:
        yield server


@pytest.fixture(scope="module")
def before(
    odd: Original, session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> RunningRegistry:
    """The cache in front of it."""
    folder = tmp_path_factory.mktemp("proxy-odd")
    return session_registries(folder / "storage", "--config", str(proxied(folder, odd.host)))


def test_one_fetch_however_many_wait(odd: Original, before: RunningRegistry, repo: str) -> None:
    content = secrets.token_bytes(4 * MIB)
    digest = odd.has(blob := Blob(content, gated_at=0))
    answers: list[bytes] = []

    def pull() -> None:
        answers.append(httpx.get(f"{before.url}/v2/up/{repo}/blobs/{digest}", timeout=120).content)

    threads = [threading.Thread(target=pull) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: odd.ranges(digest))
    blob.gate.set()
    for thread in threads:
        thread.join()
    assert answers == [content] * 8
    pull()
    assert answers[-1] == content
    assert odd.ranges(digest) == [""]


def test_the_last_byte_waits_for_the_digest(odd: Original, before: RunningRegistry, repo: str) -> None:
    """A wrong digest is never stored, and nobody gets a whole answer."""
    content = secrets.token_bytes(3 * MIB)
    wrong = odd.has(Blob(content, gated_at=2 * MIB), sha256(secrets.token_bytes(9)))
    there = {path.name for path in (Path(before.storage) / "data").glob("*")}
    received = b""
    url = f"{before.url}/v2/up/{repo}/blobs/{wrong}"
    with pytest.raises(httpx.RemoteProtocolError), httpx.stream("GET", url) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            received += piece
            odd.blobs[wrong].gate.set()  # bytes go on while the rest is still to come
    assert 0 < len(received) < len(content) and content.startswith(received)
    assert not is_stored(before, f"up/{repo}", wrong)
    assert {path.name for path in (Path(before.storage) / "data").glob("*")} <= there
    # A blob of one byte is found out before anything is said.
    small = odd.has(Blob(b"x"), sha256(secrets.token_bytes(9)))
    answer = httpx.get(f"{before.url}/v2/up/{repo}/blobs/{small}")
    assert (answer.status_code, error_code(answer)) == (502, "UNAVAILABLE")


def test_an_original_that_breaks_off_is_asked_for_the_rest(odd: Original, before: RunningRegistry, repo: str) -> None:
    content = secrets.token_bytes(5 * MIB)
    digest = odd.has(Blob(content, breaks=[2 * MIB, MIB]))
    assert httpx.get(f"{before.url}/v2/up/{repo}/blobs/{digest}", timeout=60).content == content
    assert odd.ranges(digest) == ["", f"bytes={2 * MIB}-{5 * MIB - 1}", f"bytes={3 * MIB}-{5 * MIB - 1}"]


def test_ranges_on_a_miss(odd: Original, before: RunningRegistry, repo: str) -> None:
    """A near one waits for the fetch; a far one goes past it; the whole is stored once."""
    content = secrets.token_bytes(24 * MIB)
    digest = odd.has(blob := Blob(content, gated_at=MIB))
    url = f"{before.url}/v2/up/{repo}/blobs/{digest}"
    far = httpx.get(url, headers={"Range": f"bytes={20 * MIB}-{20 * MIB + 99}"}, timeout=60)
    assert (far.status_code, far.content) == (206, content[20 * MIB : 20 * MIB + 100])
    assert far.headers["content-range"] == f"bytes {20 * MIB}-{20 * MIB + 99}/{len(content)}"
    suffix = httpx.get(url, headers={"Range": "bytes=-5"}, timeout=60)
    assert (suffix.status_code, suffix.content) == (206, content[-5:])
    near = httpx.get(url, headers={"Range": "bytes=10-19"}, timeout=60)
    assert (near.status_code, near.content) == (206, content[10:20])
    assert httpx.get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert not is_stored(before, f"up/{repo}", digest)
    blob.gate.set()
    eventually(lambda: is_stored(before, f"up/{repo}", digest))
    assert httpx.get(url, timeout=60).content == content
    assert odd.ranges(digest).count("") == 1


def test_a_token_service_elsewhere_is_not_asked(
    odd: Original, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    """CVE-2026-33540: a realm outside the trust boundary gets neither a login nor a request."""
    with original(realm=f"http://{odd.host}/token") as server:
        digest = server.has(Blob(b"x"))
        config = proxied(tmp_path, server.host)
        trusted = config.read_text().partition("[[")[2].replace('"up"', '"trusted"').replace("models.", "other.")
        config.write_text(f'{config.read_text()}[[{trusted}token-hosts = ["{odd.host}"]\n')
        cache = registry_server(tmp_path / "storage", "--config", str(config))
        answer = httpx.get(f"{cache.url}/v2/up/{repo}/manifests/v1", timeout=60)
        assert (answer.status_code, error_code(answer)) == (502, "UNAVAILABLE")
        assert not [path for _, path, _ in odd.asked if path.startswith("/token")]
        assert PASSWORDS["alice"] not in answer.text + cache.log.read_text()
        assert "names a token service elsewhere" in cache.log.read_text()
        assert httpx.get(f"{cache.url}/v2/trusted/{repo}/blobs/{digest}", timeout=60).content == b"x"
        assert [path for _, path, _ in odd.asked if path.startswith("/token")]


@pytest.mark.s3
def test_over_s3_what_is_held_is_redirected_to(
    odd: Original, s3: S3, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    content = secrets.token_bytes(17 * MIB)
    digest = odd.has(Blob(content))
    cache = registry_server(s3.storage(), "--config", str(proxied(tmp_path, odd.host)), env=s3.env)
    url = f"{cache.url}/v2/up/{repo}/blobs/{digest}"
    assert httpx.get(url, timeout=120).content == content
    held = httpx.get(url, timeout=120)
    assert held.status_code == 307
    assert httpx.get(held.headers["location"], timeout=120).content == content
    assert odd.ranges(digest) == [""]


def test_a_server_that_stops_gives_fetches_up(
    odd: Original, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    digest = odd.has(blob := Blob(secrets.token_bytes(6 * MIB), gated_at=2 * MIB))
    cache = registry_server(tmp_path / "storage", "--config", str(proxied(tmp_path, odd.host)))
    with httpx.stream("GET", f"{cache.url}/v2/up/{repo}/blobs/{digest}") as answer:
        next(answer.iter_raw())
    cache.process.terminate()
    time.sleep(0.2)
    blob.gate.set()
    assert cache.process.wait(timeout=60) == 0

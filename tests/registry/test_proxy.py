"""The pull-through cache in front of a registry of ours, with logins, and in front of servers that misbehave."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from registry.cli import app
from tests.registry.originals import Blob, Original, original
from tests.registry.pushing import (
    INDEX,
    MANIFEST,
    error_code,
    manifest_of,
    push_image,
    put_manifest,
    sha256,
)
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, configure
from tests.registry.servers import S3, RunningRegistry, StartRegistry

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def upstream(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> RunningRegistry:
    """The original, with logins and tokens; not to be killed."""
    folder = tmp_path_factory.mktemp("proxy-upstream")
    return session_registries(folder / "storage", "--config", str(configure(folder, AUTH + TOKEN + RULES)))


@pytest.fixture(scope="module")
def cache(
    upstream: RunningRegistry, session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory
) -> RunningRegistry:
    """The cache in front of it, which asks for a tag each time."""
    folder = tmp_path_factory.mktemp("proxy-cache")
    return session_registries(folder / "storage", "--config", str(proxied(folder, upstream)))


def proxied(folder: Path, upstream: RunningRegistry | str, ttl: str = "1s", more: str = "") -> Path:
    """A configuration of a cache of `upstream` below ``up/``."""
    host = upstream if isinstance(upstream, str) else upstream.host
    (folder / "password").write_text(PASSWORDS["alice"] + "\n")
    file = folder / "proxy.toml"
    file.write_text(
        f'[proxy]\ntag-ttl = "{ttl}"\n{more}\n[[proxy.upstreams]]\nprefix = "up"\nurl = "http://{host}"\n'
        'namespaces = ["models.example.org"]\nusername = "alice"\npassword-file = "password"\n'
    )
    return file


@pytest.fixture
def at(upstream: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=upstream.url, auth=("alice", PASSWORDS["alice"]), timeout=60) as client:
        yield client


@pytest.fixture
def through(cache: RunningRegistry) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cache.url, timeout=60) as client:
        yield client


def eventually(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def is_stored(cache: RunningRegistry, repo: str, digest: str) -> bool:
    algorithm, _, hex_ = digest.partition(":")
    return (Path(cache.storage) / "repos" / repo / "_blobs" / algorithm / hex_).exists()


def test_a_model_comes_through(at: httpx.Client, through: httpx.Client, cache: RunningRegistry, repo: str) -> None:
    layer = secrets.token_bytes(3 * MIB + 17)
    raw = push_image(at, repo, "v1", layer)
    head = through.head(f"/v2/up/{repo}/manifests/v1")
    assert head.headers["docker-content-digest"] == sha256(raw)
    answer = through.get(f"/v2/up/{repo}/manifests/v1")
    assert (answer.content, answer.headers["content-type"]) == (raw, MANIFEST)
    assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw
    head = through.head(f"/v2/up/{repo}/blobs/{sha256(layer)}")
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(layer))
    assert not is_stored(cache, f"up/{repo}", sha256(layer))
    blob = through.get(f"/v2/up/{repo}/blobs/{sha256(layer)}")
    assert blob.content == layer and blob.headers["docker-content-digest"] == sha256(layer)
    assert is_stored(cache, f"up/{repo}", sha256(layer))
    assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'{}')}").content == b"{}"
    assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'absent')}").status_code == 404
    assert through.get(f"/v2/up/{repo}/manifests/absent").status_code == 404
    assert error_code(through.get(f"/v2/up/{repo}/manifests/{sha256(b'absent')}")) == "MANIFEST_UNKNOWN"


def test_lists_and_referrers_are_those_of_the_original(at: httpx.Client, through: httpx.Client, repo: str) -> None:
    raw = push_image(at, repo, "v1")
    push_image(at, repo, "v2", b"two")
    assert through.get(f"/v2/up/{repo}/tags/list").json() == {"name": f"up/{repo}", "tags": ["v1", "v2"]}
    page = through.get(f"/v2/up/{repo}/tags/list?n=1")
    assert page.json()["tags"] == ["v1"]
    link = page.headers["link"].partition(">")[0].strip("<")
    assert through.get(link).json()["tags"] == ["v2"]
    about = {"mediaType": MANIFEST, "digest": sha256(raw), "size": len(raw)}
    notes = [
        push_image(at, repo, None, text, subject=about, artifactType=f"x/{text.decode()}") for text in (b"a", b"b")
    ]
    answer = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}")
    assert answer.headers["content-type"] == INDEX
    assert {item["digest"] for item in answer.json()["manifests"]} == set(map(sha256, notes))
    one = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}?artifactType=x/a")
    assert [item["digest"] for item in one.json()["manifests"]] == [sha256(notes[0])]
    assert through.get(f"/v2/up/{repo}/referrers/{sha256(b'nothing')}").json()["manifests"] == []
    assert through.get("/v2/up/never/was/tags/list").status_code == 404


def test_a_tag_is_asked_for_again_when_its_time_is_over(
    at: httpx.Client,
    through: httpx.Client,
    upstream: RunningRegistry,
    registry_server: StartRegistry,
    repo: str,
    tmp_path: Path,
) -> None:
    patient = registry_server(tmp_path / "patient", "--config", str(proxied(tmp_path, upstream, ttl="1h")))
    old = push_image(at, repo, "latest", b"old")
    for url in (patient.url, str(through.base_url)):
        assert httpx.get(f"{url}/v2/up/{repo}/manifests/latest").content == old
    new = push_image(at, repo, "latest", b"new")
    path = f"/v2/up/{repo}/manifests/latest"
    eventually(lambda: through.get(path).content == new)
    assert httpx.get(f"{patient.url}{path}").content == old
    assert at.delete(f"/v2/{repo}/manifests/latest").status_code == 202
    eventually(lambda: through.get(path).status_code == 404)


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


def test_what_is_held_is_served_while_the_original_is_away(
    registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    first = registry_server(tmp_path / "up/storage")
    with httpx.Client(base_url=first.url) as client:
        raw = push_image(client, repo, "v1", b"held")
        push_image(client, repo, "v2", b"not held")
        about = {"mediaType": MANIFEST, "digest": sha256(raw), "size": len(raw)}
        note = push_image(client, repo, None, b"a note", subject=about)
    cache = registry_server(tmp_path / "storage", "--config", str(proxied(tmp_path, first)))
    with httpx.Client(base_url=cache.url, timeout=60) as through:
        assert through.get(f"/v2/up/{repo}/manifests/v1").content == raw
        assert through.get(f"/v2/up/{repo}/manifests/v1.sig").status_code == 404
        through.get(f"/v2/up/{repo}/blobs/{sha256(b'held')}")
        through.get(f"/v2/up/{repo}/manifests/{sha256(note)}")
        first.kill()
        stale = eventually(lambda: (a := through.get(f"/v2/up/{repo}/manifests/v1")).headers.get("warning") and a)
        assert stale.content == raw and stale.headers["warning"].startswith("110 ")
        assert through.get(f"/v2/up/{repo}/blobs/{sha256(b'held')}").content == b"held"
        assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw
        tags = through.get(f"/v2/up/{repo}/tags/list")
        assert tags.json()["tags"] == ["v1"] and tags.headers["warning"].startswith("110 ")
        referrers = through.get(f"/v2/up/{repo}/referrers/{sha256(raw)}")
        assert [item["digest"] for item in referrers.json()["manifests"]] == [sha256(note)]
        assert referrers.headers["warning"].startswith("110 ")
        # What it had not when it was there, it has not now; of the rest nothing is known.
        assert through.get(f"/v2/up/{repo}/manifests/v1.sig").status_code == 404
        for path in ("manifests/v2", f"blobs/{sha256(b'not held')}", f"manifests/{sha256(b'other')}"):
            away = through.get(f"/v2/up/{repo}/{path}")
            assert (away.status_code, error_code(away)) == (503, "UNAVAILABLE"), path
    assert "is served as it was" in cache.log.read_text()


def test_stale_tags_may_be_refused(registry_server: StartRegistry, repo: str, tmp_path: Path) -> None:
    first = registry_server(tmp_path / "up")
    with httpx.Client(base_url=first.url) as client:
        raw = push_image(client, repo, "v1")
    config = proxied(tmp_path, first, more="serve-stale = false")
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    with httpx.Client(base_url=cache.url, timeout=60) as through:
        assert through.get(f"/v2/up/{repo}/manifests/v1").content == raw
        first.kill()
        eventually(lambda: through.get(f"/v2/up/{repo}/manifests/v1").status_code == 503)
        assert through.get(f"/v2/up/{repo}/manifests/{sha256(raw)}").content == raw


def test_pushes_into_a_copy_are_refused(through: httpx.Client, upstream: RunningRegistry, repo: str) -> None:
    raw = manifest_of([b"x"])
    for answer in (
        through.post(f"/v2/up/{repo}/blobs/uploads/"),
        through.post(f"/v2/up/{repo}/blobs/uploads/", params={"digest": sha256(b"x")}, content=b"x"),
        put_manifest(through, f"up/{repo}", raw, "v1"),
    ):
        assert (answer.status_code, error_code(answer)) == (405, "UNSUPPORTED")
        assert "push there" in answer.json()["errors"][0]["message"]
    push_image(through, repo, "v1")  # what is not below the prefix is the registry's own
    push_image(through, "upper/x", "v1")


def test_containerd_names_the_registry_it_means(at: httpx.Client, through: httpx.Client, repo: str) -> None:
    raw = push_image(at, repo, "v1", b"by namespace")
    ns = {"ns": "models.example.org"}
    assert through.head(f"/v2/{repo}/manifests/v1", params=ns).headers["docker-content-digest"] == sha256(raw)
    assert through.get(f"/v2/{repo}/manifests/{sha256(raw)}", params=ns).content == raw
    assert through.get(f"/v2/{repo}/blobs/{sha256(b'by namespace')}", params=ns).content == b"by namespace"
    assert through.get(f"/v2/{repo}/manifests/v1").status_code == 404
    other = through.get(f"/v2/{repo}/manifests/v1", params={"ns": "elsewhere.example.org"})
    assert (other.status_code, error_code(other)) == (404, "NAME_UNKNOWN")


def test_a_blob_that_was_deleted_is_not_restored_through_another_repository(
    at: httpx.Client, through: httpx.Client, cache: RunningRegistry, repo: str
) -> None:
    """CVE-2026-35172. Other repositories have the bytes; neither they nor the cache bring them back."""
    content = secrets.token_bytes(2000)
    digest = sha256(content)
    push_image(at, repo, "v1", content)
    push_image(through, f"{repo}/own", "v1", content)
    assert through.get(f"/v2/up/{repo}/blobs/{digest}").content == content
    assert through.get(f"/v2/up/{repo}/other/blobs/{digest}").status_code == 404
    assert at.delete(f"/v2/{repo}/blobs/{digest}").status_code == 202
    assert through.delete(f"/v2/up/{repo}/blobs/{digest}").status_code == 202
    assert through.get(f"/v2/up/{repo}/blobs/{digest}").status_code == 404
    assert through.head(f"/v2/up/{repo}/blobs/{digest}").status_code == 404
    assert through.get(f"/v2/{repo}/own/blobs/{digest}").content == content
    assert through.delete(f"/v2/{repo}/own/blobs/{digest}").status_code == 202
    assert through.get(f"/v2/{repo}/own/blobs/{digest}").status_code == 404


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


def test_a_login_that_is_refused_is_said_without_it(
    upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    config = proxied(tmp_path, upstream)
    (tmp_path / "password").write_text("not-the-password")
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    answer = httpx.get(f"{cache.url}/v2/up/{repo}/manifests/v1", timeout=60)
    assert answer.status_code == 502 and "refuses this registry's login" in answer.text
    assert "not-the-password" not in answer.text + cache.log.read_text()


def test_rights_hold_for_copies(
    at: httpx.Client, upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    push_image(at, repo, "v1")
    config = proxied(tmp_path, upstream)
    rules = AUTH + '[[access]]\nprincipals = ["bob"]\nrepositories = ["up/**"]\nrights = ["pull"]\n'
    config.write_text(config.read_text() + configure(tmp_path, rules).read_text())
    cache = registry_server(tmp_path / "storage", "--config", str(config))
    path = f"{cache.url}/v2/up/{repo}/manifests/v1"
    assert httpx.get(path, auth=("bob", PASSWORDS["bob"])).status_code == 200
    assert httpx.get(path).status_code == 401
    assert httpx.get(path, auth=("carol", PASSWORDS["carol"])).status_code == 403
    ns = {"ns": "models.example.org"}
    assert httpx.get(f"{cache.url}/v2/{repo}/manifests/v1", params=ns).status_code == 401


def test_fsck_and_the_collector_know_a_copy(
    at: httpx.Client, upstream: RunningRegistry, registry_server: StartRegistry, repo: str, tmp_path: Path
) -> None:
    push_image(at, repo, "v1")
    cache = registry_server(tmp_path / "storage", "--config", str(proxied(tmp_path, upstream)))
    httpx.get(f"{cache.url}/v2/up/{repo}/manifests/v1")
    done = CliRunner().invoke(app, ["fsck", "--storage", cache.storage, "--json"])
    assert json.loads(done.stdout)["findings"] == []
    for _ in range(2):
        done = CliRunner().invoke(app, ["gc", "--storage", cache.storage, "--grace", "0"])
        assert done.exit_code == 0, done.output
    assert httpx.get(f"{cache.url}/v2/up/{repo}/blobs/{sha256(b'layer')}").content == b"layer"


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

"""A policy that changes while its models run: what it revokes is loaded no more, and stopped where it says so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from artifact.layout import LayoutRepository
from tests.runner.code import make_key, packager
from tests.runner.commands import (
    BIN,
    Serving,
    call,
    chat_request,
    environment,
    error_line,
    free_port,
    is_healthy,
    json_of,
    processes_in,
    wait_until,
)  # fmt: skip

pytestmark = pytest.mark.engine

POLICY = """version: 1
{more}
authorities: {{release: {{key: key.pub}}}}
rules: [{{name: all, match: ["**"], require: {{any-of: [release]}}}}]
"""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, gguf_reference: str) -> Path:
    """A folder with a key and a layout that holds a model signed with it, as v1."""
    root = tmp_path_factory.mktemp("signed")
    make_key(root)
    packager(root, "copy", gguf_reference, f"oci:{root}/layout:v1")
    packager(root, "sign", f"oci:{root}/layout:v1", "--key", str(root / "key.key"))
    return root


@pytest.fixture
def policy(signed: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the policy file anew, as an editor does."""
    (tmp_path / "key.pub").write_bytes((signed / "key.pub").read_bytes())

    def write(more: str = "", *, text: str = "") -> Path:
        path = tmp_path / "policy.yaml"
        path.with_suffix(".new").write_text(text or POLICY.format(more=more))
        path.with_suffix(".new").replace(path)
        return path

    return write


def revoked(signed: Path) -> str:
    digest = LayoutRepository(signed / "layout").resolve("v1").digest
    return f"revoked: {{digests: [{{digest: '{digest}', reason: it leaks}}]}}"


def chat(serving: Serving) -> httpx.Response:
    return httpx.post(f"{serving.url}/v1/chat/completions", json=chat_request(), timeout=90)


def unload(serving: Serving) -> None:
    httpx.post(f"{serving.url}/engines/unload", json={"all": True}, timeout=30).raise_for_status()


def test_a_revoked_model_runs_on_but_is_not_loaded_again(
    serve: Callable[..., Serving], store: Path, signed: Path, policy: Callable[..., Path]
) -> None:
    serving = serve(f"oci:{signed}/layout:v1", "--policy", str(policy())).wait_ready()
    assert chat(serving).status_code == 200

    def detail() -> str:
        (run,) = json_of(call(store, "ps", "--json"))
        return str(run["models"][0]["detail"])

    policy(revoked(signed))
    wait_until(lambda: detail() == "ready, refused by the policy: revoked-digest", 60)
    assert "revoked-digest: it leaks; it runs on" in serving.stderr()
    assert chat(serving).status_code == 200
    unload(serving)
    refused = chat(serving)
    assert refused.status_code == 403
    assert "revoked-digest: it leaks" in refused.json()["error"]["message"]

    policy(text="version: 1\nrules: [")
    unreadable = chat(serving)
    assert unreadable.status_code == 400 and "not valid YAML" in unreadable.json()["error"]["message"]

    policy("mode: enforce")
    assert chat(serving).status_code == 200
    wait_until(lambda: detail() == "ready", 60)


def test_a_revoked_key_stops_what_it_signed(
    serve: Callable[..., Serving], signed: Path, policy: Callable[..., Path]
) -> None:
    serving = serve(f"oci:{signed}/layout:v1", "--policy", str(policy("on-revocation: stop"))).wait_ready()
    assert chat(serving).status_code == 200
    policy("on-revocation: stop\nrevoked: {keys: [{key: key.pub, reason: laptop lost}]}")
    assert serving.process.wait(90) == 3
    assert "laptop lost" in serving.stderr() and "it is stopped" in serving.stderr()


def test_a_model_that_comes_later_is_judged_by_the_policy_as_it_is(
    serve: Callable[..., Serving], store: Path, signed: Path, policy: Callable[..., Path]
) -> None:
    """The runner began under a policy that would have let it."""
    reference = f"oci:{signed}/layout:v1"
    call(store, "pull", reference, "--policy", str(policy()))
    serving = serve("--policy", str(policy())).wait_ready()
    first = httpx.post(f"{serving.url}/models/create", json={"from": reference}, timeout=60)
    assert "error" not in first.text.lower(), first.text
    policy(revoked(signed))
    refused = chat(serving)
    assert (refused.status_code, "revoked-digest" in refused.text) == (403, True)


def test_a_revoked_model_is_stopped_when_nobody_reads_what_is_said(
    store: Path, signed: Path, policy: Callable[..., Path], echo_engine: tuple[str, ...]
) -> None:
    """As under a terminal, a pager or a shipper of logs that has gone away."""
    address = f"127.0.0.1:{free_port()}"
    options = ("--policy", str(policy("on-revocation: stop")), "--listen", address, *echo_engine)
    reader, writer = os.pipe()
    command = [str(BIN / "runner"), "serve", f"oci:{signed}/layout:v1", *options]
    with subprocess.Popen(command, env=environment(store), stdout=subprocess.DEVNULL, stderr=writer) as process:
        wait_until(lambda: is_healthy(f"http://{address}"), 60)
        for end in (reader, writer):
            os.close(end)
        policy(f"on-revocation: stop\n{revoked(signed)}")
        try:
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert not processes_in(store)


def test_the_policy_of_the_environment_is_kept_for_the_next_start(
    serve: Callable[..., Serving],
    store: Path,
    signed: Path,
    policy: Callable[..., Path],
    echo_engine: tuple[str, ...],
    tmp_path: Path,
) -> None:
    file, other = policy(), tmp_path / "other.yaml"
    first = serve(f"oci:{signed}/layout:v1", *echo_engine, STOWAGE_POLICY=file.name).wait_ready()
    first.stop()
    policy(revoked(signed))
    address = ("--listen", f"127.0.0.1:{first.port}")
    assert "revoked-digest" in error_line(call(store, "serve", *address, status=3))

    other.write_text("version: 1\nrules: [{name: all, match: ['**'], require: nothing}]\n")
    stated = serve(*address, "--policy", str(other), STOWAGE_POLICY=str(file))
    wait_until(lambda: is_healthy(first.url), 60)
    assert f"{other} decides from now on, no longer {file}" in stated.stderr()
    stated.stop()
    told = call(store, "serve", *address, status=3, STOWAGE_POLICY=str(file))
    assert f"{file} decides from now on, no longer {other}" in told.stderr

"""What an audit remembers: nothing is fetched twice, and one that was broken off goes on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.remote import RemoteRepository
from supplychain.attest import attest
from supplychain.keys import PrivateKey
from supplychain.predicate import SCAN
from supplychain.sign import sign
from supplychain.statement import COSIGN_SIGN, Statement
from tests.artifact.conftest import Exchange
from tests.registry.servers import RunningRegistry, StartRegistry
from tests.supplychain.audit.conftest import Audit, Ran
from tests.supplychain.audit.zoo import attach, push, sign_legacy

Command = Callable[..., subprocess.Popen[str]]


def requests(ran: Ran) -> int:
    match = re.search(r"(\d+) requests", ran.err)
    assert match is not None, ran.err
    return int(match[1])


@pytest.fixture(scope="module")
def storage(
    session_registries: StartRegistry, keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Twenty-four artifacts in four repositories, signed in both forms."""
    folder = tmp_path_factory.mktemp("many")
    running = session_registries(folder / "storage")
    for number in range(4):
        repository = RemoteRepository(running.host, f"many/model-{number}")
        for tag in range(6):
            subject = push(repository, f"{number} {tag}".encode(), f"v{tag}")
            attach(repository, subject, keys["release"], COSIGN_SIGN)
            sign_legacy(repository, subject, keys["release"])
    running.kill()
    return folder / "storage"


@pytest.fixture
def server(registry_server: StartRegistry, storage: Path, tmp_path: Path) -> RunningRegistry:
    """A registry of one's own with those."""
    shutil.copytree(storage, tmp_path / "storage")
    return registry_server(tmp_path / "storage")


def test_what_has_not_changed_is_not_fetched_again(
    server: RunningRegistry, audit: Audit, policy: Path, tmp_path: Path, keys: dict[str, PrivateKey]
) -> None:
    arguments = (server.host, "--state", tmp_path / "state")
    first = audit(*arguments)
    assert {record["status"] for record in first.records} == {"signed"}
    assert not any(record["reused"] for record in first.records)

    second = audit(*arguments)
    # One for the catalog, one list of tags each, and for each artifact its tag, its referrers and its .sig tag.
    assert requests(second) == 1 + 4 + 3 * 24
    assert all(record["reused"] for record in second.records) and "24 unchanged" in second.err
    assert _without_reuse(second) == _without_reuse(first)

    other = policy.with_name("strict.yaml")
    other.write_text(policy.read_text().replace("any-of: [release, security]", "all-of: [release, security]"))
    third = audit(*arguments, "--policy", other)
    assert requests(third) == requests(second), "another policy decides anew and fetches nothing"
    assert {record["code"] for record in third.records} == {"insufficient-signatures"}

    repository = RemoteRepository(server.host, "many/model-2")
    subject = repository.resolve("v3")
    attest(repository, subject, Statement.about(subject.digest, SCAN, {"verdict": "ok"}), keys["security"])
    moved = push(repository, b"moved", "v4")
    fourth = audit(*arguments)
    changed = {record["reference"]: record for record in fourth.records if not record["reused"]}
    assert len(changed) == 2 and len(fourth.records) == 25  # what v4 was has no tag now, but its signatures do
    by_tag = fourth.by_tag("many/model-2")
    assert by_tag["v3"]["attestations"][0]["code"] == "valid-attestation"
    assert (by_tag["v4"]["digest"], by_tag["v4"]["status"]) == (str(moved.digest), "unsigned")
    assert by_tag[None]["status"] == "signed"


def _without_reuse(ran: Ran) -> list[dict[str, object]]:
    records = [{key: value for key, value in record.items() if key != "reused"} for record in ran.records]
    return sorted(records, key=lambda record: record["reference"])


def test_a_signature_that_went_away_is_not_remembered(
    kept: RunningRegistry, audit: Audit, tmp_path: Path, keys: dict[str, PrivateKey]
) -> None:
    repository = RemoteRepository(kept.host, "gone/model")
    subject = push(repository, b"weights", "v1")
    written = sign(repository, subject, keys["release"])
    arguments = (f"{kept.host}/gone/model", "--state", tmp_path / "state")
    assert audit(*arguments).records[0]["status"] == "signed"
    for descriptor in written:
        repository.delete_manifest(descriptor.digest)
    assert audit(*arguments).records[0]["status"] == "unsigned"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_audit_goes_on(
    server: RunningRegistry, audit: Audit, command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    state = tmp_path / "state"
    process = command(server.host, "--output", "jsonl", "--state", state, "--rate", "40", "--concurrency", "2")
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(8)]
    assert all(json.loads(line)["status"] == "signed" for line in seen)
    # What it remembers is made to last once a second: wait until it must have been.
    before = state.stat().st_mtime_ns
    while state.stat().st_mtime_ns == before:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0

    whole = audit(server.host, "--state", tmp_path / "another")
    resumed = audit(server.host, "--state", state)
    assert "going on with the audit that was broken off" in resumed.err
    assert len(resumed.records) == 24, "all of it is in the output, what was done before too"
    assert requests(resumed) < requests(whole) - 3 * 4
    again = audit(server.host, "--state", state)
    assert "going on" not in again.err
    assert requests(again) == 1 + 4 + 3 * 24


def test_a_network_that_is_lost(server: RunningRegistry, audit: Audit, command: Command, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = command(
        server.host, "--output", f"prometheus={tmp_path}/audit.prom", "--output", "jsonl", "--state", state,
        "--rate", "60", "--concurrency", "2",
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    server.kill()
    rest, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "given up after" in said and f"run it again with --state {state}" in said
    lost = [json.loads(line) for line in rest.splitlines() if '"broken"' in line]
    assert lost and all((item["code"], item["incomplete"]) == ("unreachable", True) for item in lost)
    assert "stowage_audit_complete 0.0" in (tmp_path / "audit.prom").read_text(), "what there is, is there"


def test_the_state_of_something_else(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and longer than a hundred bytes" * 10)
    assert "is not the state of an audit" in audit("127.0.0.1:1", "--state", tmp_path / "text", status=2).err
    with sqlite3.connect(tmp_path / "foreign") as database:
        database.execute("CREATE TABLE things(name)")
    assert "is not the state of an audit" in audit("127.0.0.1:1", "--state", tmp_path / "foreign", status=2).err


def test_two_audits_do_not_share_a_state(
    audit: Audit, command: Command, tmp_path: Path, serve: Callable[..., object]
) -> None:
    asked: list[str] = []

    def hang(exchange: Exchange) -> None:
        asked.append(exchange.path)
        time.sleep(60)

    slow = serve(hang)
    process = command(slow.host, "--state", tmp_path / "state")
    try:
        deadline = time.monotonic() + 60
        while not asked:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        assert "in use by another audit" in audit(slow.host, "--state", tmp_path / "state", status=2).err
    finally:
        process.kill()
        process.communicate(timeout=60)

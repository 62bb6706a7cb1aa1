"""The forms results come in, read by other people's programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from prometheus_client.parser import text_string_to_metric_families

from artifact.remote import RemoteRepository
from tests.registry.servers import ROOT, RunningRegistry
from tests.supplychain.audit.conftest import Audit
from tests.supplychain.audit.zoo import NAME, Zoo, push

SCHEMA_PACKAGE, SCHEMA_VERSION, SCHEMA_FILE = "sarif-om", "1.0.4", "sarif-2.1.0-rtm.4.json"


@pytest.fixture(scope="session")
def sarif_schema() -> dict[str, Any]:
    """SARIF's own schema, which travels in the sources of Microsoft's object model; fetched once."""
    folder = Path(os.environ.get("STOWAGE_TEST_CACHE", ROOT / ".cache")) / "sarif"
    path = folder / SCHEMA_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"{SCHEMA_PACKAGE}=={SCHEMA_VERSION}"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *wanted], capture_output=True, text=True, timeout=200
        )
        archives = sorted(folder.glob("sarif*.tar.gz"))
        if done.returncode or not archives:
            pytest.skip(f"{SCHEMA_PACKAGE} cannot be fetched: SARIF IS NOT VALIDATED: {done.stderr[-300:]}")
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(f"sarif_om-{SCHEMA_VERSION}/{SCHEMA_FILE}")
            assert member is not None
            path.write_bytes(member.read())
    return json.loads(path.read_bytes())


def test_sarif_is_valid_and_has_a_result_for_what_is_not_in_order(
    zoo: Zoo, audit: Audit, sarif_schema: dict[str, Any]
) -> None:
    log = json.loads(audit(zoo.host, output="sarif").out)
    Draft4Validator(sarif_schema).validate(log)
    broken = json.loads(json.dumps(log))
    broken["runs"][0]["results"][0]["level"] = "catastrophe"
    assert not Draft4Validator(sarif_schema).is_valid(broken), "the schema would not notice"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    found = {}
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        found[result["properties"]["tag"]] = (result["ruleId"], result["level"])
    assert found["invalid"] == ("invalid-signature", "error")
    assert found["unsigned"] == ("unsigned", "error")
    assert "signed" not in found
    assert len(run["results"]) == 10
    assert len({result["partialFingerprints"]["artifact/v1"] for result in run["results"]}) == 10
    assert run["invocations"][0]["executionSuccessful"] is True


def test_sarif_of_nothing_and_of_what_only_warns(
    kept: RunningRegistry, audit: Audit, policy: Path, sarif_schema: dict[str, Any]
) -> None:
    repository = RemoteRepository(kept.host, "warned/model")
    push(repository, b"weights", "v1")
    other = policy.with_name("warning.yaml")
    other.write_text(policy.read_text().replace("version: 1", "version: 1\nmode: warn"))
    free = policy.with_name("free.yaml")
    free.write_text('version: 1\nrules: [{match: ["**"], require: nothing}]\n')
    for arguments, status, levels in (
        ((f"{kept.host}/warned/none/*",), 1, []),
        ((f"{kept.host}/warned/model", "--policy", other), 0, ["warning"]),
        ((f"{kept.host}/warned/model", "--policy", free), 0, ["note"]),
    ):
        log = json.loads(audit(*arguments, output="sarif", status=status).out)
        Draft4Validator(sarif_schema).validate(log)
        assert [result["level"] for result in log["runs"][0]["results"]] == levels


def test_a_prometheus_textfile(zoo: Zoo, audit: Audit, tmp_path: Path) -> None:
    path = tmp_path / "audit.prom"
    path.write_text("the one before")
    audit(zoo.host, output=f"prometheus={path}")
    samples = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "registry"}
            samples[sample.name, *sorted(labels.values())] = sample.value
    assert samples["stowage_audit_artifacts", "signed"] == 7
    assert samples["stowage_audit_artifacts", "broken"] == 0, "what there is none of is said, for alerts"
    assert samples["stowage_audit_verdicts", "allowed", "allowed"] == 7
    assert samples["stowage_audit_verdicts", "invalid-signature", "refused"] == 1
    assert samples["stowage_audit_refused", NAME] == 10
    assert samples["stowage_audit_complete",] == 1
    assert samples["stowage_audit_repositories",] == 1
    assert samples["stowage_audit_requests",] > 17
    assert [item.name for item in tmp_path.iterdir() if "audit.prom" in item.name] == ["audit.prom"]


def test_several_outputs_of_one_walk(zoo: Zoo, audit: Audit, tmp_path: Path) -> None:
    ran = audit(
        zoo.host, "--output", f"jsonl={tmp_path}/a.jsonl", "--output", f"sarif={tmp_path}/a.sarif", output="table"
    )
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(records) == 17
    json.loads((tmp_path / "a.sarif").read_text())
    lines = ran.out.splitlines()
    assert lines[0].split() == ["STATUS", "VERDICT", "CODE", "REFERENCE"]
    assert len(lines) == 18, "no more than a line for each: nothing here is a terminal"
    (signed,) = [line for line in lines if f"{NAME}:legacy-only@" in line]
    assert signed.split()[:3] == ["signed", "allowed", "allowed"] and signed.endswith("(signed by release)")
    assert "\x1b" not in ran.out and "\x1b" not in ran.err


def test_json_is_json_lines(zoo: Zoo, audit: Audit, tmp_path: Path) -> None:
    ran = audit(zoo.host, "--json", output=f"table={tmp_path}/table")
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert len(records) == 17 and all(record["reference"].startswith(zoo.host) for record in records)
    assert (tmp_path / "table").read_text().startswith("STATUS")


def test_a_bad_policy_is_told_before_anything_is_written() -> None:
    command = [sys.executable, "-c", "from registry.cli import main; main()", "audit", "127.0.0.1:1", "--json"]
    done = subprocess.run([*command, "--policy", "/dev/null"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_on_a_terminal_it_shows_how_far_it_is(zoo: Zoo, policy: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", "from registry.cli import main; main()", "audit", zoo.host, "--policy", policy]
    env = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "240", "LINES": "50"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # so a terminal says that nobody writes to it any more
            while data := os.read(ours, 65536):
                said += data
        assert process.wait(100) == 0
    os.close(ours)
    text = said.decode()
    assert "\x1b[" in text and "repositories done" in text, "the line that says how far it is"
    assert f"{NAME}:signed@" in text and "Audited" in text

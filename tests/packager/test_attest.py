"""`packager attest`, and what `packager pack --sign` says about what it made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2

from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.reference import Reference
from artifact.version import __version__
from packager.attestations import Packing, scan_of
from packager.description import SPDX, from_checkpoint, from_gguf
from packager.pack import Options
from packager.source import open_source
from supplychain.attest import attestations
from supplychain.attestation import Attestation
from supplychain.bom import SPDX_IDS
from supplychain.keys import PublicKey
from supplychain.policy import Policy
from supplychain.predicate import CYCLONEDX, PROVENANCE, SCAN
from supplychain.provenance import Provenance
from supplychain.verify import verify
from tests.packager.conftest import attached

TAG = "95K-BF16-safetensors"
GGUF_TAG = "95K-F16"
CDX = "application/vnd.cyclonedx+json"


@pytest.fixture
def key(packager, tmp_path: Path) -> Path:
    packager.ok("keygen", tmp_path / "release")
    return tmp_path / "release.key"


def read(tmp_path: Path, place: Path, tag: str) -> tuple[LayoutRepository, Digest, list[Attestation]]:
    repository = LayoutRepository(place)
    subject = repository.resolve(tag).digest
    return repository, subject, attestations(repository, subject, [PublicKey.load(str(tmp_path / "release.pub"))])


def predicates(tmp_path: Path, place: Path, tag: str) -> dict[str, dict[str, Any]]:
    _, _, found = read(tmp_path, place, tag)
    assert all(item.valid for item in found)
    value = {item.predicate_type: dict(item.statement.predicate) for item in found if item.statement}
    assert len(value) == len(found)
    return value


def digest_of(path: Path) -> dict[str, str]:
    return {"sha256": Digest.of(path.read_bytes()).hex}


def test_pack_attests_what_it_packed(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    repository, subject, _ = read(tmp_path, tmp_path / "out", TAG)
    said = predicates(tmp_path, tmp_path / "out", TAG)
    assert list(said) == [PROVENANCE, CYCLONEDX, SCAN]

    made = said[PROVENANCE]
    ParseDict(made, provenance_pb2.Provenance())
    definition = made["buildDefinition"]
    assert definition["buildType"] == "https://stowage.dev/buildtypes/pack/v1"
    assert definition["externalParameters"] == {
        "source": "local",
        "format": "safetensors",
        "precision": "BF16",
        "layout": "modelpack",
        "created": "1970-01-01T00:00:00Z",
        "allowedFindings": [],
    }
    assert definition["internalParameters"] == {"tools": {"stowage": __version__}}
    files = sorted(path.name for path in tiny.iterdir())
    assert {item["name"]: item["digest"] for item in definition["resolvedDependencies"]} == {
        name: digest_of(tiny / name) for name in files
    }
    assert made["runDetails"] == {
        "builder": {"id": "https://stowage.dev/builders/packager/v1", "version": {"stowage": __version__}}
    }

    bill = said[CYCLONEDX]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": subject.hex}]
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert bill["metadata"]["component"]["modelCard"]["modelParameters"]["task"] == "text-generation"
    manifest = Manifest.parse(repository.manifest(subject)[1])
    assert [item["hashes"][0]["content"] for item in bill["components"]] == [
        item.digest.hex for item in manifest.layers
    ]

    assert said[SCAN]["verdict"] == "pass"
    assert said[SCAN]["scanner"] == {"uri": "https://stowage.dev/packager", "version": __version__}
    assert "pickle" in said[SCAN]["checks"]


def test_the_bill_is_there_without_a_signature_too(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    repository, subject, _ = read(tmp_path, tmp_path / "out", TAG)
    (found,) = repository.referrers(subject, CDX)
    manifest = Manifest.parse(repository.manifest(found.digest)[1])
    assert (manifest.artifact_type, [layer.media_type for layer in manifest.layers]) == (CDX, [CDX])
    assert (
        json.loads(repository.read_blob(manifest.layers[0])) == predicates(tmp_path, tmp_path / "out", TAG)[CYCLONEDX]
    )


def test_pack_attests_what_it_converted(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    packager.ok(
        "pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf", "--precision", "fp16", "--sign", key,
        "--created", "2026-01-02T04:04:05+01:00", "--builder", "https://ci.example/1",
    )  # fmt: skip
    said = predicates(tmp_path, tmp_path / "out", GGUF_TAG)
    definition = said[PROVENANCE]["buildDefinition"]
    assert definition["buildType"] == "https://stowage.dev/buildtypes/convert/v1"
    assert definition["externalParameters"]["precision"] == "F16"
    assert definition["externalParameters"]["format"] == "gguf"
    assert definition["internalParameters"]["tools"].keys() == {"stowage", "numpy"}
    named = {item["name"]: item["digest"] for item in definition["resolvedDependencies"]}
    assert named == {path.name: digest_of(path) for path in tiny.iterdir()}
    assert said[PROVENANCE]["runDetails"]["builder"]["id"] == "https://ci.example/1"
    assert said[PROVENANCE]["runDetails"]["metadata"] == {"finishedOn": "2026-01-02T03:04:05Z"}
    assert said[CYCLONEDX]["metadata"]["timestamp"] == "2026-01-02T03:04:05Z"
    assert said[CYCLONEDX]["components"][0]["name"].endswith("-F16.gguf")


def test_a_gguf_file_is_its_own_source(packager, tiny_gguf: Path, tmp_path: Path, key: Path) -> None:
    packager.ok("pack", tiny_gguf, f"oci:{tmp_path}/out", "--sign", key, "--layout", "docker")
    said = predicates(tmp_path, tmp_path / "out", GGUF_TAG)
    definition = said[PROVENANCE]["buildDefinition"]
    assert definition["resolvedDependencies"] == [{"name": tiny_gguf.name, "digest": digest_of(tiny_gguf)}]
    assert definition["externalParameters"]["layout"] == "docker"
    component = said[CYCLONEDX]["metadata"]["component"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(said[CYCLONEDX])) is None
    assert component["modelCard"]["modelParameters"]["modelArchitecture"] == "llama"
    # Docker's config has neither: they come from the checkpoint.
    assert component["name"] == "Tiny"
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]


def test_the_provenance_is_enough_to_pack_again(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    (tiny / "modeling.py").write_text("1")
    line = packager.ok(
        "pack", tiny, f"oci:{tmp_path}/out", "--sign", key, "--allow", "python-code", "--file-filter", "!*.md",
        "--format", "safetensors", "--created", "2026-01-02T03:04:05Z",
    )  # fmt: skip
    made = Provenance.parse(predicates(tmp_path, tmp_path / "out", TAG)[PROVENANCE])
    assert made.allowed == ("python-code",)
    assert made.file_filter == ("!*.md",)
    options = ["--format", made.format, "--precision", made.precision, "--layout", made.layout]
    options += ["--created", made.created]
    options += [word for glob in made.file_filter for word in ("--file-filter", glob)]
    options += [word for code in made.allowed for word in ("--allow", code)]
    again = packager.ok("pack", tiny, f"oci:{tmp_path}/again", *options)
    assert again.rpartition("@")[2] == line.rpartition("@")[2]
    assert {item.path: {"sha256": item.digest.hex} for item in made.files} == {
        path.name: digest_of(path) for path in tiny.iterdir() if path.suffix != ".md"
    }


def test_a_conversion_reads_only_what_the_filter_leaves(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    out = f"oci:{tmp_path}/out"
    arguments = ("--format", "gguf", "--precision", "F16", "--sign", key)
    line = packager.ok("pack", tiny, out, *arguments, "--file-filter", "!README.md", "--file-filter", "!generation*")
    made = Provenance.parse(predicates(tmp_path, tmp_path / "out", GGUF_TAG)[PROVENANCE])
    left_out = {"README.md", "generation_config.json"}
    assert {item.path for item in made.files} == {path.name for path in tiny.iterdir()} - left_out
    for name in left_out:
        (tiny / name).unlink()
    assert packager.ok("pack", tiny, out, *arguments) == line  # the licence of the model card is in neither


def test_allowed_findings_are_named(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    (tiny / "modeling.py").write_text("1")
    (tiny / "notes.xyz").write_text("1")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key, "--allow", "python-code", "--allow", "auto-map")
    said = predicates(tmp_path, tmp_path / "out", TAG)
    assert said[SCAN]["verdict"] == "allowed"
    found = [(item["code"], item["severity"], item["path"], item["allowed"]) for item in said[SCAN]["findings"]]
    assert sorted(found) == [
        ("file-skipped", "info", "notes.xyz", False),
        ("python-code", "error", "modeling.py", True),
    ]
    assert said[PROVENANCE]["buildDefinition"]["externalParameters"]["allowedFindings"] == ["auto-map", "python-code"]


def test_a_scan_without_permission_fails(tiny: Path) -> None:
    (tiny / "modeling.py").write_text("1")
    checkpoint = open_source(str(tiny))
    assert scan_of(Packing(checkpoint, Options())).verdict == "fail"
    assert scan_of(Packing(checkpoint, Options(allowed=frozenset({"auto-map"})))).verdict == "fail"
    assert scan_of(Packing(checkpoint, Options(allowed=frozenset({"python-code"})))).verdict == "allowed"


def test_nothing_of_this_machine_is_published(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key, "--format", "gguf", "--precision", "F16")
    text = json.dumps(predicates(tmp_path, tmp_path / "out", GGUF_TAG))
    assert str(tmp_path) not in text and tmp_path.name not in text


def test_the_same_pack_says_the_same_and_adds_nothing(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    for place in ("a", "b", "a"):
        packager.ok("pack", tiny, f"oci:{tmp_path}/{place}", "--sign", key)
    assert predicates(tmp_path, tmp_path / "a", TAG) == predicates(tmp_path, tmp_path / "b", TAG)
    for place in ("a", "b"):
        repository, subject, _ = read(tmp_path, tmp_path / place, TAG)
        assert len(attached(repository, subject)) == 5


def test_source_date_epoch(packager, tiny: Path, tmp_path: Path, key: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    monkeypatch.setenv("STOWAGE_BUILDER", "https://ci.example/2")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    details = predicates(tmp_path, tmp_path / "out", TAG)[PROVENANCE]["runDetails"]
    assert details["metadata"] == {"finishedOn": "1970-01-02T00:00:00Z"}
    assert details["builder"]["id"] == "https://ci.example/2"


def test_without_a_key_nothing_is_attested(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    repository = LayoutRepository(tmp_path / "out")
    assert attached(repository, repository.resolve(TAG).digest) == []


def test_a_builder_that_is_no_uri_stops_it_before_anything_is_packed(
    packager, tiny: Path, tmp_path: Path, key: Path
) -> None:
    assert "--builder" in packager.fails(2, "pack", tiny, "tiny", "--sign", key, "--builder", "my laptop")
    assert packager.stored == []


@pytest.mark.parametrize("meddle", [lambda path: path.write_text("{}"), lambda path: path.unlink()])
def test_a_source_that_changes_while_it_is_converted_is_not_vouched_for(
    packager, tiny: Path, tmp_path: Path, key: Path, monkeypatch, meddle: Callable[[Path], object]
) -> None:
    from packager import pack_command

    pack = pack_command.pack

    def meddled(*args: Any, **kwargs: Any) -> Any:
        result = pack(*args, **kwargs)
        meddle(tiny / "generation_config.json")
        return result

    monkeypatch.setattr(pack_command, "pack", meddled)
    message = packager.fails(
        1, "pack", tiny, f"oci:{tmp_path}/out", "--sign", key, "--format", "gguf", "--precision", "F16"
    )
    assert "generation_config.json" in message and "changed" in message
    repository = LayoutRepository(tmp_path / "out")
    assert attached(repository, repository.resolve(GGUF_TAG).digest) == []


def test_a_policy_can_require_all_of_it(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        """
version: 1
authorities: {release: {key: release.pub}}
rules:
  - match: ["**"]
    require: {any-of: [release]}
    attestations:
      - type: slsaprovenance1
        conditions:
          - builder: "https://stowage.dev/builders/packager/v1"
          - precision: {one-of: [BF16, F16]}
          - path: /buildDefinition/externalParameters/source
            equals: local
      - type: cyclonedx
        conditions:
          - license: {one-of: [Apache-2.0, MIT]}
      - type: scan
        which: every
        conditions:
          - verdict: pass
"""
    )
    reference = Reference.parse(line)
    repository = LayoutRepository(tmp_path / "out")
    decision = verify(repository, reference, repository.resolve(TAG), Policy.load(policy))
    assert decision.allowed, decision.reason
    policy.write_text(policy.read_text().replace("[Apache-2.0, MIT]", "[MIT]"))
    decision = verify(repository, reference, repository.resolve(TAG), Policy.load(policy))
    assert (decision.code, "license is 'Apache-2.0'" in decision.reason) == ("attestation-condition", True)


def test_attest(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    (tmp_path / "said.json").write_text('{"by": "someone", "n": 1}')
    arguments = ("--predicate", tmp_path / "said.json", "--key", key)
    assert packager.ok("attest", line, "--type", "https://example.com/reviewed/v1", *arguments) == line
    assert packager.ok("attest", line, "--type", "https://example.com/reviewed/v1", *arguments) == line
    assert packager.ok("attest", f"oci:{tmp_path}/out:{TAG}", "--type", "spdx", *arguments) == line
    assert predicates(tmp_path, tmp_path / "out", TAG) == {
        "https://example.com/reviewed/v1": {"by": "someone", "n": 1},
        "https://spdx.dev/Document": {"by": "someone", "n": 1},
    }
    result = packager("attest", line, "--type", "slsaprovenance1", *arguments)
    assert result.status == 0 and "slsaprovenance1" in result.stderr


def oversized(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10**12)  # sparse: is not read to its end


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "JSON object"),
        ("", "not valid JSON"),
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": "\\ud800"}', "JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (oversized, "larger than"),
        (lambda path: path.mkdir(), "cannot read predicate"),
        (lambda path: None, "cannot read predicate"),
    ],
)
def test_a_predicate_that_is_none(
    packager, tiny: Path, tmp_path: Path, key: Path, content: str | bytes | Callable[[Path], None], message: str
) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    path = tmp_path / "said.json"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in packager.fails(2, "attest", line, "--type", "spdx", "--predicate", path, "--key", key)
    repository = LayoutRepository(tmp_path / "out")
    assert attached(repository, repository.resolve(TAG).digest) == []


def test_other_mistakes(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    said = tmp_path / "said.json"
    said.write_text("{}")
    usual = ("--predicate", said, "--key", key)
    assert "not a predicate type" in packager.fails(2, "attest", line, "--type", "sbom", *usual)
    sign_type = "https://sigstore.dev/cosign/sign/v1"
    assert "type of a signature" in packager.fails(2, "attest", line, "--type", sign_type, *usual)
    arguments = ("--type", "spdx", "--predicate", said, "--key", tmp_path / "release.pub")
    assert "public key" in packager.fails(2, "attest", line, *arguments)
    assert "missing" in packager.fails(1, "attest", f"oci:{tmp_path}/out:missing", "--type", "spdx", *usual)
    assert packager("attest", line, "--type", "spdx", "--predicate", said).status == 2


def test_attestations_travel_with_their_artifact(packager, tiny: Path, tmp_path: Path, key: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", key)
    packager.ok("copy", line, f"oci:{tmp_path}/there:{TAG}", "--all-referrers")
    assert predicates(tmp_path, tmp_path / "there", TAG) == predicates(tmp_path, tmp_path / "out", TAG)


def test_attestations_in_a_registry(packager, tiny: Path, tmp_path: Path, key: Path, registry_server) -> None:
    running = registry_server(tmp_path / "storage")
    line = packager.ok("pack", tiny, f"{running.host}/acme/tiny", "--push", "--sign", key)
    assert packager.ok("pack", tiny, f"{running.host}/acme/tiny", "--push", "--sign", key) == line
    reference = Reference.parse(line)
    repository = open_repository(reference)
    assert reference.digest is not None
    found = attestations(repository, reference.digest, [PublicKey.load(str(tmp_path / "release.pub"))])
    assert sorted(item.predicate_type for item in found if item.valid) == sorted([PROVENANCE, CYCLONEDX, SCAN])
    assert len(attached(repository, reference.digest)) == 5


def test_every_licence_the_packager_knows_is_one_to_the_bill() -> None:
    assert {name for name in SPDX.values() if not name.startswith("LicenseRef-")} <= SPDX_IDS


def test_task_and_datasets_of_a_model_card() -> None:
    card = "---\npipeline_tag: text-generation\ndatasets:\n- a/b\n- a/b\n- 7\n- c\n---\n"
    description = from_checkpoint({}, card)
    assert (description.task, description.datasets) == ("text-generation", ("a/b", "c"))
    assert from_checkpoint({}, "---\ndatasets: one\npipeline_tag: [x]\n---\n").datasets == ("one",)
    assert from_checkpoint({}, "---\ndatasets: {a: b}\n---\n").datasets == ()
    assert from_gguf({"general.datasets": ("a", "b")}).datasets == ("a", "b")

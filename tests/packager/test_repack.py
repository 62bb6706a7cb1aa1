"""An artifact as the source of another: laid out anew or converted, without fetching what is not needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.source import bytes_source
from packager.rebuild import provenance_of
from tests.packager.conftest import manifest_of


def test_a_new_layout_moves_no_weights(packager, tiny_gguf: Path, tmp_path: Path, registry_server, opened) -> None:
    host = registry_server(tmp_path / "storage").host
    line = packager.ok("pack", tiny_gguf, f"{host}/acme/model", "--push")
    packager.ok("keygen", tmp_path / "release")
    key = tmp_path / "release.key"
    opened.clear()
    again = packager.ok("pack", line, f"{host}/acme/docker", "--push", "--layout", "docker", "--sign", key)
    reference = Reference.parse(again)
    manifest = Manifest.parse(open_repository(reference).manifest(reference.digest)[1])
    weights, before = manifest.layers[0], Reference.parse(line)
    assert weights.media_type == "application/vnd.docker.ai.gguf.v3"
    assert [offset for digest, offset in opened if digest == str(weights.digest)] == [0]  # once, for the header
    assert packager.stored == []
    # The same as if it had been packed from the file.
    direct = packager.ok("pack", tiny_gguf, f"oci:{tmp_path}/direct", "--layout", "docker")
    assert direct.rpartition("@")[2] == again.rpartition("@")[2]
    made = provenance_of(open_repository(reference), reference.digest)
    assert (made.source, made.revision) == (f"{host}/acme/model", str(before.digest))
    dependency = made.to_predicate()["buildDefinition"]["resolvedDependencies"][0]
    assert dependency == {"uri": f"oci://{host}/acme/model", "digest": {"sha256": before.digest.hex}}
    result = packager("verify", again, "--rebuild")
    assert result.status == 0 and result.last == again, result.stderr


def test_a_packed_checkpoint_is_converted(packager, tiny: Path, tmp_path: Path, registry_server) -> None:
    host = registry_server(tmp_path / "storage").host
    line = packager.ok("pack", tiny, f"{host}/acme/model", "--push")
    convert = ("--format", "gguf", "--precision", "Q8_0")
    direct = packager.ok("pack", tiny, f"oci:{tmp_path}/direct", *convert)
    shutil.rmtree(tiny)
    again = packager.ok("pack", line, f"{host}/acme/model", "--push", *convert)
    assert again.rpartition("@")[2] == direct.rpartition("@")[2]
    assert again.startswith(f"{host}/acme/model:95K-Q8_0@")


def test_a_layout_is_a_source_too_and_the_filter_applies(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/first")
    source = f"oci:{tmp_path}/first:95K-BF16-safetensors"
    packager.ok("pack", source, f"oci:{tmp_path}/second", "--file-filter", "!README.md")
    paths = [
        layer.annotations["org.cncf.model.filepath"]
        for layer in manifest_of(tmp_path / "second", "95K-BF16-safetensors").layers
    ]
    assert "README.md" not in paths and "config.json" in paths
    assert "no tag" in packager.fails(1, "pack", f"oci:{tmp_path}/first:other", "tiny")


def test_another_tools_order_of_weight_files_makes_no_difference(packager, tiny: Path, tmp_path: Path) -> None:
    """Without an index of its own, and its weights listed from the last to the first."""
    tag = "95K-BF16-safetensors"
    (tiny / "model.safetensors.index.json").unlink()
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/first")
    repository, manifest = LayoutRepository(tmp_path / "first"), manifest_of(tmp_path / "first", tag)
    layers = (manifest.layers[1], manifest.layers[0], *manifest.layers[2:])
    config = json.loads(repository.read_blob(manifest.config))
    config["modelfs"]["diffIds"] = [str(layer.digest) for layer in layers]
    raw = json.dumps(config).encode()
    described = Descriptor.of(raw, manifest.config.media_type)
    repository.push_blob(described, bytes_source(raw), Quiet())
    annotations = {key: value for key, value in manifest.annotations.items() if key != mediatypes.INDEX}
    other = replace(manifest, layers=layers, config=described, annotations=annotations)
    repository.push_manifest(other.to_bytes(), other.media_type, "other")

    again = packager.ok("pack", f"oci:{tmp_path}/first:other", f"oci:{tmp_path}/second")
    assert again.rpartition("@")[2] == line.rpartition("@")[2]
    packager.ok("pack", f"oci:{tmp_path}/first:other", f"oci:{tmp_path}/third", "--format", "gguf")
    assert packager("inspect", f"oci:{tmp_path}/first:other", "--deep").status == 0

"""Quantised artifacts as a user makes and sees them."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from artifact import mediatypes
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from packager.quantize.imatrix import Activations, write_imatrix
from packager.quantize.interpreter import VARIABLE
from tests.packager.conftest import manifest_of
from tests.packager.gguf_files import write_projector

engine = pytest.mark.engine
_ONES = (np.ones((1, 3), np.float32), np.ones(1, np.float32))
slowly = pytest.mark.timeout(3600)


def provenance(layout: Path, subject: Digest) -> dict:
    repository = LayoutRepository(layout)
    for descriptor in repository.referrers(subject):
        for layer in Manifest.parse(repository.manifest(descriptor.digest)[1]).layers:
            document = json.loads(repository.read_blob(layer))
            payload = document.get("dsseEnvelope", {}).get("payload", "")
            statement = json.loads(base64.b64decode(payload)) if payload else {}
            if "buildDefinition" in statement.get("predicate", {}):
                return statement["predicate"]["buildDefinition"]
    raise AssertionError("no provenance")


@engine
@slowly
def test_a_checkpoint_is_quantised(packager, pinned, wide, tmp_path):
    packager.ok("keygen", tmp_path / "key")
    line = packager.ok(
        "pack", wide, f"oci:{tmp_path}/out", "--format", "gguf", "--precision", "q4_k_m", "--sign", tmp_path / "key.key"
    )
    tag, _, digest = line.removeprefix(f"oci:{tmp_path}/out:").partition("@")
    assert tag.endswith("-Q4_K_M")
    manifest = manifest_of(tmp_path / "out", tag)
    assert manifest.layers[0].annotations[mediatypes.FILEPATH] == "Tiny-Q4_K_M.gguf"
    shares = manifest.annotations[mediatypes.TENSOR_TYPES]
    assert shares.startswith("Q4_K ") and "Q6_K " in shares and shares.endswith("%")
    built = provenance(tmp_path / "out", Digest.parse(digest))
    assert built["buildType"].endswith("/quantize/v1")
    tools = built["internalParameters"]["tools"]
    assert tools["llama-cpp-python"] == "0.3.36" and tools["llama.cpp-libraries"].startswith("sha256:")
    assert packager.ok("verify", f"oci:{tmp_path}/out:{tag}", "--rebuild", "--source", wide).endswith(digest)


@engine
@slowly
def test_a_gguf_file_is_quantised(packager, pinned, wide, wide_gguf, tmp_path):
    """With the same weights as the checkpoint it came from; a model card it has none."""
    packager.ok("pack", wide, f"oci:{tmp_path}/a:v1", "--format", "gguf", "--precision", "Q5_K_M")
    packager.ok("pack", wide_gguf, f"oci:{tmp_path}/b:v1", "--precision", "Q5_K_M")
    assert manifest_of(tmp_path / "a", "v1").layers[0].digest == manifest_of(tmp_path / "b", "v1").layers[0].digest


@engine
@slowly
def test_with_a_matrix(packager, pinned, wide, tmp_path):
    (tmp_path / "text.txt").write_text("the capital of france " * 60)
    matrix = tmp_path / "matrix.gguf"
    packager.ok("imatrix", wide, "--text", tmp_path / "text.txt", "-o", matrix, "--chunk-size", "64")
    packager.ok("keygen", tmp_path / "key")
    options = ("--format", "gguf", "--precision", "IQ2_XXS", "--imatrix", matrix, "--sign", tmp_path / "key.key")
    digest = packager.ok("pack", wide, f"oci:{tmp_path}/out:v1", *options).rpartition("@")[2]
    manifest = manifest_of(tmp_path / "out", "v1")
    assert manifest.annotations[mediatypes.IMATRIX] == str(Digest.of(matrix.read_bytes()))
    built = provenance(tmp_path / "out", Digest.parse(digest))
    assert built["externalParameters"]["imatrix"] == "imatrix/matrix.gguf"
    hexadecimal = {item["name"]: item["digest"]["sha256"] for item in built["resolvedDependencies"]}
    assert hexadecimal["imatrix/matrix.gguf"] == Digest.of(matrix.read_bytes()).hex


@engine
@slowly
def test_what_fell_back_is_called_what_it_is(packager, pinned, tiny, tmp_path):
    result = packager("pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf", "--precision", "Q4_K_M")
    assert result.status == 0
    assert "warning: asked for Q4_K_M, the tensors came out as Q5_0" in result.stderr
    assert "95K-Q5_0@" in result.last
    manifest = manifest_of(tmp_path / "out", "95K-Q5_0")
    assert manifest.layers[0].annotations[mediatypes.FILEPATH] == "Tiny-Q5_0.gguf"
    assert manifest.annotations[mediatypes.TENSOR_TYPES].startswith("Q5_0 ")
    told = packager.fails(
        1, "pack", tiny, f"oci:{tmp_path}/out:95K-Q4_K_M", "--format", "gguf", "--precision", "Q4_K_M"
    )
    assert "the bytes are Q5_0" in told


@engine
@slowly
def test_quantising_twice_is_refused_unless_allowed_and_recorded(packager, pinned, wide_gguf, tmp_path):
    packager.ok("pack", wide_gguf, f"oci:{tmp_path}/out:once", "--precision", "Q8_0")
    again = f"oci:{tmp_path}/out:once"
    told = packager.fails(1, "pack", again, f"oci:{tmp_path}/out:twice", "--precision", "Q4_K_M")
    assert "[requantized]" in told and "--allow requantized" in told
    packager.ok("keygen", tmp_path / "key")
    options = ("--precision", "Q4_K_M", "--allow", "requantized", "--sign", tmp_path / "key.key")
    digest = packager.ok("pack", again, f"oci:{tmp_path}/out:twice", *options).rpartition("@")[2]
    built = provenance(tmp_path / "out", Digest.parse(digest))
    assert built["externalParameters"]["allowedFindings"] == ["requantized"]


def options_of(matrix: Path) -> dict[str, tuple[tuple[object, ...], int, str]]:
    made = ("--format", "gguf", "--precision")
    return {
        "an unknown type": ((*made, "Q9_K"), 2, "no such type"),
        "a matrix is needed": ((*made, "IQ1_S"), 2, "packager imatrix"),
        "a matrix is of no use": ((*made, "Q8_0", "--imatrix", matrix), 2, "makes no difference"),
        "no such matrix": ((*made, "Q4_K_M", "--imatrix", "/nowhere"), 1, "no such file"),
        "no quantiser": ((*made, "Q4_K_M"), 1, VARIABLE),
        "no interpreter": ((*made, "Q4_K_M", "--quantizer", matrix), 2, "neither a Python interpreter"),
        "nothing is made": (("--imatrix", matrix), 2, "packed as it is"),
        "a size without a unit": ((*made, "F16", "--split-max-size", "17"), 2, "500M"),
    }


@pytest.mark.parametrize("name", options_of(Path()))
def test_what_cannot_be_is_said_before_any_work(packager, tiny, tmp_path, monkeypatch, name):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("packager.quantize.interpreter.find_spec", lambda name: None)
    matrix = tmp_path / "matrix.gguf"
    write_imatrix(matrix, {"blk.0.ffn_up.weight": Activations(*_ONES)}, 1, 16, "text")
    options, status, reason = options_of(matrix)[name]
    assert reason in packager.fails(status, "pack", tiny, "tiny", *options)
    assert packager.stored == []


@engine
@slowly
def test_the_matrix_of_another_model_is_refused(packager, pinned, wide, tmp_path):
    matrix = tmp_path / "matrix.gguf"
    for entry, reason in (("blk.99.ffn_up.weight", "none of its entries"), ("blk.0.ffn_up.weight", "another model")):
        write_imatrix(matrix, {entry: Activations(*_ONES)}, 1, 16, "text")
        options = ("--format", "gguf", "--precision", "Q4_K_M", "--imatrix", matrix)
        assert reason in packager.fails(1, "pack", wide, "wide", *options)
    assert packager.stored == []


@engine
@slowly
def test_a_projector_comes_along_as_it_is(packager, pinned, wide_gguf, tmp_path):
    folder = tmp_path / "seeing"
    folder.mkdir()
    shutil.copy(wide_gguf, folder / "model.gguf")
    projector = write_projector(folder / "mmproj-model-f16.gguf")
    packager.ok("pack", folder, f"oci:{tmp_path}/out:v1", "--precision", "Q4_K_M")
    layers = manifest_of(tmp_path / "out", "v1").layers
    digests = {layer.annotations[mediatypes.FILEPATH]: layer.digest for layer in layers}
    assert digests["mmproj-model-f16.gguf"] == Digest.of(projector.read_bytes())
    assert [path for path in digests if path.endswith("Q4_K_M.gguf")]


@engine
@slowly
def test_a_rebuild_by_another_library_says_so(packager, pinned, wide, tmp_path, monkeypatch):
    """What differs is told with what may be the reason: here another tensor type, and a library that was another."""
    from packager import attestations

    there = {"llama-cpp-python": "0.0.1", "llama.cpp-libraries": "sha256:" + "0" * 64}
    monkeypatch.setattr(attestations, "tools_of", lambda *_: there)
    packager.ok("keygen", tmp_path / "key")
    options = ("--format", "gguf", "--precision", "Q5_0", "--sign", tmp_path / "key.key")
    line = packager.ok("pack", wide, f"oci:{tmp_path}/out", *options)
    # The same bytes from another library are as good as from the same.
    assert packager.ok("verify", line, "--rebuild", "--source", wide, "--quantizer", pinned) == line
    other = Path(shutil.copytree(wide, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    message = packager.fails(3, "verify", line, "--rebuild", "--source", other)
    assert "the source has other bytes: config.json" in message
    assert "it was made with other programs: llama-cpp-python 0.0.1, here 0.3.36" in message

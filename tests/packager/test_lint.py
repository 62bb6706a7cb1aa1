"""Every finding has a code that stays, a severity, and a checkpoint that shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.weights.gguf import read_header as read_gguf
from artifact.weights.safetensors import read_header
from packager.findings import RULES
from supplychain.attest import attestations
from supplychain.keys import PublicKey
from supplychain.predicate import PROVENANCE, SCAN

SHARD = "model-00002-of-00002.safetensors"
TAG = "95K-BF16-safetensors"


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


def overwrite(folder: Path, name: str, data: bytes | None, other: str = "") -> None:
    """Put `data`, or the bytes of the tensor `other`, where the tensor `name` begins; for None zeros all over."""
    tensors = {tensor.name: tensor for tensor in read_header(folder / SHARD).tensors}
    tensor = tensors[name]
    with (folder / SHARD).open("r+b") as stream:
        if other:
            stream.seek(tensors[other].offset)
            data = stream.read(tensors[other].length)
        stream.seek(tensor.offset)
        stream.write(bytes(tensor.length) if data is None else data)


def without(path: Path, key: str) -> None:
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))


UP, GATE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
NAN_BF16 = b"\xc0\x7f"

CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pickle": ("error", lambda f: (f / "pytorch_model.bin").write_bytes(b"PK")),
    "python-code": ("error", lambda f: (f / "modeling.py").write_text("1")),
    "auto-map": ("error", lambda f: edit(f / "config.json", auto_map={"AutoModel": "m.M"})),
    "template-unsafe": ("error", lambda f: edit(f / "tokenizer_config.json", chat_template="{{ x.__class__ }}")),
    "template-differs": ("warning", lambda f: (f / "chat_template.jinja").write_text("{{ messages }}")),
    "chat-template-missing": ("warning", lambda f: without(f / "tokenizer_config.json", "chat_template")),
    "tokenizer-missing": ("warning", lambda f: (f / "tokenizer.json").unlink()),
    "license-missing": ("warning", lambda f: (f / "README.md").unlink()),
    "context-length": ("warning", lambda f: edit(f / "tokenizer_config.json", model_max_length=9999)),
    "index-incomplete": ("warning", lambda f: incomplete(f / "model.safetensors.index.json")),
    "file-skipped": ("info", lambda f: (f / "image.png").write_bytes(b"")),
    "tensor-nonfinite": ("error", lambda f: overwrite(f, UP, NAN_BF16)),
    "tensor-zero": ("warning", lambda f: overwrite(f, UP, None)),
    "tensor-duplicate": ("warning", lambda f: overwrite(f, UP, b"", other=GATE)),
}
ELSEWHERE = {
    "tag-mismatch": "test_an_artifact_is_held_to_what_it_says",
    "unreadable": "test_an_artifact_that_could_not_be_packed_again_is_still_shown",
    "file-type-mismatch": "test_findings_in_gguf",
    "requantized": "tests of quantisation",
    "index-missing": "tests of the tensor index",
}


def incomplete(path: Path) -> None:
    value = json.loads(path.read_text())
    value["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(value))


def card(packager, *args: str | Path) -> dict:
    result = packager("inspect", *args, "--json")
    assert result.status == 0, result.stderr
    return json.loads(result.stdout)


def test_every_code_is_shown_and_documented() -> None:
    assert CASES.keys() | ELSEWHERE.keys() == RULES.keys()
    page = (Path(__file__).parents[2] / "docs" / "packager.md").read_text(encoding="utf-8")
    assert [code for code in RULES if f"`{code}`" not in page] == []


@pytest.mark.parametrize("code", CASES)
def test_findings(packager, tiny: Path, code: str) -> None:
    assert card(packager, tiny, "--deep")["findings"] == []
    severity, spoil = CASES[code]
    spoil(tiny)
    found = card(packager, tiny, "--deep")["findings"]
    assert [(item["code"], item["severity"]) for item in found] == [(code, severity)]
    shallow = card(packager, tiny)["findings"]
    assert shallow == (found if RULES[code].at_pack else [])
    if RULES[code].at_pack:
        assert packager("pack", tiny, "tiny").status == (1 if severity == "error" else 0)


@pytest.mark.parametrize("code", ["tensor-nonfinite", "tensor-zero", "tensor-duplicate"])
def test_weights_in_an_artifact(packager, tiny: Path, tmp_path: Path, code: str) -> None:
    CASES[code][1](tiny)
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    found = card(packager, f"oci:{tmp_path}/out:{TAG}", "--deep")["findings"]
    assert [item["code"] for item in found] == [code] and found[0]["path"] == SHARD


@pytest.mark.parametrize("precision", ["F32", "F16", "Q8_0"])
def test_numbers_that_are_none_in_every_type(packager, tiny: Path, tmp_path: Path, precision: str) -> None:
    from artifact.progress import Quiet
    from packager.convert import convert

    path = convert(tiny, precision, tmp_path / "model.gguf", Quiet()).path
    assert [item["code"] for item in card(packager, path, "--deep")["findings"]] == []
    tensor = next(item for item in read_gguf(path).tensors if item.name == "blk.1.ffn_up.weight")
    infinite = {"F32": b"\x00\x00\x80\xff", "F16": b"\x00\x7c", "Q8_0": b"\x00\x7c"}[precision]
    unit = {"F32": 4, "F16": 2, "Q8_0": 34}[precision]
    with path.open("r+b") as stream:
        stream.seek(tensor.offset + 3 * unit)
        stream.write(infinite)
    (found,) = card(packager, path, "--deep")["findings"]
    assert found["code"] == "tensor-nonfinite" and "blk.1.ffn_up.weight: 1 " in found["message"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_scales_are_where_they_are_looked_for(kind: str) -> None:
    from packager.deep import _counter

    type_ = gguf.GGMLQuantizationType[kind]
    count, size = _counter(kind)
    assert count is not None and size == gguf.GGML_QUANT_SIZES[type_][1]
    blocks = np.zeros((4, size), dtype=np.uint8)
    assert count(blocks.reshape(-1)) == 0
    for at in range(0, size, 2):
        spoilt = blocks.copy()
        spoilt[2, at : at + 2] = (0x00, 0x7E)  # no number, if it is a scale
        finite = bool(np.isfinite(gguf.quants.dequantize(spoilt, type_)).all())
        assert (count(spoilt.reshape(-1)) == 0) is finite, at


@given(
    st.binary(max_size=400), st.lists(st.integers(1, 60), max_size=20), st.sampled_from(["BF16", "F64", "Q8_0", "Q3_K"])
)
def test_pieces_of_any_length_count_the_same(raw: bytes, lengths: list[int], dtype: str) -> None:
    from packager.deep import _counter, _Seen

    count, unit = _counter(dtype)
    assert count is not None
    raw = raw[: len(raw) // unit * unit]
    seen, start = _Seen(count, unit), 0
    for length in [*lengths, len(raw)]:
        seen.see(memoryview(raw[start : start + length]))
        start += length
    assert seen.bad == count(np.frombuffer(raw, np.uint8)) and seen.zero is not any(raw)


def test_findings_in_gguf(packager, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(7)
    writer.add_context_length(512)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_bos_token_id(1)
    writer.add_tensor("a", np.ones((8, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    codes = {item["code"] for item in card(packager, path)["findings"]}
    assert codes == {
        "file-type-mismatch", "context-length", "tokenizer-missing", "chat-template-missing", "license-missing",
    }  # fmt: skip


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
def test_every_template_in_gguf_is_looked_through(packager, tmp_path: Path, beside: bool) -> None:
    """An engine may be told to take any of them, and one beside the model does not do away with those inside."""
    folder = tmp_path / "model"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_chat_template([
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ ''.__class__ }}"},
    ])  # fmt: skip
    writer.add_tensor("a", np.ones((8, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if beside:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = [item for item in card(packager, folder)["findings"] if item["code"] == "template-unsafe"]
    assert [item["path"] for item in found] == ["m.gguf"]
    assert "[template-unsafe]" in packager.fails(1, "pack", folder, "tiny")


def repackaged(place: Path, **annotations: str) -> None:
    repository = LayoutRepository(place)
    manifest = Manifest.parse(repository.manifest(TAG)[1])
    stated = {**manifest.annotations, **{f"dev.stowage.{key}": value for key, value in annotations.items()}}
    changed = Manifest(manifest.config, manifest.layers, manifest.artifact_type, annotations=stated)
    repository.push_manifest(changed.to_bytes(), changed.media_type, "changed")


def test_an_artifact_is_held_to_what_it_says(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    repackaged(tmp_path / "out", parameters="7000000000", **{"context-length": "4096"})
    found = card(packager, f"oci:{tmp_path}/out:changed")["findings"]
    assert sorted(item["code"] for item in found) == ["context-length", "tag-mismatch"]
    assert "states parameters 7000000000, the bytes are 94528" in str(found)


def test_an_artifact_shows_the_findings_of_its_files(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "README.md").unlink()
    (tiny / "modeling.py").write_text("1")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--allow", "python-code")
    found = card(packager, f"oci:{tmp_path}/out:{TAG}")["findings"]
    assert {item["code"] for item in found} == {"python-code", "license-missing"}


def test_an_artifact_that_could_not_be_packed_again_is_still_shown(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    repository = LayoutRepository(tmp_path / "out")
    manifest = Manifest.parse(repository.manifest(TAG)[1])
    weights = [layer for layer in manifest.layers if layer.media_type.endswith("weight.v1.raw")]
    from artifact import mediatypes
    from artifact.descriptor import Descriptor
    from artifact.modelconfig import ModelConfig
    from artifact.progress import Quiet
    from artifact.source import bytes_source

    raw = ModelConfig("safetensors", "BF16", 94528).to_bytes(weights)
    config = Descriptor.of(raw, mediatypes.MODEL_CONFIG)
    repository.push_blob(config, bytes_source(raw), Quiet())
    bare = Manifest(config, tuple(weights), mediatypes.MODEL_MANIFEST)
    repository.push_manifest(bare.to_bytes(), bare.media_type, "bare")
    shown = card(packager, f"oci:{tmp_path}/out:bare")
    assert [item["code"] for item in shown["findings"]] == ["unreadable"]
    assert shown["parameters"] == 94528


def test_what_was_allowed_is_recorded(packager, tiny: Path, tmp_path: Path) -> None:
    CASES["auto-map"][1](tiny)
    packager.ok("keygen", tmp_path / "release")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--allow", "auto-map", "--sign", tmp_path / "release.key")
    repository = LayoutRepository(tmp_path / "out")
    keys = [PublicKey.load(str(tmp_path / "release.pub"))]
    said = {
        item.predicate_type: item.statement.predicate
        for item in attestations(repository, repository.resolve(TAG).digest, keys)
        if item.statement
    }
    assert said[PROVENANCE]["buildDefinition"]["externalParameters"]["allowedFindings"] == ["auto-map"]
    assert [(item["code"], item["allowed"]) for item in said[SCAN]["findings"]] == [("auto-map", True)]
    assert "tensor-zero" not in said[SCAN]["checks"]  # nobody looked


def test_the_card(packager, tiny: Path, tmp_path: Path, registry_server, opened: list[tuple[str, int]]) -> None:
    host = registry_server(tmp_path / "storage").host
    line = packager.ok("pack", tiny, f"{host}/acme/tiny", "--push")
    opened.clear()
    shown = packager("inspect", line).stdout
    for part in ("Tiny", "llama", "94,528 in 20 tensors", "BF16 (safetensors)", "256 tokens", "Apache-2.0", "█", SHARD):
        assert part in shown, shown
    weights = {str(layer.digest) for layer in remote_manifest(line).layers if "weight.v1" in layer.media_type}
    assert [(digest, offset) for digest, offset in opened if digest in weights and offset] == []
    found = card(packager, line)
    here = card(packager, tiny)
    assert {key: found[key] for key in ("architecture", "parameters", "shares", "tensors", "findings", "licenses")} == {
        key: here[key] for key in ("architecture", "parameters", "shares", "tensors", "findings", "licenses")
    }


def remote_manifest(line: str) -> Manifest:
    from artifact.locate import open_repository
    from artifact.reference import Reference

    reference = Reference.parse(line)
    assert reference.digest is not None
    return Manifest.parse(open_repository(reference).manifest(reference.digest)[1])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "model_index.json").write_text("{}"), "a diffusers pipeline"),
        (lambda f: edit(f / "config.json", quantization={"group_size": 64, "bits": 4}), "quantised for MLX"),
        (lambda f: shutil.move(f / "config.json", f / "params.json"), "no config.json"),
    ],
    ids=["diffusers", "mlx", "no config"],
)
def test_what_is_no_checkpoint_is_said_with_the_reason(packager, tiny: Path, spoil: Callable, told: str) -> None:
    spoil(tiny)
    for command in (("inspect", tiny), ("pack", tiny, "tiny"), ("diff", tiny, tiny)):
        assert told in packager.fails(1, *command)

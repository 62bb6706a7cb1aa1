"""Bad input: one line that says what and where, the contract's exit status, and nothing left in the store."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact import mediatypes
from tests.packager.conftest import manifest_of

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


TWO = [{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lie(folder: Path) -> None:
    path = folder / SHARD
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"][1] += 2
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def drop_from_shard(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.7.ghost.weight"] = SHARD
    (folder / INDEX).write_text(json.dumps(index))


def only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def swap_template(folder: Path, template: object) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a checkpoint": (lambda f: (f / "config.json").unlink(), "not a checkpoint: it has no config.json"),
    "missing shard": (lambda f: (f / SHARD).unlink(), f"shard {SHARD} is missing"),
    "missing shard, no index": (lambda f: [(f / SHARD).unlink(), (f / INDEX).unlink()], f"shard {SHARD} is missing"),
    "shard that is a folder": (lambda f: [(f / SHARD).unlink(), (f / SHARD).mkdir()], f"shard {SHARD} is missing"),
    "lying offsets": (lie, SHARD),
    "truncated shard": (lambda f: os.truncate(f / SHARD, 5000), SHARD),
    "empty shard": (lambda f: os.truncate(f / SHARD, 0), SHARD),
    "index names a tensor that is not there": (drop_from_shard, "ghost"),
    "index leads out of the folder": (
        lambda f: (f / INDEX).write_text('{"weight_map":{"a":"../x.safetensors"}}'), "not the name of a safetensors",
    ),
    "index is not JSON": (lambda f: (f / INDEX).write_text("{"), "not valid JSON"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b"PK\x03\x04"), "[pickle]"),
    "only pickles": (only_pickles, "only pickles (pytorch_model.bin)"),
    "pickle under another name": (lambda f: (f / "vocab.txt").write_bytes(b"\x80\x04\x95"), "vocab.txt"),
    "auto_map": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "m.M"}), "[auto-map]"),
    "auto_map in the tokenizer's": (lambda f: edit(f / "tokenizer_config.json", auto_map={"A": ["t.T"]}), "[auto-map]"),
    "auto_map inside": (lambda f: edit(f / "config.json", text_config={"auto_map": {"A": "m.M"}}), "[auto-map]"),
    "python": (lambda f: (f / "modeling.py").write_text("1"), "modeling.py"),
    "unsafe template": (lambda f: swap_template(f, "{{ ''.__class__.__mro__ }}"), "[template-unsafe]"),
    "unsafe named template": (
        lambda f: swap_template(f, [*TWO, {"name": "tool", "template": "{{ x|attr('y') }}"}]),
        "[template-unsafe]",
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "template with half a character": (lambda f: swap_template(f, "\ud800"), "config.json has half a character"),
    "config with a key twice": (lambda f: (f / "config.json").write_text('{"a":1,"a":2}'), "config.json"),
    "diffusers": (lambda f: (f / "model_index.json").write_text("{}"), "diffusers"),
    "mlx": (lambda f: edit(f / "config.json", quantization={"group_size": 64, "bits": 4}), "MLX"),
    "adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "adapter"),
    "link out of the folder": (lambda f: (f / "vocab.txt").symlink_to("/etc/hostname"), "leaves the checkpoint"),
    "dangling link": (lambda f: (f / "vocab.txt").symlink_to("nowhere"), "does not exist"),
    "pipe": (lambda f: os.mkfifo(f / "vocab.txt"), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "told"), CASES.values(), ids=CASES.keys())
@pytest.mark.timeout(60)
def test_a_bad_checkpoint_is_refused(packager, tiny: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(tiny)
    assert told in packager.fails(1, "pack", tiny, "tiny")
    assert packager.stored == []


@pytest.mark.parametrize(
    "tag", ["95K-F16-safetensors", "95K-BF16", "7B-BF16-safetensors", "95K-Q4_K_M", "95K-BF16-gguf"]
)
def test_a_tag_that_disagrees_with_the_bytes_is_refused(packager, tiny: Path, tag: str) -> None:
    message = packager.fails(1, "pack", tiny, f"tiny:{tag}")
    assert tag in message and "95K-BF16-safetensors" in message and "--allow" not in message
    assert packager.stored == []


def test_a_tag_is_checked_before_a_conversion(packager, tiny: Path, monkeypatch) -> None:
    monkeypatch.setattr("packager.convert.convert", lambda *_: pytest.fail("converted in vain"))
    message = packager.fails(1, "pack", tiny, "tiny:95K-Q8_0", "--format", "gguf", "--precision", "F16")
    assert "says Q8_0, the bytes are F16" in message


def test_a_precision_that_is_not_the_bytes_is_refused(packager, tiny: Path, tiny_gguf: Path) -> None:
    assert "--format gguf --precision F16 would convert" in packager.fails(
        1, "pack", tiny, "tiny", "--precision", "F16"
    )
    assert "stays GGUF" in packager.fails(2, "pack", tiny_gguf, "tiny", "--format", "safetensors")
    assert packager.stored == []


def test_every_refusal_names_what_would_allow_it_and_some_cannot_be(packager, tiny: Path) -> None:
    (tiny / "modeling.py").write_text("1")
    (tiny / "model.pkl").write_bytes(b"\x80\x02.")
    message = packager.fails(1, "pack", tiny, "tiny")
    assert "(--allow python-code packs it all the same)" in message
    assert "[pickle]" in packager.fails(1, "pack", tiny, "tiny", "--allow", "python-code")
    assert "cannot be allowed" in packager.fails(2, "pack", tiny, "tiny", "--allow", "pickle")
    assert "no such finding" in packager.fails(2, "pack", tiny, "tiny", "--allow", "everything")
    assert packager.stored == []


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("nowhere", "tiny"), 1, "no such file or folder"),
        (("{tiny}", "UPPER"), 2, "not a repository name"),
        (("{tiny}", "tiny@sha256:" + "0" * 64), 2, "a pack makes a digest"),
        (("{tiny}", "tiny", "--push"), 2, "--push needs a registry"),
        (("{tiny}/config.json", "tiny"), 1, "not a checkpoint"),
        (("{tiny}/model-00001-of-00002.safetensors", "tiny"), 1, "give the folder"),
        (("hf://only-one-part", "tiny"), 2, "not a hub model"),
        (("hf://a/b@../../x", "tiny"), 2, "not a hub model"),
        (("{tiny}", "tiny", "--sign", "{tiny}/missing.key"), 2, "missing.key"),
        (("{tiny}", "tiny", "--format", "gguf", "--precision", "Q9_9"), 2, "Q9_9"),
    ],
)
def test_wrong_arguments(packager, tiny: Path, args: tuple[str, ...], status: int, told: str) -> None:
    assert told in packager.fails(status, "pack", *(arg.format(tiny=tiny) for arg in args))
    assert packager.stored == []


def test_links_of_a_hub_cache_into_its_blobs_are_followed(packager, tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--org--tiny"
    snapshot, blobs = cache / "snapshots" / ("0" * 40), cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    packager.ok("pack", snapshot, "tiny")
    (snapshot / "vocab.txt").symlink_to("../../refs")
    (cache / "refs").write_text("x")
    assert "leaves the checkpoint" in packager.fails(1, "pack", snapshot, "tiny")


def test_contradictions_are_said_and_packed(packager, tiny: Path) -> None:
    edit(tiny / "tokenizer_config.json", model_max_length=9999)
    index = json.loads((tiny / INDEX).read_text())
    index["weight_map"].pop("model.norm.weight")
    (tiny / INDEX).write_text(json.dumps(index))
    result = packager("pack", tiny, "tiny")
    assert result.status == 0
    assert "[context-length]" in result.stderr and "[index-incomplete]" in result.stderr


def test_weights_of_a_module_are_not_left_out_in_silence(packager, tiny: Path) -> None:
    (tiny / "modules.json").write_text('[{"idx":0,"path":""},{"idx":1,"path":"2_Dense"}]')
    (tiny / "2_Dense").mkdir()
    (tiny / "2_Dense" / "model.safetensors").write_bytes(b"")
    assert "2_Dense/model.safetensors" in packager.fails(1, "pack", tiny, "tiny")


def test_a_json_file_may_be_a_list_but_not_name_code(packager, tiny: Path) -> None:
    (tiny / "labels.json").write_text('["a", {"b": 1}]')
    packager.ok("pack", tiny, "tiny")
    (tiny / "labels.json").write_text('["a", {"auto_map": {"A": "m.M"}}]')
    assert "[auto-map]" in packager.fails(1, "pack", tiny, "tiny")


def test_numbers_that_json_does_not_have_are_packed_as_they_are(packager, tiny: Path, tmp_path: Path) -> None:
    """Python's own writer writes them: configs of published models have them, and what a trainer leaves behind."""
    (tiny / "trainer_state.json").write_text('{"log_history": [{"loss": NaN, "best": -Infinity}]}')
    edit(tiny / "config.json", time_step_limit=[0.0, float("inf")])
    packager.ok("pack", tiny, f"oci:{tmp_path}/out:v1")
    manifest = manifest_of(tmp_path / "out", "v1")
    kept = {layer.annotations[mediatypes.FILEPATH]: layer.digest for layer in manifest.layers}
    assert kept["config.json"].matches((tiny / "config.json").read_bytes())
    packager.ok("pack", f"oci:{tmp_path}/out:v1", f"oci:{tmp_path}/out:v2", "--format", "gguf")
    edit(tiny / "config.json", rms_norm_eps=float("nan"))
    told = packager.fails(1, "pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf")
    assert "rms_norm_eps must be a number above zero, not nan" in told


@pytest.mark.parametrize("architectures", [5, "LlamaForCausalLM", {"a": 1}, [None, 7], None])
def test_architectures_that_are_no_names(packager, tiny: Path, architectures: object) -> None:
    edit(tiny / "config.json", architectures=architectures)
    edit(tiny / "tokenizer_config.json", chat_template=None)
    packager.ok("pack", tiny, "tiny")


@pytest.mark.parametrize("name", ["MODEL.GGUF", "model.Gguf"])
def test_a_name_in_capitals_is_one_that_no_engine_finds(packager, tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tiny_gguf, folder / name)
    for source in (folder, folder / name):
        assert f"rename it to {name[:-5]}.gguf" in packager.fails(2, "pack", source, "tiny")


def test_a_filter_that_would_do_nothing(packager, tiny: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    assert "add --deep" in packager.fails(2, "inspect", line, "--file-filter", "!README.md")
    assert packager("inspect", line, "--file-filter", "!README.md", "--deep").status == 0


def test_a_list_of_modules_is_a_small_file_of_the_checkpoint(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "modules.json").write_bytes(b"[" + b" " * 2**20 + b"]")
    assert "modules.json is larger" in packager.fails(1, "pack", tiny, "tiny")
    (tiny / "modules.json").unlink()
    (tmp_path / "outside.json").write_text("[]")
    (tiny / "modules.json").symlink_to(tmp_path / "outside.json")
    assert "leaves the checkpoint" in packager.fails(1, "pack", tiny, "tiny")

"""Packing, as a user sees it: what is in the artifact, what it is called, and that it is the same every time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from artifact import mediatypes
from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig
from artifact.weights.precision import Facts
from packager import convert
from packager.pack import Options, conversion_precision, converts
from packager.source import open_path
from tests.packager.gguf_files import write_shards

TAG = "95K-BF16-safetensors"


def read(layout: Path, tag: str) -> tuple[Manifest, dict]:
    repository = LayoutRepository(layout)
    descriptor, raw = repository.manifest(tag)
    manifest = Manifest.parse(raw, descriptor.media_type)
    config = repository.read_blob(manifest.config)
    ModelConfig.read(manifest, config)
    return manifest, json.loads(config)


def paths(manifest: Manifest) -> list[str]:
    return [layer.annotations["org.cncf.model.filepath"] for layer in manifest.layers]


def test_a_checkpoint_becomes_a_modelpack_artifact(packager, tiny: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    manifest, config = read(tmp_path / "out", TAG)
    assert line == f"oci:{tmp_path}/out:{TAG}@{Digest.of(manifest.to_bytes())}"
    assert manifest.media_type == "application/vnd.oci.image.manifest.v1+json"
    assert manifest.artifact_type == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
    assert paths(manifest) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat_template.jinja", "config.json",
        "generation_config.json", "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json", "README.md",
    ]  # fmt: skip
    assert [layer.media_type for layer in manifest.layers] == [
        *["application/vnd.cncf.model.weight.v1.raw"] * 2,
        *["application/vnd.cncf.model.weight.config.v1.raw"] * 7,
        "application/vnd.cncf.model.doc.v1.raw",
    ]
    for layer, path in zip(manifest.layers, paths(manifest), strict=True):
        assert dict(layer.annotations) == {
            "org.cncf.model.filepath": path,
            "org.cncf.model.file.metadata+json": (
                f'{{"name":"{path}","mode":420,"uid":0,"gid":0,"size":{layer.size},'
                '"mtime":"1970-01-01T00:00:00Z","typeflag":0}'
            ),
            "org.cncf.model.file.mediatype.untested": "false",
            "org.opencontainers.image.title": path,
        }
        if path != "chat_template.jinja":
            assert layer.digest == Digest.of((tiny / path).read_bytes())
    assert config == {
        "descriptor": {
            "createdAt": "1970-01-01T00:00:00Z", "family": "llama", "name": "Tiny", "licenses": ["Apache-2.0"],
        },
        "config": {
            "architecture": "transformer", "format": "safetensors", "paramSize": "95K", "precision": "bfloat16",
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in manifest.layers]},
    }  # fmt: skip
    assert manifest.annotations == {
        "dev.stowage.format": "safetensors",
        "dev.stowage.precision": "BF16",
        "dev.stowage.parameters": "94528",
        "dev.stowage.architecture": "llama",
        "dev.stowage.context-length": "256",
        "dev.stowage.index": manifest.annotations["dev.stowage.index"],
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
        "org.opencontainers.image.licenses": "Apache-2.0",
    }


def test_the_template_of_the_tokenizer_becomes_the_one_jinja_file(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    repository = LayoutRepository(tmp_path / "out")
    manifest, _ = read(tmp_path / "out", TAG)
    (template,) = [layer for layer in manifest.layers if layer.annotations[mediatypes.TITLE].endswith(".jinja")]
    stated = json.loads((tiny / "tokenizer_config.json").read_text())["chat_template"]
    assert repository.read_blob(template).decode() == stated


def test_of_several_templates_chat_template_jinja_is_packed(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "chat_template.jinja").write_text("{{ messages }}")
    (tiny / "tool_use.jinja").write_text("{{ tools }}")
    result = packager("pack", tiny, f"oci:{tmp_path}/out")
    assert result.status == 0
    assert "tool_use.jinja" in result.stderr and "[template-differs]" in result.stderr
    manifest, _ = read(tmp_path / "out", TAG)
    assert [path for path in paths(manifest) if path.endswith(".jinja")] == ["chat_template.jinja"]


def test_a_checkpoint_is_converted(packager, tiny: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf", "--precision", "f16")
    assert line.startswith(f"oci:{tmp_path}/out:95K-F16@sha256:")
    manifest, config = read(tmp_path / "out", "95K-F16")
    assert paths(manifest) == ["Tiny-F16.gguf", "chat_template.jinja", "README.md"]
    assert manifest.layers[0].digest == Digest.of(tiny_gguf.read_bytes())
    assert config["config"]["format"] == "gguf"
    assert (config["config"]["quantization"], config["config"]["precision"]) == ("F16", "float16")


def test_without_a_precision_a_conversion_keeps_the_checkpoints(packager, tiny: Path, tmp_path: Path) -> None:
    result = packager("pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf")
    assert result.status == 0
    assert "converting to BF16" in result.stderr
    assert read(tmp_path / "out", "95K-BF16")[0].annotations["dev.stowage.precision"] == "BF16"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left", "x"), 1)])
def test_a_conversion_that_ends_early_leaves_no_file(
    packager, tiny: Path, tmp_path: Path, monkeypatch, error: BaseException, status: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    plan_conversion = convert.plan_conversion

    def plan(folder: Path, precision: str) -> convert.Plan:
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiny.iterdir())
        planned = plan_conversion(folder, precision)
        *tensors, last = planned.tensors

        def fail(*_: object) -> NoReturn:
            raise error

        broken = replace(last, chunks=[replace(chunk, make=fail) for chunk in last.chunks])
        return replace(planned, tensors=[*tensors, broken])

    monkeypatch.setattr(convert, "plan_conversion", plan)
    assert packager("pack", tiny, "tiny:95K-F16", "--format", "gguf", "--precision", "F16").status == status
    assert list(scratch.iterdir()) == []
    assert packager.stored == []


def test_what_cannot_be_converted_is_said(packager, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of", "architectures": ["Unheard"]}))
    assert "Unheard" in packager.fails(2, "pack", tiny, "tiny", "--format", "gguf", "--precision", "F16")
    assert packager.stored == []


def test_a_gguf_file_is_packed_as_it_is(packager, tiny_gguf: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny_gguf, f"oci:{tmp_path}/out")
    assert line.startswith(f"oci:{tmp_path}/out:95K-F16@sha256:")
    manifest, config = read(tmp_path / "out", "95K-F16")
    assert paths(manifest) == ["tiny-F16.gguf", "chat_template.jinja"]
    assert manifest.layers[0].digest == Digest.of(tiny_gguf.read_bytes())
    assert manifest.annotations["dev.stowage.context-length"] == "256"
    assert config["descriptor"]["family"] == "llama"


def test_all_shards_of_a_gguf_model_are_packed_in_order(packager, tmp_path: Path) -> None:
    split_gguf = write_shards(tmp_path, 2)
    packager.ok("pack", split_gguf, f"oci:{tmp_path}/out")
    manifest, config = read(tmp_path / "out", "0.512K-F16")
    assert paths(manifest) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert config["descriptor"]["licenses"] == ["MIT"]
    second = split_gguf.with_name("m-00002-of-00002.gguf")
    assert "give the first, m-00001-of-00002.gguf" in packager.fails(2, "pack", second, "m")
    second.unlink()
    assert "shard m-00002-of-00002.gguf is missing" in packager.fails(1, "pack", split_gguf, "m")


def test_the_docker_layout(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "LICENSE").write_text("Apache License")
    args = ("--layout", "docker", "--format", "gguf", "--precision", "F16")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", *args)
    manifest, config = read(tmp_path / "out", "95K-F16")
    assert manifest.artifact_type is None
    assert manifest.config.media_type == "application/vnd.docker.ai.model.config.v0.2+json"
    assert {path: layer.media_type for path, layer in zip(paths(manifest), manifest.layers, strict=True)} == {
        "Tiny-F16.gguf": "application/vnd.docker.ai.gguf.v3",
        "chat_template.jinja": "application/vnd.docker.ai.chat.template.jinja",
        "LICENSE": "application/vnd.docker.ai.license",
        "README.md": "application/vnd.docker.ai.model.file",
    }
    assert config["config"]["gguf"]["general.architecture"] == "llama"
    assert config["config"]["context_size"] == 256
    assert re.fullmatch(r"[0-9]+\.[0-9]{2}MiB", config["config"]["size"])
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": [str(layer.digest) for layer in manifest.layers]}
    assert "modelfs" not in config and "paramSize" not in config["config"]
    assert config["descriptor"] == {"created": "1970-01-01T00:00:00Z"}


SCRIPT = """
import os, sys
os.umask(0o077)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from packager.cli import main
main()
"""


def test_packing_is_the_same_anywhere_at_any_time(packager, tiny: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    with (tiny / "README.md").open("a", encoding="utf-8") as stream:
        stream.write("Çok küçük, ıssız.\n")  # which is no text in the other locale
    (tiny / "LICENSE").write_text("Terms")
    names = [path.name for path in tiny.iterdir()]
    random.Random(7).shuffle(names)
    other = tmp_path / "another place"
    other.mkdir(mode=0o700)
    for name in names:  # in another order, so that the directory lists them differently
        shutil.copyfile(tiny / name, other / name)
        os.utime(other / name, (1_900_000_000, 1_900_000_000))
        (other / name).chmod(0o600)
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(tiny_gguf, tmp_path / "elsewhere" / tiny_gguf.name)
    environment = {
        **os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
        "PYTHONHASHSEED": "7",
        "STOWAGE_STORE": str(tmp_path / "s2"), "TMPDIR": str(other.parent),
    }  # fmt: skip
    for source, copy, args in (
        (tiny, other, []),
        (tiny, other, ["--format", "gguf", "--precision", "Q8_0"]),
        (tiny, other, ["--layout", "docker"]),
        (tiny, other, ["--format", "gguf", "--precision", "F16", "--ollama"]),
        (tiny_gguf, tmp_path / "elsewhere" / tiny_gguf.name, []),
    ):
        here = packager.ok("pack", source, "tiny", *args)
        there = subprocess.run(
            [sys.executable, "-c", SCRIPT, "pack", copy, "tiny", *args],
            env=environment, capture_output=True, text=True, check=True, cwd=tmp_path,
        ).stdout  # fmt: skip
        assert there == here + "\n"


def test_the_creation_time_is_stated_or_the_epoch(packager, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    def created() -> str:
        return read(tmp_path / "out", TAG)[1]["descriptor"]["createdAt"]

    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--created", "2026-02-03T04:05:06+01:00")
    assert created() == "2026-02-03T03:05:06Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    assert created() == "1970-01-02T00:00:00Z"
    assert "is not a time" in packager.fails(2, "pack", tiny, "tiny", "--created", "yesterday")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert "SOURCE_DATE_EPOCH" in packager.fails(2, "pack", tiny, "tiny")


def test_without_push_the_artifact_is_in_the_local_store(packager, tiny: Path) -> None:
    line = packager.ok("pack", tiny, "registry.example.com/ai/tiny")
    assert line.startswith(f"registry.example.com/ai/tiny:{TAG}@sha256:")
    repository = LayoutRepository(packager.store, "registry.example.com/ai/tiny")
    assert repository.tags() == [TAG]
    assert str(repository.resolve(TAG).digest) == line.partition("@")[2]


def test_a_tag_that_claims_nothing_is_kept(packager, tiny: Path) -> None:
    assert packager.ok("pack", tiny, "tiny:latest").startswith("tiny:latest@sha256:")


def test_file_filter(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--file-filter", "!*.bin", "--file-filter", "!README.md")
    names = paths(read(tmp_path / "out", TAG)[0])
    assert "README.md" not in names and "config.json" in names
    only = ("--file-filter", "*.safetensors", "--file-filter", "*config.json", "--file-filter", "*.index.json")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", *only)
    assert paths(read(tmp_path / "out", TAG)[0]) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat_template.jinja", "config.json",
        "generation_config.json", "model.safetensors.index.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_allowed_findings_are_packed_and_said(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "modeling_tiny.py").write_text("print('hello')")
    result = packager("pack", tiny, f"oci:{tmp_path}/out", "--allow", "python-code")
    assert result.status == 0
    assert "allowed: modeling_tiny.py" in result.stderr
    manifest, _ = read(tmp_path / "out", TAG)
    kinds = dict(zip(paths(manifest), [layer.media_type for layer in manifest.layers], strict=True))
    assert kinds["modeling_tiny.py"] == "application/vnd.cncf.model.code.v1.raw"


def test_sentence_transformers_subfolders_are_packed(packager, tiny: Path, tmp_path: Path) -> None:
    (tiny / "modules.json").write_text('[{"idx":0,"path":""},{"idx":1,"path":"1_Pooling"}]')
    (tiny / "1_Pooling").mkdir()
    (tiny / "1_Pooling" / "config.json").write_text("{}")
    (tiny / "onnx").mkdir()
    (tiny / "onnx" / "model.onnx").write_bytes(b"")
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    names = paths(read(tmp_path / "out", TAG)[0])
    assert "1_Pooling/config.json" in names
    assert not [name for name in names if name.startswith("onnx")]


def test_a_person_sees_how_far_each_file_is(tiny: Path, tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "pack", tiny, f"oci:{tmp_path}/out")
    for part in ("model-00001-of-00002.safetensors", "tokenizer.json", "kB/s", "0:00:00"):
        assert part in shown, shown
    shown = on_a_terminal(tmp_path, "push", f"oci:{tmp_path}/out:{TAG}", f"oci:{tmp_path}/there:{TAG}")
    assert "model-00001-of-00002.safetensors" in shown and "sha256:6a" not in shown
    shown = on_a_terminal(tmp_path, "pack", tiny, f"oci:{tmp_path}/out", "--format", "gguf", "--precision", "F16")
    assert "Tiny-F16.gguf" in shown


def on_a_terminal(tmp_path: Path, *args: str | Path) -> str:
    """What the command writes to a terminal on its standard error."""
    terminal, inside = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "STOWAGE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-c", "from packager.cli import main; main()", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=inside, env=environment) as process:
        os.close(inside)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends whose last user has gone
            while piece := os.read(terminal, 65536):
                shown += piece
    os.close(terminal)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_mixture_with_two_names_is_one(tiny: Path) -> None:
    """`Q4_K` is llama.cpp's other name for `Q4_K_M`, and the name of a type that a file may have as it is."""
    checkpoint = open_path(tiny)
    for name in ("Q4_K", "q4_k", "Q4_K_M"):
        assert conversion_precision(checkpoint, Options(format="gguf", precision=name)) == "Q4_K_M"
    held = replace(checkpoint, facts=Facts("gguf", "Q4_K", 1, (("Q4_K", 1.0),)))
    assert not converts(held, Options(precision="Q4_K"))
    assert converts(held, Options(precision="Q4_K_M"))

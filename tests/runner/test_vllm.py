"""Real vLLM on a CPU: a real checkpoint packed, pushed, signed, pulled under a policy, and asked a question."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import openai
import pytest

from runner.engines import vllm_flags
from runner.engines.installed import choose
from tests.runner.adapters import peft_adapter, push_adapter
from tests.runner.code import MARK, make_key, pack_model_with_code, write_policy
from tests.runner.code import packager as signing
from tests.runner.commands import call, error_line, json_of, packager
from tests.runner.engines import installed_engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
QUESTION = "What is the capital of France?"
FLAGS = ("--enforce-eager", "--kv-cache-memory-bytes", str(256 * 1024 * 1024), "--max-num-seqs", "4")


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has vLLM for CPUs."""
    return installed_engines("vllm", "cpu", tmp_path_factory.mktemp("install"))


@pytest.fixture
def published(smollm2, session_registries, tmp_path) -> tuple[str, Path]:
    """The real model in a registry, signed, in both formats: its name, and the policy that requires the signature."""
    registry = session_registries(tmp_path / "registry-data")
    name, store = f"{registry.host}/demo/smollm2", tmp_path / "packing"
    subprocess_environment = {"COSIGN_PASSWORD": ""}
    for tag, options in (("135M-BF16-safetensors", []), ("135M-BF16", ["--format", "gguf", "--precision", "BF16"])):
        packager(store, "pack", str(smollm2), f"{name}:{tag}", "--push", *options)
    _packager(store, "keygen", str(tmp_path / "key"), **subprocess_environment)
    for tag in ("135M-BF16-safetensors", "135M-BF16"):
        _packager(store, "sign", f"{name}:{tag}", "--key", str(tmp_path / "key.key"), **subprocess_environment)
    example = Path(__file__).parents[2] / "docs" / "examples" / "policy-key.yaml"
    policy = tmp_path / "policy.yaml"
    policy.write_text(example.read_text().replace("PUBLIC_KEY", str(tmp_path / "key.pub")))
    return name, policy


def _packager(store: Path, *arguments: str, **more: str) -> None:
    from tests.runner.commands import BIN, environment

    subprocess.run([str(BIN / "packager"), *arguments], env=environment(store, **more), check=True, timeout=60,
                   capture_output=True)  # fmt: skip


def streamed(url: str) -> str:
    """The answer to the question, put together from its stream."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120)
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id, stream=True, temperature=0, max_tokens=16,
        messages=[{"role": "user", "content": QUESTION}],
    )  # fmt: skip
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    return "".join(pieces)


def test_the_real_model_answers_on_vllm_and_on_llamacpp(serve, store, engines, published):
    name, policy = published
    store.mkdir()
    (store / "engines").symlink_to(engines)
    call(store, "pull", f"{name}:135M-BF16-safetensors", "--policy", str(policy))
    serving = serve(
        f"{name}:135M-BF16-safetensors", "--policy", str(policy), "--context-size", "1024", "--sandbox", "required",
        "--", *FLAGS,
    ).wait_ready(900)  # fmt: skip
    (run,) = json_of(call(store, "ps", "--json"))
    (model,) = run["models"]
    assert model["version"] == "vllm 0.32.0"
    assert "nothing but loopback" in model["sandbox"]
    assert "not in force" not in model["sandbox"]
    on_vllm = streamed(serving.url)
    assert "Paris" in on_vllm
    answer = httpx.get(f"{serving.url}/v1/models").json()
    assert answer["data"][0]["digest"] == model["digest"]
    serving.stop()
    arriving = store / "arriving"  # the same from a store that has nothing: loaded while it arrives
    arriving.mkdir()
    (arriving / "engines").symlink_to(engines)
    while_arriving = serve(
        f"{name}:135M-BF16-safetensors", "--stream", "--policy", str(policy), "--context-size", "1024", "--sandbox",
        "required", "--", *FLAGS, STOWAGE_STORE=str(arriving),
    ).wait_ready(900)  # fmt: skip
    assert "--load-format stowage_stream" in while_arriving.stderr()
    assert streamed(while_arriving.url) == on_vllm
    call(arriving, "fsck")
    while_arriving.stop()
    gguf = serve(f"{name}:135M-BF16", "--policy", str(policy), "--context-size", "1024").wait_ready()
    # Greedy text of one precision agrees here at its start; later tokens may differ between engines.
    assert streamed(gguf.url).split(".")[0] == on_vllm.split(".")[0]


def test_vllm_says_why_it_cannot_start(serve, store, engines, safetensors_reference):
    store.mkdir()
    (store / "engines").symlink_to(engines)
    serving = serve(safetensors_reference, "--", "--enforce-eager", "--kv-cache-memory-bytes", "1000")
    assert serving.process.wait(900) == 1
    line = [line for line in serving.stderr().splitlines() if line.startswith("error: ")][-1]
    assert "vllm stopped with 1 while loading the model: ValueError: " in line
    assert "not enough memory: state a smaller --context-size" in line
    assert "Traceback" not in serving.stderr().partition("its last lines")[0]


def test_two_ranks_compile_and_load_what_still_arrives(
    serve, store, engines, safetensors_reference, session_registries, tmp_path
):
    store.mkdir()
    (store / "engines").symlink_to(engines)
    host = session_registries(tmp_path / "registry-data").host
    name = f"{host}/demo/tiny:{safetensors_reference.rpartition(':')[2]}"
    packager(tmp_path / "packing", "push", safetensors_reference, name)
    serving = serve(
        name, "--stream", "--context-size", "256", "--sandbox", "required",
        "--", "--tensor-parallel-size", "2", "--kv-cache-memory-bytes", str(64 * 1024 * 1024), "--max-num-seqs", "2",
    ).wait_ready(900)  # fmt: skip
    assert "VLLM_CPU_OMP_THREADS_BIND=nobind" in serving.stderr()
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", timeout=240)
    answer = client.completions.create(model=name, prompt="The capital", max_tokens=8, temperature=0)
    assert answer.usage.completion_tokens == 8
    written = call(store, "logs", name, "-n", "5000").stdout
    assert {"rank_0_0", "rank_1_0"} <= set(re.findall(r"rank_[0-9]_[0-9]", written)), "both compiled"


def test_an_adapter_is_asked_for_by_name_and_granted_code_runs(serve, store, engines, tmp_path):
    """One start of vLLM for both: a model whose config is its own Python, and a LoRA adapter for it."""
    make_key(tmp_path)
    base = pack_model_with_code(tmp_path)
    policy = write_policy(tmp_path, "granting", ", allow: [trust_remote_code]")
    store.mkdir()
    (store / "engines").symlink_to(engines)
    pulled = json_of(call(store, "pull", base, "--policy", str(policy), "--json"))
    config = json.loads((Path(pulled["bundle"]) / "config.json").read_text())
    weights, stated = peft_adapter(config, size=4.0)
    files = {"adapter_model.safetensors": weights, "adapter_config.json": stated}
    adapter = push_adapter(tmp_path / "adapter", files, pulled["digest"])
    signing(tmp_path, "sign", adapter, "--key", str(tmp_path / "key.key"))
    serving = serve(
        base, "--policy", str(policy), "--sandbox", "required", "--lora", f"speech={adapter}", "--context-size", "256",
        "--", "--trust-remote-code", *FLAGS,
    ).wait_ready(900)  # fmt: skip
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", timeout=240)
    listed = {item.id: item for item in client.models.list().data}
    name = base
    assert set(listed) == {name, "speech"}
    assert listed["speech"].parent == name and listed["speech"].digest != listed[name].digest

    def completed(model: str) -> str:
        answer = client.completions.create(model=model, prompt="The capital", max_tokens=12, temperature=0)
        return answer.choices[0].text

    assert completed(name) != completed("speech")
    assert completed(name) == completed(name)
    assert MARK in call(store, "logs", base, "-n", "2000").stdout


def test_every_option_of_this_version_is_on_a_list(engines, tmp_path):
    item = choose(engines, "vllm", vllm_flags.KNOWN_VERSION, ["cpu"])
    assert item is not None
    command = [str(item.interpreter), "-I", "-m", "vllm.entrypoints.openai.api_server", "--help=all"]
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1", "COLUMNS": "200"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=env).stdout
    lines = [line for line in told.splitlines() if re.match(r"  -", line)]
    options = {name for line in lines for name in re.findall(r"(?<![\w-])--[a-z0-9-]+", line)} - {"--help"}
    assert len(options) > 200
    allowed = {name for flag in vllm_flags.ALLOWED.flags for name in (flag.name, *flag.aliases)}
    denied = {name for names in vllm_flags.DENIED.values() for name in names}
    listed = {name for name in allowed | denied if name.startswith("--")}
    assert {name for name in options - listed if f"--{name.removeprefix('--no-')}" not in listed} == set()
    assert listed - options == set()
    assert not allowed & denied


def test_an_installed_engine_is_listed_and_can_be_named(store, engines, safetensors_reference):
    store.mkdir()
    (store / "engines").symlink_to(engines)
    rows = json_of(call(store, "engine", "list", "--json"))["engines"]
    (row,) = (row for row in rows if (row["name"], row["variant"], row["state"]) == ("vllm", "cpu", "installed"))
    assert row["works"] and row["lock"].startswith("vllm-0.32.0-cpu-cp3")
    command = json_of(call(store, "inspect", safetensors_reference, "--command", "--json", "--driver", "vllm==0.32.0"))
    assert command["lock"] == row["lock"]
    assert command["argv"][0] == f"{store}/engines/vllm-0.32.0-cpu/bin/python"
    other = call(store, "inspect", safetensors_reference, "--command", "--driver", "vllm==0.1", status=1)
    assert "vllm 0.1 is not installed (installed: 0.32.0): runner engine install vllm==0.1" in error_line(other)

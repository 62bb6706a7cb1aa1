"""CVE-2026-28400: flags that reach the engine. Allow-listed per engine, and checked after dispatch."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.engines import llamacpp, vllm_flags
from runner.engines.flags import FlagDenied, FlagNotGranted
from runner.engines.llamacpp import LlamaCpp
from runner.engines.vllm import Vllm
from tests.runner.commands import call, error_line
from tests.runner.crafted import model_of


@pytest.mark.parametrize(
    "flag",
    [
        "--log-file", "--slot-save-path", "--prompt-cache", "--path", "--model", "-m", "--host", "--port", "--hf-repo",
        "-hf", "--model-url", "--docker-repo", "--rpc", "--lora", "--grammar-file", "--api-key",
        "--tools", "--mcp-servers-config", "--ssl-key-file", "--alias", "--ctx-size", "--media-path", "--props",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{} x", "{}=x", "{}"])
def test_llama_cpp_flags_that_write_connect_or_load(flag, form):
    with pytest.raises(FlagDenied):
        LlamaCpp().check_flags(form.format(flag).split())


@pytest.mark.parametrize(
    "flag",
    [
        "--trust-remote-code", "--tool-parser-plugin", "--middleware", "--lora-modules", "--uds",
        "--download-dir", "--log-config-file", "--host", "--port", "--model", "--tokenizer", "--ssl-keyfile",
        "--kv-transfer-config", "--worker-cls", "--load-format", "--allowed-local-media-path", "--root-path",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{} x", "{}=x", "{}"])
def test_vllm_flags_that_write_connect_or_load(flag, form):
    with pytest.raises((FlagDenied, FlagNotGranted)):
        Vllm().check_flags(form.format(flag).split())


@pytest.mark.parametrize(
    ("allowed", "flag"), [(llamacpp.ALLOWED, "--chat-template-file"), (vllm_flags.ALLOWED, "--chat-template")]
)
def test_a_flag_that_loads_a_file_can_name_only_one_of_the_verified_model(allowed, flag):
    for value in ("/etc/passwd", "../x.jinja", "a/../../x", "~/x", "-x", ""):
        with pytest.raises(FlagDenied):
            allowed.check([flag, value])
    files = {"own.jinja", "model.gguf"}
    assert allowed.in_bundle(allowed.check([flag, "own.jinja"]), files, "bundle") == (flag, "bundle/own.jinja")
    with pytest.raises(FlagDenied, match="which the verified model does not have"):
        allowed.in_bundle(allowed.check([flag, "other.jinja"]), files, "bundle")


@pytest.mark.parametrize(
    "written", ["--LOG-FILE", "--log_file", "--log-fil", "-‑log-file", "--parallel\n", " --parallel"]
)
def test_no_other_spelling_gets_through(written):
    with pytest.raises(FlagDenied):
        LlamaCpp().check_flags([written, "1"])


def test_values_are_never_paths_or_flags():
    for value in ("/etc/passwd", "../x", "a/b", "--log-file", "x\ny", "{{ 1 }}"):
        with pytest.raises(FlagDenied):
            LlamaCpp().check_flags(["--chat-template", value])


def test_flags_are_checked_against_the_engine_that_was_chosen(tmp_path: Path):
    """A vLLM flag does not pass for a model that llama.cpp runs, and nothing is fetched to find that out."""
    model_of(tmp_path / "l", {})
    store = tmp_path / "store"
    refused = call(store, "serve", f"oci:{tmp_path}/l:v1", "--", "--n-gpu-layers", "9", status=2)
    assert "vllm" in error_line(refused)
    assert not list(store.glob("blobs/*/*"))

"""llama-cpp-python, installed from its lock file: a real model, several streams at once, and all of its settings."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from runner.engines import llamacpp_python
from runner.engines.installed import choose
from tests.runner.commands import call, environment, error_line, json_of, packager

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]
QUESTION = "What is the capital of France?"
DRIVER = ("--driver", "llama-cpp-python", "--context-size", "1024")


@pytest.fixture(scope="module")
def paris(smollm2, tmp_path_factory) -> str:
    """The reference of the real model as GGUF."""
    folder = tmp_path_factory.mktemp("smollm2")
    packager(folder / "store", "pack", str(smollm2), f"oci:{folder}/layout:135M-F16", "--format", "gguf",
             "--precision", "F16")  # fmt: skip
    return f"oci:{folder}/layout:135M-F16"


@pytest.fixture
def engines(store: Path, llama_cpp_python: Path) -> Path:
    """The store of this test, with the engine in it."""
    store.mkdir()
    (store / "engines").symlink_to(llama_cpp_python.parents[2])
    return store


def streamed(client: openai.OpenAI, model: str, prompt: str, tokens: int) -> tuple[str, str | None]:
    """A streamed answer, and why it ended."""
    stream = client.chat.completions.create(
        model=model, stream=True, temperature=0, max_tokens=tokens, messages=[{"role": "user", "content": prompt}]
    )
    text, reason = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason


def test_the_real_model_answers_several_at_once_and_none_is_cut_off(serve, engines, paris):
    serving = serve(paris, *DRIVER, "--sandbox", "required").wait_ready()
    (model,) = json_of(call(engines, "ps", "--json"))[0]["models"]
    assert (model["engine"], model["version"]) == ("llama-cpp-python", "llama-cpp-python 0.3.36")
    assert "not in force" not in model["sandbox"]
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", timeout=240, max_retries=0)
    answer, reason = streamed(client, model["name"], QUESTION, 16)
    assert "Paris" in answer and reason in ("stop", "length")
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: streamed(client, model["name"], QUESTION, 16), range(4)))
    assert several == [(answer, reason)] * 4
    whole = client.chat.completions.create(
        model=model["name"], temperature=0, max_tokens=16, messages=[{"role": "user", "content": QUESTION}]
    )
    assert whole.choices[0].message.content == answer


def test_the_template_of_the_bundle_is_used(serve, engines, paris, tmp_path):
    """A chat template is a file of the artifact, covered by its digest: it counts, not the one in the GGUF."""
    line = json_of(call(engines, "inspect", paris, "--command", "--json", *DRIVER))["argv"]
    assert line[line.index("--chat_template_file") + 1] == "bundle/chat_template.jinja"
    bundle = Path(json_of(call(engines, "pull", paris, "--json"))["bundle"])
    (weights,) = bundle.glob("*.gguf")
    (tmp_path / "m.jinja").write_text("{{ bos_token }}Say: {{ messages[0]['content'] }}{{ eos_token }}")
    launcher = llamacpp_python._LAUNCHER
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('launcher', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "_, server, model = module.settings(sys.argv[2:])\n"
        "from llama_cpp.server.model import LlamaProxy\n"
        "llama = LlamaProxy([model])()\n"
        "asked = []\n"
        "whole = llama.create_completion\n"
        "llama.create_completion = lambda prompt, **more: asked.append(llama.detokenize(prompt, special=True)"
        ".decode()) or whole(prompt, **more)\n"
        "llama.create_chat_completion([{'role': 'user', 'content': 'x'}], max_tokens=1)\n"
        "print('ASKED', json.dumps(asked))\n"
    )
    arguments = ["--model", str(weights), "--uds", "x", "--n_ctx", "64", "--chat_template_file", "m.jinja"]
    done = subprocess.run(
        [str(engines / "engines" / "llama-cpp-python-0.3.36-cpu" / "bin" / "python"), "-I", "-c", code, str(launcher),
         *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    (told,) = [text for text in done.stdout.splitlines() if text.startswith("ASKED ")]
    assert json.loads(told.removeprefix("ASKED ")) == ["<|im_start|>Say: x<|im_end|>"], done.stderr


def test_every_setting_of_this_version_is_on_a_list(llama_cpp_python, tmp_path):
    code = (
        "import json\n"
        "from llama_cpp.server.settings import ModelSettings, ServerSettings\n"
        "print(json.dumps([*ModelSettings.model_fields, *ServerSettings.model_fields]))\n"
    )
    told = subprocess.run(
        [str(llama_cpp_python), "-I", "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path
    ).stdout
    settings = {f"--{name}" for name in json.loads(told.splitlines()[-1])}
    allowed = {flag.name for flag in llamacpp_python.ALLOWED.flags}
    denied = {name for names in llamacpp_python.DENIED.values() for name in names}
    ours = {"--uds", "--config_file", "--chat_template_file"}  # the launcher's own, and the library's own server's
    assert len(settings) > 40
    assert settings - allowed - denied == set()
    assert (allowed | denied) - settings == ours
    assert not allowed & denied


def test_it_computes_the_same_on_every_processor_it_runs_on(llama_cpp_python, tmp_path):
    code = "import llama_cpp; print('FEATURES', llama_cpp.llama_print_system_info().decode())"
    told = subprocess.run(
        [str(llama_cpp_python), "-I", "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path
    ).stdout
    (line,) = [text for text in told.splitlines() if text.startswith("FEATURES ")]
    assert {"AVX2 = 1", "FMA = 1", "F16C = 1", "BMI2 = 1"} <= {part.strip() for part in line.split("|")}
    assert "AVX512" not in line


def test_it_is_listed_with_what_compiled_it(engines):
    rows = json_of(call(engines, "engine", "list", "--json"))["engines"]
    (row,) = (row for row in rows if (row["name"], row["state"]) == ("llama-cpp-python", "installed"))
    assert row["works"] and row["lock"].startswith("llama-cpp-python-0.3.36-cpu-cp3")
    item = choose(engines / "engines", "llama-cpp-python", "0.3.36", ["cpu"])
    assert item is not None and item.compiler


def test_without_a_compiler_it_says_so(store, tmp_path):
    """Where nothing can be compiled, nothing is fetched."""
    (tmp_path / "bin").mkdir()
    env = environment(store) | {"PATH": str(tmp_path / "bin")}
    runner = Path(environment(store)["PATH"].partition(":")[0]) / "runner"
    done = subprocess.run(
        [str(runner), "engine", "install", "llama-cpp-python"], env=env, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "there is no C compiler and no C++ compiler on PATH: install gcc and g++ (or clang)" in error_line(done)
    assert not (store / "engines").exists()
    listed = subprocess.run(
        [str(runner), "engine", "list", "--json"], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    (row,) = (row for row in json.loads(listed.stdout)["engines"] if row["name"] == "llama-cpp-python")
    assert not row["works"] and "no C compiler" in row["obstacles"][-1]

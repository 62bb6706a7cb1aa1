"""The allow-lists of engine flags."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines import llamacpp, llamacpp_python, vllm_flags
from runner.engines.flags import FlagDenied, FlagNotGranted

SAMPLES = {
    "int": "1",
    "float": "0.5",
    "word": "chatml",
    "json": '{"a": 1}',
    "numbers": "1,2.5",
    "file": "a/t.jinja",
    "adapter": "n=a",
}
REAL_SAMPLES = {**SAMPLES, "file": "/dev/null"}
ENGINES = [llamacpp.ALLOWED, llamacpp_python.ALLOWED, vllm_flags.ALLOWED]


@pytest.mark.parametrize("allowed", ENGINES)
def test_every_listed_flag_passes_in_both_spellings(allowed):
    for flag in allowed.flags:
        if flag.kind == "switch":
            assert allowed.check([flag.name], code=flag.granted) == (flag.name,)
            continue
        value = SAMPLES.get(flag.kind, flag.kind.split("|")[0])
        for name in (flag.name, *flag.aliases):
            assert allowed.check([name, value]) == (flag.name, value)
            assert allowed.check([f"{name}={value}"]) == (flag.name, value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--tensor-parallel-size", "two"], "it takes int"),
        (["--tensor-parallel-size"], "needs a value"),
        (["--enforce-eager=1"], "takes no value"),
        (["--quantization", "../../x"], "cannot have the value"),
        (["--hf-overrides", '{"a": "/etc/passwd"}'], "cannot have the value"),
        (["--hf-overrides", "[1]"], "cannot have the value"),
        (["--seed", "1", "--seed=2"], "given twice"),
        (["surprise"], "is not a flag"),
        (["--max-model-len", "9"], "--context-size"),
        (["--no-such-flag"], "not on the list"),
    ],
)
def test_what_does_not_pass_is_told_why(arguments, why):
    with pytest.raises(FlagDenied, match=why) as refusal:
        vllm_flags.ALLOWED.check(arguments)
    assert refusal.value.exit_code == 2


@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*(f.name for f in llamacpp.ALLOWED.flags), "1"]))))
def test_nothing_unlisted_ever_passes(arguments):
    try:
        passed = llamacpp.ALLOWED.check(arguments)
    except FlagDenied:
        return
    flags = {flag.name: flag for flag in llamacpp.ALLOWED.flags}
    rest = list(passed)
    while rest:
        flag = flags[rest.pop(0)]
        assert flag.kind == "switch" or flag.accepts(rest.pop(0))


@pytest.mark.engine
def test_the_launcher_understands_every_flag_the_list_lets_pass():
    arguments = []
    for flag in llamacpp.ALLOWED.flags:
        arguments.append(flag.name)
        if flag.kind != "switch":
            arguments.append(REAL_SAMPLES.get(flag.kind, flag.kind.split("|")[0]))
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('launcher', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "params = module.parameters(sys.argv[2:])\n"
        "print(params.n_parallel, params.sampling.top_k, params.use_mlock if hasattr(params, 'use_mlock') else '')\n"
    )
    command = [sys.executable, "-I", "-c", code, str(llamacpp._LAUNCHER), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "1"]


@pytest.mark.engine
def test_the_launcher_refuses_what_it_does_not_know():
    command = [sys.executable, "-I", str(llamacpp._LAUNCHER), "--log-file", "/tmp/x"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "no flag --log-file" in result.stderr


def test_flags_that_name_files_name_the_models_own():
    flags = vllm_flags.ALLOWED.check(["--chat-template=t/x.jinja", "--lora-modules", "fr=adapters/fr", "-tp", "2"])
    paths = {"t/x.jinja", "adapters/fr/adapter_config.json"}
    assert vllm_flags.ALLOWED.in_bundle(flags, paths, "bundle") == (
        "--chat-template", "bundle/t/x.jinja", "--lora-modules", "fr=bundle/adapters/fr",
        "--tensor-parallel-size", "2",
    )  # fmt: skip
    for missing in ({"t/x.jinja"}, {"adapters/fr/adapter_config.json"}):
        with pytest.raises(FlagDenied, match="does not have"):
            vllm_flags.ALLOWED.in_bundle(flags, missing, "bundle")


@pytest.mark.parametrize("value", ["/etc/passwd", "../x", "a/../b", "~/x", "-x", "a\\b", ""])
def test_flags_that_name_files_never_leave_the_model(value):
    with pytest.raises(FlagDenied, match="cannot have the value"):
        vllm_flags.ALLOWED.check(["--chat-template", value])
    with pytest.raises(FlagDenied, match="cannot have the value"):
        vllm_flags.ALLOWED.check(["--lora-modules", f"n={value}"])
    with pytest.raises(FlagDenied, match="cannot have the value"):
        llamacpp.ALLOWED.check(["--chat-template-file", value])


def test_code_in_a_model_runs_only_where_it_is_granted():
    with pytest.raises(FlagNotGranted, match="no policy grants that for this model") as refusal:
        vllm_flags.ALLOWED.check(["--trust-remote-code"])
    assert refusal.value.exit_code == 3
    assert vllm_flags.ALLOWED.check(["--trust-remote-code"], code=True) == ("--trust-remote-code",)
    assert [flag.name for flag in vllm_flags.ALLOWED.flags if flag.granted] == ["--trust-remote-code"]

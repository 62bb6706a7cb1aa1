"""One real model through the whole chain, every command shown: pack, push, sign, pull by digest, verify, serve, ask.

Run it with ``make demo``, or ``make demo SOURCE=hf://ORG/NAME`` (or a checkpoint folder) for another model.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUESTION = "What is the capital of France?"
ANSWER = "Paris"
_START_TIMEOUT = 120.0
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
        done = subprocess.run(
            command, env=self.environment | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, cwd=ROOT, check=False,
        )  # fmt: skip
        print(done.stdout, end="", flush=True)
        if done.returncode != expect:
            raise DemoFailed(f"exit status {done.returncode}, expected {expect}: {shlex.join(command)}")
        if expect:
            print(f"{_GREEN}refused with exit status {expect}, as it must be{_END}", flush=True)
        lines = done.stdout.strip().splitlines()
        return lines[-1] if lines else ""

    @contextmanager
    def server(self, ready: str, *command: str) -> Iterator[None]:
        """Run a server until the block ends; `ready` is the URL that answers 200 once it is up."""
        self.show(list(command))
        log = self.folder / f"{Path(command[0]).name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=self.environment, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=ROOT, start_new_session=True,
            )  # fmt: skip
            try:
                self._await(process, ready, log)
                print(log.read_text(errors="replace"), end="", flush=True)
                yield
            finally:
                _stop(process)

    def _await(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                if httpx.get(url, timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise DemoFailed(f"the server did not come up:\n{log.read_text(errors='replace')}")


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


class _Terminated:
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
    with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body, timeout=120) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                choices = json.loads(line[6:]).get("choices") or [{}]
                piece = choices[0].get("delta", {}).get("content") or ""
                pieces.append(piece)
                print(piece, end="", flush=True)
        print(f"\nanswered by {response.headers.get('stowage-digest')}")
    return "".join(pieces)


def tour(demo: Demo, source: str, expected: str | None) -> None:
    """The way of one model, from checkpoint to answer."""
    registry, endpoint = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    storage, key = demo.folder / "registry-data", demo.folder / "demo"
    model = f"{registry}/demo/model"

    demo.step("What the checkpoint is")
    demo.run("packager", "inspect", source)

    demo.step("A registry over a folder")
    with demo.server(f"http://{registry}/readyz", "registry", "serve", "--storage", str(storage), "--listen", registry):
        demo.step("A fresh key")
        demo.run("packager", "keygen", str(key), COSIGN_PASSWORD="")

        demo.step("Pack, push and sign: safetensors as they are, and GGUF F16")
        demo.run("packager", "pack", source, model, "--push", "--sign", f"{key}.key", COSIGN_PASSWORD="")
        gguf = demo.run(
            "packager", "pack", source, model, "--format", "gguf", "--precision", "F16", "--push", "--sign",
            f"{key}.key", COSIGN_PASSWORD="",
        )  # fmt: skip
        reference, digest = gguf.rsplit("@", 1)
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
        with demo.server(
            f"http://{endpoint}/healthz", "runner", "serve", f"{model}@{digest}", "--policy", str(policy),
            "--listen", endpoint, "--context-size", "2048",
        ):  # fmt: skip
            answer = ask(f"http://{endpoint}")
            if expected and expected not in answer:
                raise DemoFailed(f"the answer does not contain {expected!r}: {answer!r}")
        demo.step("Every process is stopped, the demo's folder removed")


def checkpoint(demo: Demo) -> str:
    """The genuine SmolLM2-135M-Instruct, rebuilt as a Hugging Face checkpoint from its published GGUF."""
    target = ROOT / ".cache" / "checkpoints" / "smollm2-135m-instruct"
    demo.step("A real checkpoint")
    demo.run(sys.executable, str(ROOT / "tests" / "checkpoints" / "smollm2.py"), str(target))
    return str(target)


def main() -> int:
    """Run the demo; 0 if every step did what it promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="a checkpoint folder or hf://ORG/NAME[@REV]; default: SmolLM2-135M-Instruct")
    arguments = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_Terminated())
        folder = Path(tempfile.mkdtemp(prefix="stowage-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        demo = Demo(folder)
        try:
            source = arguments.source or checkpoint(demo)
            tour(demo, source, None if arguments.source else ANSWER)
        except DemoFailed as failure:
            print(f"{_RED}demo failed: {failure}{_END}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted: everything is stopped and removed", file=sys.stderr)
            return 130
    print(f"\n{_GREEN}The whole chain works: {time.monotonic() - began:.0f} s.{_END}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

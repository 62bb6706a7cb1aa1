"""A signed model through another project's registry and back: ours -> docker-registry -> ours, every command shown.

Run it with ``make demo-mirror``. Debian's docker-registry knows nothing of referrers; the signatures arrive all the
same, and the last registry, which has never seen the first, is asked for the model under a policy. ``SOURCE=FOLDER``
takes another checkpoint than the small one of random weights.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack

from demo import ROOT, Demo, DemoFailed, free_port, staged

OTHER = "docker-registry"
_CONFIG = """version: 0.1
log: {{level: error}}
http: {{addr: "{host}"}}
storage: {{filesystem: {{rootdirectory: "{folder}"}}, delete: {{enabled: true}}}}
"""


def tour(demo: Demo, source: str, stack: ExitStack) -> None:
    """The way there and back."""
    first, other, last = (f"127.0.0.1:{free_port()}" for _ in range(3))
    key, name = demo.folder / "demo", "demo/model"

    demo.step("A registry, a key, a model packed into the registry and signed")
    ours(demo, stack, "first", first)
    demo.run("packager", "keygen", str(key), COSIGN_PASSWORD="")
    packed = demo.run(
        "packager", "pack", source, f"{first}/{name}", "--format", "gguf", "--precision", "F16", "--ollama", "--push",
        "--sign", f"{key}.key", COSIGN_PASSWORD="",
    )  # fmt: skip
    reference, digest = packed.rsplit("@", 1)
    tag = reference.rsplit(":", 1)[1]
    policy = demo.folder / "policy.yaml"
    example = (ROOT / "docs" / "examples" / "policy-key.yaml").read_text()
    policy.write_text(example.replace("PUBLIC_KEY", f"{key}.pub"))

    demo.step("Another project's registry, without a referrers API")
    config = demo.folder / "distribution.yml"
    config.write_text(_CONFIG.format(host=other, folder=demo.folder / "distribution"))
    stack.enter_context(place(demo, "other").server(f"http://{other}/v2/", OTHER, "serve", str(config)))

    demo.step("Ours -> docker-registry: tags, referrers, signatures; then again, with nothing left to do")
    demo.run("registry", "sync", first, other)
    again = demo.run("registry", "sync", first, other)
    if " 0 tags copied, 0 referrers, 0 blobs" not in again:
        raise DemoFailed(f"the second run should have found everything in place: {again}")
    demo.run("runner", "verify", f"{other}/{name}:{tag}", "--policy", str(policy))

    demo.step("docker-registry -> another of ours")
    ours(demo, stack, "last", last)
    demo.run("registry", "sync", other, last)

    demo.step("The signatures still verify, and the digest is the one that was signed")
    demo.run("runner", "verify", f"{last}/{name}:{tag}@{digest}", "--policy", str(policy))

    demo.step("A copy without its signatures is refused")
    demo.run("packager", "copy", f"{last}/{name}:{tag}", f"{last}/demo/unsigned:{tag}")
    demo.run("runner", "verify", f"{last}/demo/unsigned:{tag}", "--policy", str(policy), expect=3)
    demo.step("Every process is stopped, the demo's folder removed")


def place(demo: Demo, name: str) -> Demo:
    """A folder below the demo's, for the log of one server."""
    folder = demo.folder / name
    folder.mkdir()
    return Demo(folder)


def ours(demo: Demo, stack: ExitStack, name: str, host: str) -> None:
    """A registry of ours, until the end."""
    here = place(demo, name)
    command = ("registry", "serve", "--storage", str(here.folder / "storage"), "--listen", host)
    stack.enter_context(here.server(f"http://{host}/readyz", *command))


def small_checkpoint(demo: Demo) -> str:
    """A small Llama with random weights, written as a Hugging Face checkpoint."""
    sys.path.insert(0, str(ROOT))
    from tests.checkpoints.tiny import write_tiny_llama

    return str(write_tiny_llama(demo.folder / "checkpoint"))


def main() -> int:
    """Run the demo; 0 if every step did what it promises, or if there is no docker-registry here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="a checkpoint folder; default: a small one with random weights")
    arguments = parser.parse_args()
    if shutil.which(OTHER) is None:
        print(f"SKIPPED: {OTHER} is not installed, and this demo needs it (Debian: apt-get install {OTHER})")
        return 0

    def show(demo: Demo, stack: ExitStack) -> None:
        tour(demo, arguments.source or small_checkpoint(demo), stack)

    return staged(show, "There and back again")


if __name__ == "__main__":
    sys.exit(main())

"""A model that brings code of its own, packed and signed, and the policies that do and do not let it run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.checkpoints.tiny import write_tiny_llama
from tests.runner.commands import BIN, environment

MARK = "the code of the model ran"
CODE = f"""
import sys
from transformers import LlamaConfig

class TinyConfig(LlamaConfig):
    model_type = "tiny-with-code"

print({MARK!r}, file=sys.stderr, flush=True)
"""


def make_key(root: Path) -> None:
    """Make the key ``root/key.key``."""
    packager(root, "keygen", str(root / "key"))


def pack_model_with_code(root: Path) -> str:
    """Pack a Llama whose config class is its own Python, waved through by name and signed with the key of `make_key`;
    its reference."""
    folder = write_tiny_llama(root / "coded", hidden=128, heads=2, intermediate=128, context=512)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "tiny-with-code", "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_tiny.py").write_text(CODE)
    packager(
        root, "pack", str(folder), f"oci:{root}/coded-layout:v1", "--allow", "python-code", "--allow", "auto-map",
        "--sign", str(root / "key.key"),
    )  # fmt: skip
    return f"oci:{root}/coded-layout:v1"


def packager(root: Path, *arguments: str) -> None:
    """Run the packager with an empty password."""
    env = environment(root / "packing", COSIGN_PASSWORD="")
    done = subprocess.run([str(BIN / "packager"), *arguments], env=env, timeout=240, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def write_policy(root: Path, name: str, rule: str) -> Path:
    """A policy that requires the key, with one rule that says `rule` besides."""
    path = root / f"{name}.yaml"
    path.write_text(
        f"version: 1\nauthorities: {{release: {{key: {root}/key.pub}}}}\n"
        f"rules:\n- {{name: all, match: ['**'], require: {{any-of: [release]}}{rule}}}\n"
    )
    return path

"""The golden answers: what llama.cpp's own converter and transformers make of the tiny checkpoints, recorded.

    python -m tests.packager.convert.oracle setup     build .cache/oracle: torch, transformers, llama.cpp's converter
    python -m tests.packager.convert.oracle record    write golden/*.json anew
    python -m tests.packager.convert.oracle smollm2   write smollm2.json anew: the real model's answers

STOWAGE_ORACLE names another folder than .cache/oracle.
llama.cpp's converter comes with the source distribution of llama-cpp-python. Any build of torch will do, the one for
CPUs is the smallest: pip's own settings choose it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from typing import Any

from tests.packager.convert.checkpoints import CHECKPOINTS, write

VERSION = "0.3.36"
CONVERTER = f"llama.cpp's convert_hf_to_gguf.py, vendored in llama-cpp-python {VERSION}"
ENVIRONMENT = Path(os.environ.get("STOWAGE_ORACLE") or Path(__file__).parents[3] / ".cache" / "oracle")
SOURCE = ENVIRONMENT / "vendor" / "llama.cpp"
GOLDEN = Path(__file__).with_name("golden")
REAL = Path(__file__).with_name("smollm2.json")
_PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "safetensors", "sentencepiece", "protobuf", "pyyaml", "tqdm")
_NEEDED = ("/vendor/llama.cpp/convert_hf_to_gguf.py", "/vendor/llama.cpp/conversion/", "/vendor/llama.cpp/gguf-py/",
           "/vendor/llama.cpp/models/ggml-vocab", "/vendor/llama.cpp/LICENSE")  # fmt: skip


def missing() -> str:
    """Why the oracle cannot be asked; empty if it can."""
    ready = (ENVIRONMENT / "bin" / "python").exists() and (SOURCE / "conversion").is_dir()
    return "" if ready else "no oracle environment: python -m tests.packager.convert.oracle setup"


def setup() -> None:
    venv.create(ENVIRONMENT, with_pip=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *_PACKAGES], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = ["--no-deps", "--no-binary", ":all:", f"llama-cpp-python=={VERSION}", "--dest", scratch]
        subprocess.run([*pip, "download", *wanted], check=True)
        extract(next(Path(scratch).glob("*.tar.gz")), ENVIRONMENT)


def extract(archive: Path, target: Path) -> None:
    """Take the converter and the test vectors out of the source distribution."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if f"/{inside}".startswith(_NEEDED) and member.isreg() and ".." not in inside.split("/"):
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, path.open("wb") as copy:  # type: ignore[union-attr]
                    shutil.copyfileobj(source, copy)


def answers() -> dict[str, dict[str, Any]]:
    """What the oracle says of every tiny checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints, results = Path(scratch) / "checkpoints", Path(scratch) / "results"
        results.mkdir()
        for name in CHECKPOINTS:
            write(checkpoints / name, name)
        worker = Path(__file__).with_name("oracle_worker.py")
        python = str(ENVIRONMENT / "bin" / "python")
        done = subprocess.run([python, worker, SOURCE, checkpoints, results], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        return {name: json.loads((results / f"{name}.json").read_text()) for name in CHECKPOINTS}


def record() -> None:
    for old in GOLDEN.glob("*.json"):
        old.unlink()
    for name, answer in answers().items():
        document = {"converter": CONVERTER, **answer}
        (GOLDEN / f"{name}.json").write_text(pretty(document) + "\n")


def record_real() -> None:
    """What transformers computes for the real model, in fp32: the likeliest next tokens of a few texts."""
    from tests.checkpoints.smollm2 import checkpoint

    program = Path(__file__).with_name("oracle_real.py")
    command = [ENVIRONMENT / "bin" / "python", "-I", program, checkpoint()]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    REAL.write_text(pretty(json.loads(answer)) + "\n", encoding="utf-8")


def pretty(value: Any, indent: str = "") -> str:
    """JSON with a line for each value that is no object."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    lines = (f"{inner}{json.dumps(key)}: {pretty(part, inner)}" for key, part in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def golden(name: str) -> dict[str, Any]:
    """The recorded answer about one tiny checkpoint."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


COMMANDS = {"setup": setup, "record": record, "smollm2": record_real}

if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in COMMANDS]:
        raise SystemExit(__doc__)
    COMMANDS[sys.argv[1]]()

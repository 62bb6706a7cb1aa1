"""llama.cpp's own converter, for architectures this one has no table of: another project's program, in its own Python.

It travels in the source distribution of llama-cpp-python (``vendor/llama.cpp``), wants torch and transformers, and is
run only where a user names it. It gets a folder with the files that are packed and no others, so that no Python of a
checkpoint is there to be run; an empty environment; and no hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import InvalidInput, StowageError
from artifact.progress import Progress
from packager.quantize.interpreter import interpreter_at
from packager.quantize.process import environment, start, stop, tail

VARIABLE = "STOWAGE_LLAMA_CPP_CONVERTER"
"""Environment variable that names the folder of the converter's environment."""

PRECISIONS = ("F32", "F16", "BF16", "Q8_0")
_SCRIPT = "convert_hf_to_gguf.py"
_PLACES = ("vendor/llama.cpp", ".")
_VERSION = re.compile(r'^version = "([^"]+)"', re.MULTILINE)


class ConverterFailed(StowageError):
    """llama.cpp's converter could not convert a checkpoint."""

    code = "converter-failed"


@dataclass(frozen=True)
class Converter:
    """The converter's folder, and the interpreter that has what it needs."""

    interpreter: Path
    folder: Path

    def tools(self) -> dict[str, str]:
        """What it is: the version of its gguf library, a digest over all its source, and the versions beside it."""
        stated = _VERSION.search((self.folder / "gguf-py" / "pyproject.toml").read_text(errors="replace"))
        found = {"llama.cpp-converter": f"sha256:{self._digest()}"}
        if stated:
            found["llama.cpp-gguf-py"] = stated[1]
        program = (
            "from importlib.metadata import version\nfor name in ('torch', 'transformers'): print(name, version(name))"
        )
        done = subprocess.run(
            [self.interpreter, "-I", "-c", program], capture_output=True, text=True, env=environment(Path("/"))
        )
        if done.returncode:
            raise InvalidInput(
                f"{self.interpreter} has no torch or no transformers, which llama.cpp's converter needs "
                "(docs/conversion.md says how to set it up)"
            )
        return found | dict(line.split(" ", 1) for line in done.stdout.splitlines())

    def convert(self, checkpoint: Path, precision: str, name: str, target: Path, progress: Progress) -> None:
        """Convert the checkpoint in the folder `checkpoint`, called `name`, to the file `target`; the folder `target`
        is in is the converter's scratch folder. Raises `ConverterFailed`, with the end of what it said."""
        command = [
            str(self.interpreter), "-E", "-s", "-B", str(self.folder / _SCRIPT), str(checkpoint), "--outfile",
            str(target), "--outtype", precision.lower(), "--model-name", name,
        ]  # fmt: skip
        task = f"llama.cpp's converter, to {precision}"
        progress.begin(task, sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")))
        with tempfile.TemporaryFile(dir=target.parent) as log:
            process = start(command, target.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                status = process.wait()
            finally:
                stop(process)
            if status or not target.is_file():
                raise ConverterFailed(f"llama.cpp's converter cannot convert {name}: {tail(log)}")
        progress.finish(task)

    def _digest(self) -> str:
        sources = [self.folder / _SCRIPT]
        sources += [path for part in ("conversion", "gguf-py/gguf") for path in (self.folder / part).rglob("*.py")]
        hasher = hashlib.sha256()
        for path in sorted(sources):
            hasher.update(f"{path.relative_to(self.folder)}\0".encode())
            hasher.update(hashlib.sha256(path.read_bytes()).digest())
        return hasher.hexdigest()


def find_converter(stated: str = "") -> Converter:
    """The converter in the environment folder `stated`, else in the environment variable's. Raises `InvalidInput`."""
    named, by = (stated, "--converter-path") if stated else (os.environ.get(VARIABLE, ""), VARIABLE)
    if not named:
        raise InvalidInput(
            f"--converter llama.cpp needs the folder of an environment that holds it: --converter-path or {VARIABLE} "
            "(docs/conversion.md says how to set one up)"
        )
    root = Path(named).expanduser()
    if not root.is_dir():
        raise InvalidInput(f"{by}: {named} is no folder")
    for place in _PLACES:
        folder = root / place
        if (folder / _SCRIPT).is_file() and (folder / "gguf-py" / "pyproject.toml").is_file():
            return Converter(interpreter_at(root, by), folder.absolute())
    raise InvalidInput(f"{by}: {named} holds no {_SCRIPT}, neither in vendor/llama.cpp nor itself")

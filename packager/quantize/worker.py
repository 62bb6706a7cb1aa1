"""What runs in the Python that has llama-cpp-python: tells about it, quantises, watches activations.

Started by path, isolated (``python -I``), by `process.run_worker`, whose protocol it speaks. It imports nothing of this
project: it has to run where the project is not installed.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import re
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_STEP = re.compile(r"\[ *\d+/ *\d+\] +(\S+)")
_SET_PARENT_DEATH_SIGNAL = 1
_OVERRIDE_INT, _OVERRIDE_STRING = 0, 3
_BUFFER = 128 * 1024 * 1024
"""Most bytes of rows that the quantiser holds at once; rows are quantised one by one, so it changes no byte."""


class Answers:
    """The way back: what this process's standard output was when it began. From then on that is standard error."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """Write one answer."""
        self._stream.write(json.dumps(answer) + "\n")
        self._stream.flush()


class Log:
    """llama.cpp's log: kept on standard error, its steps told, its last complaint remembered."""

    def __init__(self, llama_cpp: Any, answers: Answers) -> None:
        self.complaint = ""
        self._answers = answers
        self._callback = llama_cpp.llama_log_callback(self._line)
        llama_cpp.llama_log_set(self._callback, None)

    def _line(self, _level: int, text: bytes, _user: object) -> None:
        line = text.decode(errors="replace")
        sys.stderr.write(line)
        step = _STEP.match(line)
        if step:
            self._answers.send(at=step[1])
        elif "rror" in line or "fail" in line or "issing" in line:
            self.complaint = line.strip()


def about(llama_cpp: Any) -> dict[str, str]:
    """What there is to say about the program that may change what it makes."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    libraries = sorted(path for path in folder.glob("lib*") if path.name.startswith(("libllama", "libggml-base")))
    hasher = hashlib.sha256()
    for path in libraries:
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    found = {"llama-cpp-python": str(llama_cpp.__version__), "llama.cpp-libraries": f"sha256:{hasher.hexdigest()}"}
    version = getattr(llama_cpp, "llama_version", None)
    if version is not None:
        found["llama.cpp"] = version().decode()
    return found


def quantize(llama_cpp: Any, request: dict[str, Any], log: Log) -> None:
    """Quantise one file to another. Raises `RuntimeError` with llama.cpp's words."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = request["threads"]
    parameters.ftype = request["type"]
    parameters.allow_requantize = request["requantize"]
    if hasattr(parameters, "max_buf_size"):
        parameters.max_buf_size = _BUFFER
    keep = [*_imatrix(llama_cpp, parameters, request), *_overrides(llama_cpp, parameters, request["metadata"])]
    status = llama_cpp.llama_model_quantize(
        request["source"].encode(), request["target"].encode(), ctypes.byref(parameters)
    )
    del keep
    if status:
        raise RuntimeError(log.complaint or "llama.cpp could not quantise the file")


def _imatrix(llama_cpp: Any, parameters: Any, request: dict[str, Any]) -> list[Any]:
    """Point the parameters at the importance matrix; returns what has to stay alive meanwhile."""
    if not request["imatrix"]:
        return []
    if not hasattr(llama_cpp, "llama_model_imatrix_data"):
        raise RuntimeError(f"llama-cpp-python {llama_cpp.__version__} takes no importance matrix: 0.3.36 does")
    raw = Path(request["imatrix"]["values"]).read_bytes()
    entries = request["imatrix"]["entries"]
    data = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    values = ctypes.create_string_buffer(raw, len(raw))
    offset = 0
    for entry, (name, count) in zip(data, entries, strict=False):
        entry.name = name.encode()
        entry.data = ctypes.cast(ctypes.addressof(values) + offset, ctypes.POINTER(ctypes.c_float))
        entry.size = count
        offset += 4 * count
    parameters.imatrix = data
    return [data, values]


def _overrides(llama_cpp: Any, parameters: Any, metadata: dict[str, Any]) -> list[Any]:
    """Metadata that the result gets besides the source's: texts and whole numbers."""
    if not metadata:
        return []
    overrides = (llama_cpp.llama_model_kv_override * (len(metadata) + 1))()
    for override, (key, value) in zip(overrides, metadata.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, int):
            override.tag, override.value.val_i64 = _OVERRIDE_INT, value
        else:
            override.tag, override.value.val_str = _OVERRIDE_STRING, value.encode()
    parameters.kv_overrides = overrides
    return [overrides]


def work(request: dict[str, Any], answers: Answers) -> Any:
    """Do what the request asks for; the answer."""
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise RuntimeError(f"it has no llama-cpp-python ({error})") from None
    log = Log(llama_cpp, answers)
    llama_cpp.llama_backend_init()
    if request["do"] == "quantize":
        quantize(llama_cpp, request, log)
    elif request["do"] == "imatrix":
        sys.path.append(str(Path(__file__).parent))
        importlib.import_module("activations").collect(llama_cpp, request, answers)
    return about(llama_cpp)


def main() -> None:
    """Answer the one request."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    answers = Answers()
    try:
        answers.send(done=work(json.load(sys.stdin), answers))
    except (RuntimeError, OSError, ValueError, struct.error) as error:
        answers.send(failed=str(error))


if __name__ == "__main__":
    main()

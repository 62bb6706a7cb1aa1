"""Headers that made other readers hang, recurse or take the machine's memory are refused, fast and in little memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
from pathlib import Path
from artifact.errors import Malformed
from artifact.weights import gguf, safetensors

path = Path(sys.argv[1])
read = gguf.read_header if path.suffix == ".gguf" else safetensors.read_header
try:
    read(path)
except Malformed as error:
    print(error)
else:
    sys.exit("accepted")
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(peak)
"""


def gguf_value(type_: int, raw: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", type_) + raw


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


def json_header(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


GGUF = {
    "array of 2^50 elements (the gguf package hangs)": gguf_value(9, struct.pack("<IQ", 0, 2**50)),
    "array of 2^50 strings": gguf_value(9, struct.pack("<IQ", 8, 2**50)),
    "array of 2^63 empty strings, all of them there": gguf_value(9, struct.pack("<IQ", 8, 2**63)),
    "arrays nested 5000 deep (the gguf package recurses)": gguf_value(9, nested(5000)),
    "2^40 metadata keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
    "2^40 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
    "tensors by the hundred thousand": b"GGUF" + struct.pack("<IQQ", 3, 1 << 20, 0),
    "a string of 2^60 bytes": gguf_value(8, struct.pack("<Q", 2**60)),
}
SAFETENSORS = {
    "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "header of a gigabyte": struct.pack("<Q", 2**30) + b"{",
    "nested 100,000 deep": json_header(b'{"a":' * 100_000),
    "nested lists": json_header(b'{"a":' + b"[" * 1_000_000),
    "a million keys": json_header(b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"),
    "an integer of a million digits": json_header(b'{"a":{"shape":[' + b"1" * 1_000_000 + b"]}}"),
}


@pytest.mark.parametrize(
    ("suffix", "raw"),
    [*((".gguf", raw) for raw in GGUF.values()), *((".safetensors", raw) for raw in SAFETENSORS.values())],
    ids=[*GGUF, *SAFETENSORS],
)
def test_a_header_bomb_is_refused(tmp_path: Path, suffix: str, raw: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(raw)
    with path.open("r+b") as stream:
        stream.truncate(2**36)  # sparse: a stated size that fits the file does not make it sound
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    message, peak = done.stdout.splitlines()
    assert message.startswith(path.name)
    assert int(peak) < 300 * 1024

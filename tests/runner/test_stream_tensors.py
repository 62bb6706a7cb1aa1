"""The tensors that a tensor-parallel rank of vLLM gets of a model that still arrives, in vLLM's own environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import runner.stream
from runner.engines.installed import choose
from tests.runner.engines import installed_engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

PROGRAM = """
import json, torch
from stowage_stream.client import Entry
from stowage_stream.tensors import Lazy, whole

values = torch.arange(64 * 8, dtype=torch.float32).reshape(64, 8).to(torch.bfloat16)
stored = b"h" * 100 + values.view(torch.uint8).numpy().tobytes()
entry, scalar = Entry("w", "BF16", (64, 8), 100, 1024), Entry("s", "BF16", (), 102, 2)

class File:
    asked = []
    def read_into(self, buffer, offset):
        self.asked.append([offset - 100, len(buffer)])
        buffer[:] = stored[offset : offset + len(buffer)]

told = {}
def case(name, made, expected):
    assert type(made) is torch.Tensor, name
    assert made.dtype == expected.dtype and torch.equal(made, expected), name
    told[name], File.asked = File.asked, []

def copied(source, *shape):
    param = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False)
    assert param.data.shape == source.shape
    param.data.copy_(source)
    return param.data

case("whole", whole(File(), entry), values)
lazy = Lazy(File(), entry)
assert isinstance(lazy, torch.Tensor) and lazy.shape == (64, 8) and lazy.size(0) == 64 and lazy.dim() == 2
assert lazy.dtype == torch.bfloat16 and lazy.numel() == 512 and lazy.device.type == "cpu" and len(lazy) == 64
assert not lazy.is_meta and lazy.ndim == 2 and repr(lazy) == "Lazy(w)"
case("nothing yet", torch.zeros(1), torch.zeros(1))
case("narrow", copied(Lazy(File(), entry).narrow(0, 16, 32), 32, 8), values[16:48])
case("rows", copied(Lazy(File(), entry)[32:], 32, 8), values[32:])
case("rows of rows", copied(Lazy(File(), entry).narrow(0, 16, 32)[8:16].narrow(dim=0, start=2, length=4), 4, 8),
     values[26:30])
case("columns", copied(Lazy(File(), entry).narrow(1, 4, 4), 64, 4), values[:, 4:])
case("all", copied(Lazy(File(), entry), 64, 8), values)
case("once", lazy + lazy, values + values)
for name, made in (("transposed", lambda x: x.t()), ("cast", lambda x: x.to(torch.float32)), ("data", lambda x: x.data),
                   ("view", lambda x: x.view(8, 64)), ("last", lambda x: x[-1]), ("step", lambda x: x[::2]),
                   ("chunk", lambda x: x.chunk(2, dim=0)[1]), ("cat", lambda x: torch.cat([x, x])),
                   ("contiguous", lambda x: x.contiguous()), ("outside", lambda x: x[60:99])):
    case(name, made(Lazy(File(), entry)) + 0, made(values) + 0)
assert Lazy(File(), scalar).item() == values.flatten()[1].item()
File.asked = []
with torch.device("meta"):  # as vLLM makes its parameters on a GPU
    case("elsewhere", whole(File(), entry), values)
try:
    Lazy(File(), Entry("x", "F4", (2,), 0, 1))
except RuntimeError as error:
    told["unknown"] = str(error)
print(json.dumps(told))
"""


def test_a_rank_reads_the_rows_it_takes_and_no_others(tmp_path):
    engines = installed_engines("vllm", "cpu", tmp_path)
    installed = choose(engines, "vllm", None, ["cpu"])
    assert installed is not None
    plugin = Path(runner.stream.__file__).with_name("plugin")
    done = subprocess.run(
        [str(installed.interpreter), "-P", "-s", "-c", PROGRAM], env={"PYTHONPATH": str(plugin), "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    everything, row = [[0, 1024]], 16
    assert told.pop("nothing yet") == []
    assert told.pop("narrow") == [[16 * row, 32 * row]]
    assert told.pop("rows") == [[32 * row, 32 * row]]
    assert told.pop("rows of rows") == [[26 * row, 4 * row]]
    assert told.pop("outside") == [[60 * row, 4 * row]]
    assert "tensor x has the type F4" in told.pop("unknown")
    assert told.pop("once") == everything  # and not twice
    assert {name for name, asked in told.items() if asked != everything} == set(), told

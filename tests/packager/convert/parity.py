"""How near llama.cpp, with a converted file, comes to what transformers computes in fp32, and how near it must come.

python -m tests.packager.convert.parity    write the table of docs/conversion.md anew
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import gguf

from artifact.progress import Quiet
from packager.convert import convert
from tests.checkpoints.families import TINY, VOCABULARY, write_tiny
from tests.packager.convert import oracle
from tests.packager.convert.conftest import Llama, serving

PRECISIONS = ("F32", "F16", "BF16", "Q8_0")
DIVERGENCE = {"F32": 0.0, "F16": 1.5e-6, "BF16": 1e-4, "Q8_0": 3.3e-3}
"""The most that the next tokens' distribution may diverge (Kullback-Leibler, in nats)."""

DISTANCE = 2e-5
DISTANCE_GELU = 4e-3
"""The most that a log probability may differ in F32; where llama.cpp looks GELU up in a table of F16, the second."""

GELU = ("gemma", "gemma2", "gemma3", "gpt2", "bert")


@dataclass(frozen=True)
class Parity:
    """Over the recorded prompts: the largest `distance` of a log probability (of a number of an embedding), and the
    mean `divergence`, None for embedding models."""

    distance: float
    divergence: float | None

    def within(self, name: str, precision: str) -> bool:
        limit = DISTANCE_GELU if name in GELU else DISTANCE
        if self.divergence is None:
            return self.distance <= max(limit, 10 * DIVERGENCE[precision])
        return self.distance <= limit if precision == "F32" else self.divergence <= DIVERGENCE[precision]


def prompt(length: int) -> list[int]:
    """The same as in `oracle_worker`."""
    return [(number * 37 + 11) % 300 for number in range(length)]


def measured(name: str, folder: Path, precision: str, target: Path) -> Parity:
    """Convert the checkpoint `name` of `TINY`, which is in `folder`, and compare."""
    model = convert(folder, precision, target, Quiet()).path
    answers = oracle.golden(name)["answers"]
    pooled = (folder / "modules.json").is_file()
    with serving(model, *(["embedding"] if pooled else [])) as server:
        found = [_compared(server, prompt(int(length)), values, pooled) for length, values in answers.items()]
    divergences = [each.divergence for each in found if each.divergence is not None]
    return Parity(max(each.distance for each in found), mean(divergences) if divergences else None)


def _compared(server: Llama, tokens: list[int], expected: list[float], pooled: bool) -> Parity:
    if pooled:
        return Parity(max(abs(a - b) for a, b in zip(server.embedding(tokens), expected, strict=True)), None)
    found = server.next_token(tokens, VOCABULARY)
    assert len(found) == VOCABULARY == len(expected)
    distance = max(abs(expected[token] - value) for token, value in found.items())
    total = math.log(sum(map(math.exp, found.values())))  # rounded as they come, they are no whole distribution
    divergence = sum(math.exp(expected[token]) * (expected[token] - value + total) for token, value in found.items())
    return Parity(distance, max(divergence, 0.0))


DOCUMENT = Path(__file__).parents[3] / "docs" / "conversion.md"
BEGIN, END = "<!-- parity -->", "<!-- /parity -->"


def table() -> str:
    """The figures of every checkpoint, as Markdown."""
    transformers = oracle.golden("llama")["versions"]["transformers"]
    lines = [
        f"Compared with {oracle.CONVERTER}, and with transformers {transformers} in fp32.",
        "",
        "| checkpoint | model | tensors, bytes equal | F32: largest difference | F16: KL | BF16: KL | Q8_0: KL |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name, tiny in TINY.items():
            folder = write_tiny(Path(scratch) / name, name)
            equal, cells = 0, []
            for precision in PRECISIONS:
                target = Path(scratch) / "model.gguf"
                parity = measured(name, folder, precision, target)
                assert parity.within(name, precision), (name, precision, parity)
                equal += equal_tensors(name, precision, target)
                distance = precision == "F32" or parity.divergence is None
                cells.append(f"{parity.distance if distance else parity.divergence:.0e}".replace("e-0", "e-"))
            total = sum(map(len, oracle.golden(name)["tensors"].values()))
            lines.append(f"| {name} | {tiny.model} | {equal} of {total} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equal_tensors(name: str, precision: str, model: Path) -> int:
    """How many tensors of a converted file are those of llama.cpp's converter."""
    expected = oracle.golden(name)["tensors"][precision]
    return sum(
        expected.get(tensor.name, ["", [], ""])[2] == hashlib.sha256(tensor.data.tobytes()).hexdigest()
        for tensor in gguf.GGUFReader(model).tensors
    )


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

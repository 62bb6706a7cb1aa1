"""How near llama.cpp, with a converted file, comes to what transformers computes in fp32, and how near it must come.

python -m tests.packager.convert.parity    write the tables of docs/conversion.md anew

The second table, of quantised types, needs a Python that has llama-cpp-python (STOWAGE_LLAMA_CPP_PYTHON); without one
it stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import gguf

from artifact.errors import StowageError
from artifact.progress import Quiet
from packager.convert import convert
from packager.quantize.interpreter import find_interpreter
from packager.quantize.quantize import quantize
from packager.quantize.recipes import recipe_of
from tests.checkpoints.families import VOCABULARY
from tests.checkpoints.smollm2 import checkpoint
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.convert import oracle
from tests.packager.convert.checkpoints import CHECKPOINTS, write
from tests.packager.convert.conftest import Llama, serving
from tests.packager.convert.reference import next_token

PRECISIONS = ("F32", "F16", "BF16", "Q8_0")
DIVERGENCE = {"F32": 0.0, "F16": 1.5e-6, "BF16": 1e-4, "Q8_0": 3.3e-3}
"""The most that the next tokens' distribution may diverge (Kullback-Leibler, in nats)."""

DISTANCE = 2e-5
DISTANCE_GELU = 4e-3
"""The most that a log probability may differ in F32; where llama.cpp looks GELU up in a table of F16, the second."""

DISTANCE_POOLED = {"F32": DISTANCE, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 4e-2}
"""The most that a number of an embedding may differ: the types round, and a last token's vector is no mean."""

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
            return self.distance <= max(limit, DISTANCE_POOLED[precision])
        return self.distance <= limit if precision == "F32" else self.divergence <= DIVERGENCE[precision]


def prompt(length: int) -> list[int]:
    """The same as in `oracle_worker`."""
    return [(number * 37 + 11) % 300 for number in range(length)]


def measured(name: str, folder: Path, precision: str, target: Path) -> Parity:
    """Convert the checkpoint `name` of `CHECKPOINTS`, which is in `folder`, and compare."""
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
        for name, architecture in CHECKPOINTS.items():
            folder = write(Path(scratch) / name, name)
            equal, cells = 0, []
            for precision in PRECISIONS:
                target = Path(scratch) / "model.gguf"
                parity = measured(name, folder, precision, target)
                assert parity.within(name, precision), (name, precision, parity)
                equal += equal_tensors(name, precision, target)
                distance = precision == "F32" or parity.divergence is None
                cells.append(f"{parity.distance if distance else parity.divergence:.0e}".replace("e-0", "e-"))
            total = sum(map(len, oracle.golden(name)["tensors"].values()))
            lines.append(f"| {name} | {architecture} | {equal} of {total} | {' | '.join(cells)} |")
    return "\n".join(lines)


QUANTIZED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M")
WIDE = {"hidden": 256, "intermediate": 512, "layers": 4, "vocab": 420, "heads": 4, "kv_heads": 2}
"""A random model whose rows are whole numbers of 256 values, so that nothing falls back to other types."""


def quantized_table(interpreter: Path) -> str:
    """The figures of quantised types, over the real model and over a random one, as Markdown."""
    lines = [
        "| type | SmolLM2 135M: largest shares | KL | random model, rows of 256: largest shares | KL |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        wide = write_tiny_llama(Path(scratch) / "wide", tokenizer="llama-bpe", tied=False, **WIDE)
        tokens = prompt(96)
        reference = next_token(wide, tokens)
        answers = [(tokens, {number: float(reference[number]) for number in range(len(reference))})]
        models = [(checkpoint(), _recorded()), (wide, answers)]
        sources = [
            (convert(folder, "F32", Path(scratch) / f"{number}.gguf", Quiet()).path, expected)
            for number, (folder, expected) in enumerate(models)
        ]
        for name in QUANTIZED:
            cells = []
            for source, expected in sources:
                target = Path(scratch) / "quantized.gguf"
                shares = quantize(interpreter, source, recipe_of(name), target, Quiet()).facts.shares
                with serving(target) as server:
                    divergence = mean(_truncated(server, *case) for case in expected)
                cells.append(", ".join(f"{type_} {share:.0%}" for type_, share in shares[:2]))
                cells.append(f"{divergence:.1g}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _recorded() -> list[tuple[list[int], dict[int, float]]]:
    """What transformers said of the real model: the tokens of each text, and the likeliest next tokens."""
    answers = json.loads(oracle.REAL.read_text(encoding="utf-8"))["answers"]
    return [(case["tokens"], {int(token): value for token, value in case["likeliest"].items()}) for case in answers]


def _truncated(server: Llama, tokens: list[int], expected: dict[int, float]) -> float:
    """The divergence over those of the tokens that both have among the likeliest."""
    found = server.next_token(tokens, 10 * len(expected))
    pairs = [(value, found[token]) for token, value in expected.items() if token in found]
    assert len(pairs) > 0.9 * len(expected), f"{len(pairs)} of {len(expected)} tokens are likely"
    first, second = (math.log(sum(map(math.exp, values))) for values in zip(*pairs, strict=True))
    return sum(math.exp(a - first) * (a - first - b + second) for a, b in pairs)


def equal_tensors(name: str, precision: str, model: Path) -> int:
    """How many tensors of a converted file are those of llama.cpp's converter."""
    expected = oracle.golden(name)["tensors"][precision]
    return sum(
        expected.get(tensor.name, ["", [], ""])[2] == hashlib.sha256(tensor.data.tobytes()).hexdigest()
        for tensor in gguf.GGUFReader(model).tensors
    )


def main() -> None:
    _write("parity", table())
    try:
        interpreter = find_interpreter()
    except StowageError as error:
        print(f"quantised types are left as they are: {error}")
        return
    _write("quantized", quantized_table(interpreter))


def _write(mark: str, lines: str) -> None:
    """Put `lines` between the two comments that say `mark`."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What is not converted: one clear error each, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.errors import InvalidInput, Malformed, NotFound, StowageError
from artifact.progress import Quiet
from packager.convert import Unsupported, convert
from tests.checkpoints.shards import Weight, write_file
from tests.checkpoints.tiny import LLAMA31_ROPE, tiny_weights, write_tiny_llama

Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    return document("config.json", lambda value: value.update(changes))


def tokenizer(change: Callable[[dict], None]) -> Change:
    return document("tokenizer.json", change)


def document(name: str, change: Callable[[dict], None]) -> Change:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def file(name: str, content: bytes | None) -> Change:
    def apply(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return apply


def tensors(change: Callable[[dict[str, Weight]], None], dtypes: dict[str, str] | None = None) -> Change:
    """The weights written anew after `change`, in one file."""

    def apply(folder: Path) -> None:
        for path in folder.glob("model*"):
            path.unlink()
        weights = tiny_weights(json.loads((folder / "config.json").read_text()), 0)
        change(weights)
        write_file(folder / "model.safetensors", weights, dict.fromkeys(weights, "BF16") | (dtypes or {}))

    return apply


def filled(name: str, shape: tuple[int, ...], value: float) -> Change:
    weight = Weight(shape, lambda: np.full(shape, value, np.float32))
    return tensors(lambda weights: weights.update({name: weight}))


def fp8(folder: Path) -> None:
    header = {"model.embed_tokens.weight": {"dtype": "F8_E4M3", "shape": [320, 64], "data_offsets": [0, 20480]}}
    text = json.dumps(header).encode()
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(20480))


def pretokenizer(value: Any) -> Change:
    return tokenizer(lambda tok: tok.update(pre_tokenizer=value))


def truncated(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def both_places(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

CASES: dict[str, tuple[Change, type[StowageError], str]] = {
    "unknown architecture": (
        config(architectures=["FalconForCausalLM"]), Unsupported, "FalconForCausalLM.*LlamaForCausalLM"
    ),
    "no architecture": (config(architectures=None), Malformed, "architectures"),
    "architectures of another type": (config(architectures="Llama"), Malformed, "architectures"),
    "no config": (file("config.json", None), NotFound, "config.json"),
    "config that is no JSON": (file("config.json", b"{"), Malformed, "config.json.*JSON"),
    "config without a number": (config(num_hidden_layers=None), Malformed, "num_hidden_layers"),
    "config with a lie": (config(num_attention_heads=-4), Malformed, "num_attention_heads.*-4"),
    "config with an impossible number": (config(num_hidden_layers=10**9), Malformed, "do not fit"),
    "heads that do not divide": (config(num_key_value_heads=3), Malformed, "do not fit"),
    "a head of an impossible size": (config(head_dim=2**31, rope_scaling=LLAMA31_ROPE), Malformed, "shape"),
    "text for a number": (config(rms_norm_eps="small"), Malformed, "rms_norm_eps.*small"),
    "more layers than stored": (config(num_hidden_layers=3), Malformed, "lacks.*layers.2"),
    "fewer layers than stored": (config(num_hidden_layers=1), Malformed, "layers.1.*does not belong"),
    "another activation": (config(hidden_act="gelu"), Unsupported, "gelu"),
    "a sliding window": (config(sliding_window=8), Unsupported, "sliding window"),
    "unknown rope": (config(rope_scaling={"rope_type": "dynamic", "factor": 2}), Unsupported, "dynamic"),
    "untied without an output": (config(tie_word_embeddings=False), Malformed, "lm_head"),
    "compressed tensors": (
        config(quantization_config={"quant_method": "compressed-tensors"}), Unsupported, "compressed-tensors"
    ),
    "fp8": (fp8, Unsupported, "F8_E4M3"),
    "missing shard": (file(SECOND, None), NotFound, SECOND),
    "shard that ends early": (truncated, Malformed, SECOND),
    "tensor in two shards": (both_places, Malformed, "both in"),
    "index that points elsewhere": (
        document(INDEX, lambda index: index["weight_map"].update({Q_PROJ: FIRST})), Malformed, "which does not hold it"
    ),
    "index that leaves the folder": (
        document(INDEX, lambda index: index["weight_map"].update({Q_PROJ: "../other.safetensors"})),
        Malformed, "not the name of a safetensors file",
    ),
    "pickle instead of safetensors": (
        lambda folder: [p.unlink() for p in folder.glob("model*")] and file("pytorch_model.bin", b"x")(folder),
        NotFound, "only safetensors",
    ),
    "wrong shape": (
        filled(Q_PROJ, (64, 32), 1),
        Malformed, r"q_proj.*\[64, 32\].*\[64, 64\]",
    ),
    "missing tensor": (tensors(lambda weights: weights.pop(Q_PROJ)), Malformed, f"lacks.*{Q_PROJ}"),
    "unknown tensor": (filled("model.extra.weight", (4,), 1), Malformed, "model.extra.weight.*does not belong"),
    "no tokenizer": (file("tokenizer.json", None), NotFound, "tokenizer.json"),
    "tokenizer that is no JSON": (file("tokenizer.json", b"\xff"), Malformed, "tokenizer.json"),
    "unknown pre-tokenizer": (pretokenizer({"type": "Whitespace"}), Unsupported, "pre-tokenizer.*smollm"),
    "pre-tokenizer with a prefix space": (pretokenizer({"type": "ByteLevel"}), Unsupported, "pre-tokenizer"),
    "no pre-tokenizer": (pretokenizer(None), Unsupported, "pre-tokenizer"),
    "normaliser": (tokenizer(lambda tok: tok.update(normalizer={"type": "NFKC"})), Unsupported, "pre-tokenizer"),
    "WordPiece": (tokenizer(lambda tok: tok["model"].update(type="WordPiece")), Unsupported, "WordPiece"),
    "token beyond the embedding": (tokenizer(lambda tok: tok["model"]["vocab"].update(far=320)), Malformed, "far.*320"),
    "id that is no number": (tokenizer(lambda tok: tok["model"]["vocab"].update(odd="1")), Malformed, "odd"),
    "two tokens with one id": (tokenizer(lambda tok: tok["model"]["vocab"].update(twin=5)), Malformed, "same id 5"),
    "merge of three": (tokenizer(lambda tok: tok["model"]["merges"].append("a b c")), Malformed, "a b c"),
    "half a character": (
        tokenizer(lambda tok: tok["model"]["merges"].append(["a", "\ud800"])), Malformed, "half a character"
    ),
    "post-processor that is not the BOS": (
        tokenizer(lambda tok: tok.update(post_processor={"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}]})),
        Unsupported, "CLS",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_with_one_line_and_nothing_left(tmp_path, case):
    change, error, words = CASES[case]
    folder = write_tiny_llama(tmp_path / "model", shards=2)
    change(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(error, match=words) as caught:
        convert(folder, "F16", tmp_path / "model.gguf", Quiet())
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(("precision", "value"), [("F16", 1e6), ("Q8_0", float("nan")), ("Q8_0", float("inf"))])
def test_values_that_do_not_fit_are_found_while_writing(tmp_path, precision, value):
    folder = write_tiny_llama(tmp_path / "model")
    filled(Q_PROJ, (64, 64), value)(folder)
    with pytest.raises(Unsupported, match=f"{Q_PROJ}.*{precision}"):
        convert(folder, precision, tmp_path / "model.gguf", Quiet())
    assert not (tmp_path / "model.gguf").exists()
    assert convert(folder, "BF16", tmp_path / "model.gguf", Quiet()).size


def test_a_file_that_shrinks_meanwhile(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")

    class Saboteur(Quiet):
        def begin(self, name, total):
            with (folder / "model.safetensors").open("r+b") as stream:
                stream.truncate(4096)

    with pytest.raises(Malformed, match="changed meanwhile"):
        convert(folder, "F16", tmp_path / "model.gguf", Saboteur())
    assert not (tmp_path / "model.gguf").exists()


def test_interrupted(tmp_path):
    class Interrupted(Quiet):
        def advance(self, name, count):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(write_tiny_llama(tmp_path / "model"), "F16", tmp_path / "model.gguf", Interrupted())
    assert not (tmp_path / "model.gguf").exists()


CONFINED = """
import resource, sys
from pathlib import Path
from artifact.progress import Quiet
from packager.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert(Path(sys.argv[1]), "F16", Path(sys.argv[2]), Quiet())
except OSError as error:
    print(error.filename, error.strerror)
"""


def test_no_room_for_the_file(tmp_path):
    folder, target = write_tiny_llama(tmp_path / "model"), tmp_path / "model.gguf"
    done = subprocess.run([sys.executable, "-c", CONFINED, folder, target], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{target} File too large"
    assert not target.exists()


def test_unknown_precision(tmp_path):
    with pytest.raises(InvalidInput, match=r"Q4_K_M.*F32, F16, Q8_0, BF16"):
        convert(write_tiny_llama(tmp_path / "model"), "Q4_K_M", tmp_path / "model.gguf", Quiet())

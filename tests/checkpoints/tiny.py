"""Small Llama checkpoints: random weights, everything else as genuine checkpoints have it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import bpe
from tests.checkpoints.shards import Array, Weight, write_checkpoint, write_json

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA31_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LICENSE_CARD = "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\n# Tiny\n\nRandom weights, for tests.\n"


def write_tiny_llama(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocab: int = 320,
    context: int = 256,
    dtype: str = "BF16",
    tied: bool = True,
    shards: int = 1,
    seed: int = 0,
    rope_scaling: Mapping[str, Any] | None = None,
    rope_theta: float = 10000.0,
    tokenizer: str = "smollm",
    architecture: str = "LlamaForCausalLM",
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Write a Hugging Face checkpoint folder and return it.

    `dtype` is BF16, F16 or F32; `rope_scaling` is config.json's own (`LLAMA31_ROPE`); `tokenizer` is ``smollm``,
    ``llama-bpe`` or ``gpt-2``; `vocab` is at least 259 (three special tokens and the bytes) and beyond the learned
    merges is filled with more special tokens. The same arguments give the same bytes on every machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_byte_level(folder, vocab, context, tokenizer, chat_template)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "attention_bias": False,
        **ids,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": context,
        "model_type": "mistral" if architecture == "MistralForCausalLM" else "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": dict(rope_scaling) if rope_scaling else None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": _TORCH_NAMES[dtype],
        "vocab_size": vocab,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    (folder / "README.md").write_text(_LICENSE_CARD, encoding="utf-8")
    write_weights(folder, tiny_weights(config, seed), dtype, shards)
    return folder


def tiny_weights(config: Mapping[str, Any], seed: int) -> dict[str, Weight]:
    """Every tensor of the architecture, each from a generator of its own name, so that order does not matter."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for number in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (kv, hidden),
        }
        shapes.update({f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return {name: Weight(shape, _random(name, shape, seed)) for name, shape in shapes.items()}


def write_weights(folder: Path, weights: Mapping[str, Weight], dtype: str, shards: int) -> None:
    """Write `weights` in one type, cut into `shards` files of about as many tensors each."""
    names = list(weights)
    size = -(-len(names) // shards)
    groups = [{name: weights[name] for name in names[start : start + size]} for start in range(0, len(names), size)]
    write_checkpoint(folder, groups, dict.fromkeys(names, dtype))


def _random(name: str, shape: tuple[int, ...], seed: int):
    def make() -> Array:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, dtype=np.float32)
        return 1 + values * np.float32(0.1) if len(shape) == 1 else values / np.float32(shape[-1] ** 0.5)

    return make


def _tokens(vocab: int, kind: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """All tokens, the special ones among them, and the merges. Special tokens come first in ``smollm`` and
    ``gpt-2``; in the others they come last and are no part of the model's own vocabulary."""
    alphabet = sorted(bpe.byte_alphabet())
    room = vocab - len(_SPECIAL) - len(alphabet)
    assert room >= 0, "a byte-level vocabulary needs 259 tokens"
    merges = bpe.train_merges(room)
    learned = [left + right for left, right in merges]
    special = [*_SPECIAL, *(f"<|extra_{number}|>" for number in range(room - len(learned)))]
    if kind in bpe.SPLITS:
        return [*alphabet, *learned, *special], special, merges
    return [*_SPECIAL, *alphabet, *learned, *special[len(_SPECIAL) :]], special, merges


def write_byte_level(folder: Path, vocab: int, context: int, kind: str, template: str | None) -> dict[str, int]:
    """Write the files of a byte-level tokenizer of `kind` (`bpe.pre_tokenizer`); the ids of BOS, EOS and padding."""
    tokens, special, merges = _tokens(vocab, kind)
    named = {"bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2], "pad_token": _SPECIAL[2], "unk_token": _SPECIAL[0]}
    bos = _SPECIAL[1] if kind == "llama-bpe" else None
    tokenizer = bpe.tokenizer_json(tokens, merges, special, kind, bos)
    bpe.write_tokenizer(folder, tokenizer, bpe.tokenizer_config(tokens, special, named, context, template), named)
    return {f"{role}_token_id": tokens.index(named[f"{role}_token"]) for role in ("bos", "eos", "pad")}

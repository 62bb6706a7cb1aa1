"""A Llama forward pass in numpy, straight from the checkpoint's files: what a conversion has to preserve."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors

from tests.checkpoints.shards import Array, decode


def weights_of(folder: Path) -> dict[str, tuple[str, Array]]:
    """Every tensor of a checkpoint as its type and its float32 values."""
    weights: dict[str, tuple[str, Array]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            values = decode(bytes(entry["data"]), entry["dtype"])
            weights[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return weights


def _unwatched(name: str, inputs: Array) -> None:
    """Nobody wants to know."""


def next_token(folder: Path, tokens: list[int], watch: Callable[[str, Array], None] = _unwatched) -> Array:
    """The log probabilities of the token that follows. `watch` is told what goes into each matrix of a layer, which it
    knows by the name GGUF has for it."""
    config = json.loads((folder / "config.json").read_text())
    weight = {name: values.astype(np.float64) for name, (_, values) in weights_of(folder).items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    cosine, sine = _rotations(config, size, len(tokens))
    mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight[name]

    def rotate(x):
        half = size // 2
        return x * cosine + np.concatenate([-x[..., half:], x[..., :half]], -1) * sine

    x = weight["model.embed_tokens.weight"][tokens]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        y = norm(x, layer + "input_layernorm.weight")
        for name in "qkv":
            watch(f"blk.{number}.attn_{name}.weight", y)
        q, k, v = (
            (y @ weight[f"{layer}self_attn.{name}_proj.weight"].T).reshape(len(tokens), -1, size).swapaxes(0, 1)
            for name in "qkv"
        )
        k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (k, v))
        scores = rotate(q) @ rotate(k).swapaxes(1, 2) / math.sqrt(size) + mask
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v).swapaxes(0, 1).reshape(len(tokens), -1)
        watch(f"blk.{number}.attn_output.weight", mixed)
        x = x + mixed @ weight[layer + "self_attn.o_proj.weight"].T
        y = norm(x, layer + "post_attention_layernorm.weight")
        for name in ("gate", "up"):
            watch(f"blk.{number}.ffn_{name}.weight", y)
        gate = y @ weight[layer + "mlp.gate_proj.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (y @ weight[layer + "mlp.up_proj.weight"].T)
        watch(f"blk.{number}.ffn_down.weight", inner)
        x = x + inner @ weight[layer + "mlp.down_proj.weight"].T
    output = weight["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    logits = norm(x[-1], "model.norm.weight") @ output.T
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def _rotations(config, size, length):
    frequencies = config["rope_theta"] ** -(np.arange(0, size, 2) / size)
    scaling, scale = config["rope_scaling"], 1.0
    if scaling and scaling["rope_type"] == "yarn":
        frequencies, scale = _yarn(config["rope_theta"], scaling, size)
    elif scaling:
        context = scaling["original_max_position_embeddings"]
        turns = context * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / scaling["factor"])
    angles = np.arange(length)[:, None] * frequencies
    return tuple(scale * np.concatenate([part, part], -1) for part in (np.cos(angles), np.sin(angles)))


def _yarn(theta, scaling, size):
    """The frequencies, and what rotated vectors are scaled by (transformers, modeling_rope_utils.py)."""
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = (size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), size - 1)
    ramp = np.clip((np.arange(size // 2) - low) / (high - low), 0, 1)
    frequencies = theta ** -(np.arange(0, size, 2) / size)
    scale = scaling.get("attention_factor", 0.1 * math.log(factor) + 1)
    return frequencies * (1 - ramp) + frequencies / factor * ramp, scale

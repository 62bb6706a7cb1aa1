"""LoRA adapters for the tiny model, as PEFT and llama.cpp keep them, packed by hand: each names its base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save

from artifact import mediatypes
from artifact.layout import LayoutRepository
from tests.runner.crafted import file_layer, push_model

RANK = 2


def weights(config: dict[str, Any], size: float) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """For each layer the two factors of what is added to q and v, of `size`."""
    generator = np.random.default_rng(7)
    hidden = config["hidden_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        for name, rows in (("q_proj", hidden), ("v_proj", narrow)):
            down = generator.standard_normal((RANK, hidden)).astype(np.float32)
            up = generator.standard_normal((rows, RANK)).astype(np.float32) * size
            yield layer, name, down, up


def gguf_adapter(path: Path, config: dict[str, Any], size: float = 1.0) -> bytes:
    """An adapter as llama.cpp keeps one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    writer.add_file_type(1)
    for layer, name, down, up in weights(config, size):
        tensor = f"blk.{layer}.{'attn_q' if name == 'q_proj' else 'attn_v'}.weight"
        writer.add_tensor(f"{tensor}.lora_a", down.astype(np.float16))
        writer.add_tensor(f"{tensor}.lora_b", up.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def peft_adapter(config: dict[str, Any], size: float = 1.0) -> tuple[bytes, bytes]:
    """An adapter as PEFT keeps one: its weights and its config."""
    tensors = {}
    for layer, name, down, up in weights(config, size):
        stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    stated = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "base_model_name_or_path": "", "inference_mode": True,
    }  # fmt: skip
    return save(tensors), json.dumps(stated).encode()


def push_adapter(root: Path, files: dict[str, bytes], base: str | None, tag: str = "v1") -> str:
    """Put an adapter for the model whose digest is `base` into a layout; its reference."""
    layout = LayoutRepository(root)
    layers = [file_layer(layout, name, data) for name, data in files.items()]
    gguf_only = all(name.endswith(".gguf") for name in files)
    annotations = {} if base is None else {mediatypes.BASE: base}
    push_model(
        root, layers, tag=tag, format_="gguf" if gguf_only else "safetensors",
        precision="float16" if gguf_only else "float32", annotations=annotations,
    )  # fmt: skip
    return f"oci:{root}:{tag}"

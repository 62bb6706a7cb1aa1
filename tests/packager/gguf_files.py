"""Small GGUF files of the kinds that are no language model by themselves, and models in shards."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_projector(path: Path, architecture: str = "clip") -> Path:
    """A projector, as llama.cpp's converter writes it with --mmproj."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("mmproj")
    writer.add_tensor("mm.0.weight", np.ones((8, 32), dtype=np.float16))
    return _finished(writer, path)


def write_lora(path: Path, architecture: str = "llama") -> Path:
    """A LoRA adapter, as llama.cpp's convert_lora_to_gguf.py writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for name in ("lora_a", "lora_b"):
        writer.add_tensor(f"blk.0.attn_q.weight.{name}", np.ones((8, 32), dtype=np.float32))
    return _finished(writer, path)


def write_shards(folder: Path, count: int) -> Path:
    """A model in `count` shards, as llama.cpp's gguf-split names them; the first one."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=1)
    writer.add_tokenizer_model("gpt2")
    writer.add_license("mit")
    for number in range(count):
        writer.add_tensor(f"t{number}", np.full((8, 32), number, dtype=np.float16))
    _finished(writer, folder)
    return folder / f"m-00001-of-{count:05d}.gguf"


def _finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
